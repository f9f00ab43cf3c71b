"""Clips to fit video tables to: of the user's videos where there are any, else photographs seen by a synthetic camera."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from narrowcast.compiler.errors import DataError
from narrowcast.compiler.video.camera import Camera, Scene
from narrowcast.head.errors import SourceError
from narrowcast.head.sources import open_source
from narrowcast.transport.contract import InputContract
from narrowcast.transport.errors import FrameError
from narrowcast.transport.frames import SUFFIXES

Clips = npt.NDArray[np.uint8]

CLIP_FRAMES = 6
SKIPPED = "skipped: "  # what sources begin their lines with


class Recorded(NamedTuple):
    """What a folder of videos gave.

    Attributes:
        clips: uint8 ``[n, CLIP_FRAMES, H, W, 3]``.
        skipped: images and videos that cannot be read, or not to the end, each once, with its reason.
    """

    clips: Clips
    skipped: list[str]


def filmed(photos: npt.NDArray[np.uint8], count: int, seed: int, scene: Scene | None = None) -> Clips:
    """Clips uint8 ``[count, CLIP_FRAMES, H, W, 3]`` of photographs uint8 ``[N, H, W, 3]``, at least two of them."""
    random, camera = np.random.default_rng(seed), Camera(seed)
    chosen = random.integers(len(photos), size=count)
    others = (chosen + random.integers(1, len(photos), count)) % len(photos)
    clips = [camera.clip(photos[a], photos[b], CLIP_FRAMES, scene) for a, b in zip(chosen, others, strict=True)]
    return np.stack(clips)


def recorded(folder: Path, contract: InputContract, count: int, seed: int) -> Recorded:
    """At most ``count`` clips out of the videos of a folder, as the contract wants them.

    Args:
        folder: of video files, and of folders whose images, by name, are a video's frames.
        contract: of the recipe; frames are brought to its ``size``.
        count: how many are drawn, every clip as likely as any other.
        seed: of the drawing.

    Raises:
        DataError: no clip could be read.
    """
    random = np.random.default_rng(seed)
    drawn: list[npt.NDArray[np.uint8]] = []
    seen, troubles = 0, list[str]()
    for video in _videos(folder):
        try:
            for clip in _clips(video, contract, troubles):
                seen += 1
                if len(drawn) < count:
                    drawn.append(clip)
                elif (place := int(random.integers(seen))) < count:
                    drawn[place] = clip
        except (FrameError, SourceError) as error:
            troubles.append(str(error))
    if len(drawn) < 2:
        raise _too_few(len(drawn), folder, troubles)
    return Recorded(np.stack(drawn), [line.removeprefix(SKIPPED) for line in dict.fromkeys(troubles)])


def check_recorded(folder: Path, contract: InputContract) -> None:
    """Whether :func:`recorded` will find clips there; looks no further than the second one.

    Raises:
        DataError: it will not.
    """
    found, troubles = 0, list[str]()
    for video in _videos(folder):
        try:
            for _ in _clips(video, contract, troubles):
                found += 1
                if found == 2:
                    return
        except (FrameError, SourceError) as error:
            troubles.append(str(error))
    raise _too_few(found, folder, troubles)


def _too_few(found: int, folder: Path, troubles: Sequence[str]) -> DataError:
    why = f"; {troubles[0].removeprefix(SKIPPED)}" if troubles else ""
    return DataError(f"[data] video: {found} clips of {CLIP_FRAMES} frames in {folder}; two at least{why}")


def _videos(folder: Path) -> Iterator[Path]:
    """Video files, and folders with images in them.

    Raises:
        DataError: no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"[data] video: no folder {folder}")
    for path in sorted([folder, *folder.rglob("*")]):
        if path.is_dir():
            if any(one.suffix.lower() in SUFFIXES for one in path.iterdir()):
                yield path
        elif path.suffix.lower() not in SUFFIXES and not path.name.startswith("."):
            yield path


def _clips(video: Path, contract: InputContract, troubles: list[str]) -> Iterator[npt.NDArray[np.uint8]]:
    """Frames that follow one another, each in one clip; ``[CLIP_FRAMES, *contract.size, 3]``.

    What cannot be read is told to ``troubles``. No clip reaches over it: video tables are fitted to what a frame has in
    common with the one right before it.
    """
    source = open_source(str(video), on_trouble=troubles.append)
    try:
        clip: list[npt.NDArray[np.uint8]] = []
        known = len(troubles)
        for captured in source.frames():
            image = contract.prepare(captured.image).image
            if len(troubles) > known or (clip and image.shape != clip[0].shape):
                clip, known = [], len(troubles)
            clip.append(image)
            if len(clip) == CLIP_FRAMES:
                yield contract.training_crop(np.stack(clip))
                clip = []
    finally:
        source.close()
