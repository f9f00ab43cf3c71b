"""The frames of a run: the same ones, in the same order, for every way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns

from narrowcast.devices.errors import ProfileError
from narrowcast.transport.contract import Image, InputContract
from narrowcast.transport.errors import FrameError
from narrowcast.transport.frames import SUFFIXES, read_image
from narrowcast.transport.selfcheck import reference_frames

MAX_BYTES = 512 << 20
DRAWN = 16


@dataclass
class FrameSet:
    """Frames in memory, or files that are read each time.

    Attributes:
        source: where they are from, in words.
        files: of each frame, where they are read each time; else empty.
        images: of each frame, where they are in memory.
        warnings: what weakens figures from these frames.
    """

    source: str
    files: Sequence[Path] = ()
    images: Sequence[Image] = ()
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images) or len(self.files)

    def get(self, number: int) -> tuple[Image, float | None]:
        """The frame uint8 ``[H, W, 3]`` whose turn it is, and what reading it took, in milliseconds; None in memory."""
        row = number % len(self)
        if self.images:
            return self.images[row], None
        start = perf_counter_ns()
        image = read_image(self.files[row])
        return image, (perf_counter_ns() - start) / 1e6


def load_frames(data: Path | None, contract: InputContract, *, limit: int, read_each: bool = False) -> FrameSet:
    """Frames of an image file or a folder of them (its folders too); drawn ones where there is none.

    Args:
        data: the file or folder.
        contract: the network's; drawn frames are of its size.
        limit: at most so many, evenly from all; fewer where they do not fit into memory (512 MB).
        read_each: files are read and decoded again for every frame, as a part of its way.

    Raises:
        ProfileError: there is no image.
    """
    if data is None:
        frames = list(reference_frames(contract.size, DRAWN))
        why = "frames were drawn, not photographed (--data): bytes, and agreement between ways, are not those of real ones"
        return FrameSet(f"{DRAWN} drawn frames", images=frames, warnings=[why])
    files = _find(data)
    if not files:
        raise ProfileError(f"{data}: no images; --data takes an image or a folder of {', '.join(sorted(SUFFIXES))}")
    chosen = [files[k * len(files) // limit] for k in range(limit)] if len(files) > limit else files
    warnings: list[str] = []
    images: list[Image] = []
    good: list[Path] = []
    held = 0
    for path in chosen:
        try:
            image = read_image(path)
        except FrameError as error:
            warnings.append(f"left out: {error}")
            continue
        held += image.nbytes
        if held > MAX_BYTES and images and not read_each:
            warnings.append(f"only the first {len(images)} of {len(chosen)} frames fit into {MAX_BYTES >> 20} MB")
            break
        good.append(path)
        if not read_each:
            images.append(image)
    if not good:
        raise ProfileError(f"{data}: none of {len(chosen)} images can be read; the first problem: {warnings[0]}")
    return FrameSet(str(data), good if read_each else (), images, warnings)


def _find(data: Path) -> list[Path]:
    if data.is_file():
        return [data]
    if not data.is_dir():
        raise ProfileError(f"--data {data}: no such file or folder")
    return sorted(path for path in data.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
