"""The demo's frames: real handwritten digits pasted on crops of real photographs.

Both come with scikit-learn: ``load_digits`` (UCI Optical Recognition of Handwritten Digits, 8x8, 1,797 digits) and
``load_sample_images`` (two photographs, 640x427). Digits and photograph pixels are split, so that no test frame shows a
digit or a piece of background that was trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

SIDE = 96
CLASSES = 10
# A fifth of the digits, drawn once, and the right quarter of the photographs are kept for testing.
_TRAIN_DIGITS = 1437
_SPLIT_SEED = 8
_TRAIN_WIDTH = 480
_DIGIT_SIDES = (28, 49)
_CROP_SIDES = (70, 160)
_LEAST_CONTRAST = 90

Frames = npt.NDArray[np.uint8]


class Rendered(NamedTuple):
    """Rendered frames.

    Attributes:
        frames: uint8 ``[N, 96, 96, 3]`` RGB.
        labels: the digits, int64 ``[N]``.
        centres: y and x of each digit's middle, int64 ``[N, 2]``.
    """

    frames: Frames
    labels: npt.NDArray[np.int64]
    centres: npt.NDArray[np.int64]


class Sources:
    """One half of the digits and of the photographs.

    Args:
        test: the half that is kept for testing.

    Attributes:
        digits: float32 ``[N, 8, 8]``, 0 (paper) to 1 (ink).
        labels: which digits they are, int64 ``[N]``.
    """

    def __init__(self, *, test: bool) -> None:
        from sklearn.datasets import load_digits, load_sample_images

        digits = load_digits()
        order = np.random.default_rng(_SPLIT_SEED).permutation(len(digits.images))
        half = order[_TRAIN_DIGITS:] if test else order[:_TRAIN_DIGITS]
        self.digits = (digits.images[half] / 16.0).astype(np.float32)
        self.labels = digits.target[half].astype(np.int64)
        columns = slice(_TRAIN_WIDTH, None) if test else slice(None, _TRAIN_WIDTH)
        self._photos = [np.ascontiguousarray(photo[:, columns]) for photo in load_sample_images().images]

    def digit(self, random: np.random.Generator, kinds: tuple[int, ...]) -> tuple[npt.NDArray[np.float32], int]:
        """One digit of some kinds, and the place of its kind among them; every kind is as likely."""
        kind = int(random.integers(len(kinds)))
        return self.digits[random.choice(np.flatnonzero(self.labels == kinds[kind]))], kind

    def background(self, random: np.random.Generator, side: int, crop_sides: tuple[int, int]) -> Frames:
        """A square crop of a photograph, perhaps mirrored, as uint8 ``[side, side, 3]``."""
        photo = self._photos[random.integers(len(self._photos))]
        crop_side = int(random.integers(crop_sides[0], min(crop_sides[1], photo.shape[1])))
        top, left = (
            random.integers(0, photo.shape[0] - crop_side + 1),
            random.integers(0, photo.shape[1] - crop_side + 1),
        )
        crop = Pillow.fromarray(photo[top : top + crop_side, left : left + crop_side])
        crop = crop if random.random() < 0.5 else crop.transpose(Pillow.Transpose.FLIP_LEFT_RIGHT)
        return np.array(crop.resize((side, side), Pillow.Resampling.BICUBIC))


class Renderer:
    """Draws frames from one half of the sources.

    Args:
        test: the half that is kept for testing.
    """

    def __init__(self, *, test: bool) -> None:
        self._sources = Sources(test=test)

    def render(self, count: int, seed: int) -> Rendered:
        """``count`` frames; the same for the same seed."""
        random = np.random.default_rng(seed)
        digits, labels = self._sources.digits, self._sources.labels
        chosen = random.integers(len(digits), size=count)
        frames, centres = zip(*(self._frame(digits[k], random) for k in chosen), strict=True)
        return Rendered(np.stack(frames), labels[chosen], np.array(centres))

    def _frame(self, digit: npt.NDArray[np.float32], random: np.random.Generator) -> tuple[Frames, tuple[int, int]]:
        frame = self._sources.background(random, SIDE, _CROP_SIDES)
        height = int(random.integers(*_DIGIT_SIDES))
        width = int(height * random.uniform(0.75, 1.0))
        top, left = int(random.integers(0, SIDE - height + 1)), int(random.integers(0, SIDE - width + 1))
        ink = Pillow.fromarray((digit * 255).astype(np.uint8)).resize((width, height), Pillow.Resampling.BICUBIC)
        alpha = np.asarray(ink, np.float32)[..., None] / 255
        place = frame[top : top + height, left : left + width]
        colour = colour_against(place.mean((0, 1)), random)
        place[:] = np.rint(place * (1 - alpha) + colour * alpha)
        return frame, (top + height // 2, left + width // 2)


def colour_against(mean: npt.NDArray[np.float64], random: np.random.Generator) -> npt.NDArray[np.float64]:
    """A random colour that stands out from ``mean``."""
    while True:
        colour = random.integers(0, 256, 3).astype(np.float64)
        if abs((colour - mean).mean()) > _LEAST_CONTRAST:
            return colour


def save(rendered: Rendered, folder: Path) -> None:
    """Writes frames as PNG files with a ``labels.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file,label"]
    for k, (frame, label) in enumerate(zip(rendered.frames, rendered.labels, strict=True)):
        name = f"{k:05d}.png"
        Pillow.fromarray(frame).save(folder / name, compress_level=1)
        lines.append(f"{name},{label}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
