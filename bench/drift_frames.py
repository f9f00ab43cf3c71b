"""Real photos through a real bundle, clean and spoiled: what ``bench/drift.py`` draws its cameras from.

Every frame goes through the head on ONNX Runtime and the bundle's own coder; what is kept of it is what a server sees for
nothing: the profile (``tail/drift/profile.py``). Frames are computed once and cached in one ``.npz`` file.

The spoiled frames follow the sorts and the spread of severities of ImageNet-C (Hendrycks and Dietterich, "Benchmarking
Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019), with formulas of our own for frames of
224 x 224.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from narrowcast.head.session import HeadSession
from narrowcast.tail.drift.profile import profiles
from narrowcast.transport.bundle import Bundle

Frame = npt.NDArray[np.uint8]
GRID = 5  # positions of a crop, along each side
CROP = 0.8  # of the photo's side


def _linear(frame: Frame) -> npt.NDArray[np.float64]:
    values: npt.NDArray[np.float64] = (frame / 255.0) ** 2.2
    return values


def _coded(light: npt.NDArray[np.float64]) -> Frame:
    return np.round(255 * np.clip(light, 0, 1) ** (1 / 2.2)).astype(np.uint8)


def fog(frame: Frame, amount: float, rng: np.random.Generator) -> Frame:
    """Light mixed with a bright veil that is thicker in places: noise at four scales."""
    height, width = frame.shape[:2]
    veil = np.zeros((height, width))
    for cells, weight in ((2, 0.5), (4, 0.25), (8, 0.15), (16, 0.1)):
        coarse = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
        veil += weight * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) / 255
    thick = np.clip(amount * (0.7 + 0.6 * veil), 0, 0.98)[..., None]
    return _coded(_linear(frame) * (1 - thick) + 0.75 * thick)


def blur(frame: Frame, amount: float, _rng: np.random.Generator) -> Frame:
    """A Gaussian of ``amount`` pixels: a lens out of focus, or a drop on it."""
    return np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(amount)))


def noise(frame: Frame, amount: float, rng: np.random.Generator) -> Frame:
    """Gaussian noise, standard deviation ``amount`` of full scale."""
    return np.clip(np.round(frame + rng.normal(0, 255 * amount, frame.shape)), 0, 255).astype(np.uint8)


def darkness(frame: Frame, amount: float, rng: np.random.Generator) -> Frame:
    """``amount`` of the light, and a sensor's read noise of 0.2 % of full scale."""
    return _coded(_linear(frame) * amount + rng.normal(0, 0.002, frame.shape))


SPOILERS: dict[str, tuple[Callable[[Frame, float, np.random.Generator], Frame], tuple[float, float, float]]] = {
    "fog": (fog, (0.3, 0.5, 0.75)),
    "blur": (blur, (1.0, 2.0, 4.0)),
    "noise": (noise, (0.04, 0.1, 0.2)),
    "darkness": (darkness, (0.4, 0.15, 0.05)),
}
SORTS = ["clean", *(f"{name} {severity}" for name in SPOILERS for severity in (1, 2, 3))]


def spoil(frame: Frame, sort: str, rng: np.random.Generator) -> Frame:
    """A frame as one of :data:`SORTS`."""
    if sort == "clean":
        return frame
    name, severity = sort.split()
    apply, amounts = SPOILERS[name]
    return apply(frame, amounts[int(severity) - 1], rng)


def crops(frame: Frame, rng: np.random.Generator) -> Iterator[Frame]:
    """What a camera that shakes and breathes sees of one scene: 25 crops of it, each with its own light and sensor noise."""
    side = round(min(frame.shape[:2]) * CROP)
    most = np.array(frame.shape[:2]) - side
    for row in range(GRID):
        for column in range(GRID):
            top, left = most * (row, column) // (GRID - 1)
            cut = Image.fromarray(frame[top : top + side, left : left + side])
            full = np.asarray(cut.resize((frame.shape[1], frame.shape[0]), Image.Resampling.BICUBIC))
            light = np.exp(rng.normal(0, 0.05))
            yield noise(_coded(_linear(full) * light), 0.01, rng)


class Coder:
    """A bundle's head and coder: frames in, profiles out."""

    def __init__(self, bundle: Path) -> None:
        self._session = HeadSession(Bundle.open(bundle, "any", allow_unsigned=True), precision="fp32", threads=1)
        self.levels = self._session.levels

    def profile(self, frame: Frame, level: int) -> list[float]:
        """What the detector is told of a frame."""
        symbols = self._session.symbols(self._session.contract.prepare(frame).image, level)
        payload = self._session.codec.encode(symbols, level)
        return list(profiles(symbols[None], [len(payload)])[0])


def photos(folder: Path) -> list[Path]:
    """The lossless photos, in order."""
    return sorted((folder / "photos300" / "images").glob("*.webp"))


def classes(folder: Path, least: int, most: int) -> dict[str, list[Path]]:
    """Caltech-101's classes that have ``least`` photos or more, at most ``most`` of each."""
    found = {}
    for one in sorted((folder / "caltech101").iterdir()):
        files = sorted(one.glob("*.jpg"))
        if len(files) >= least and one.name != "BACKGROUND_Google":
            found[one.name] = files[:most]
    return found


def _open(path: Path) -> Frame:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _rows(coder: Coder, frame: Frame, sorts: list[str], level: int, seed: list[int]) -> list[list[float]]:
    return [
        coder.profile(spoil(frame, sort, np.random.default_rng([*seed, number])), level)
        for number, sort in enumerate(sorts)
    ]


def measure(
    bundle: Path, data: Path, cache: Path, level: int, scenes: int, say: Callable[[str], None]
) -> dict[str, npt.NDArray[np.float64]]:
    """Profiles, computed once and kept in the folder ``cache``.

    Returns:
        ``photos`` ``[photo, sort, number]``, ``crops`` ``[scene, place, sort, number]`` of the first photos, and
        ``class-NAME`` ``[photo, number]`` of Caltech-101's classes with 80 photos or more, clean only.
    """
    coder = Coder(bundle)
    files = photos(data)

    def of_photos() -> list[list[list[float]]]:
        return [_rows(coder, _open(file), SORTS, level, [0, k]) for k, file in enumerate(files)]

    def of_crops() -> list[list[list[list[float]]]]:
        found = []
        for k, file in enumerate(files[:scenes]):
            seen = crops(_open(file), np.random.default_rng([1, k]))
            found.append([_rows(coder, frame, SORTS, level, [1, k, place]) for place, frame in enumerate(seen)])
        return found

    def of_class(members: list[Path]) -> Callable[[], list[list[float]]]:
        return lambda: [coder.profile(_open(file), level) for file in members]

    parts: dict[str, Callable[[], object]] = {"photos": of_photos}
    parts |= {f"class-{name}": of_class(members) for name, members in classes(data, 80, 60).items()}
    parts["crops"] = of_crops
    out = {}
    cache.mkdir(parents=True, exist_ok=True)
    for name, compute in parts.items():
        kept = cache / f"{name}.npy"
        if not kept.exists():
            say(f"computing {kept}")
            np.save(kept, np.array(compute()))
        out[name] = np.load(kept)
    return out
