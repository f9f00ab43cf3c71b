"""Scenes with boxes and masks: several handwritten digits, of many sizes, on crops of real photographs.

For detection and segmentation what :mod:`narrowcast.demo.render` is for classification, from the same sources and with the
same split: no test scene shows a digit or a piece of background that a training scene shows. The same seed gives the same
scenes. They are written as people keep such data: PNG images, boxes as COCO's JSON, masks as PNG files of class numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from narrowcast.demo.render import Frames, Sources, colour_against

SCENE_SIDE = 96
# The digits that there are: class k of the boxes is KINDS[k]; in the masks 0 is the background, and class k is k + 1.
KINDS = (0, 1, 2, 4, 7)
DIGIT_NAMES = [str(digit) for digit in KINDS]
MASK_NAMES = ["background", *DIGIT_NAMES]
MOST_DIGITS = 3
_DIGIT_SIDES = (26, 53)
_CROP_SIDES = (70, 160)
_TRIES = 20
_INK = 0.4  # of full opacity: from here on a pixel belongs to the digit


class Scenes(NamedTuple):
    """Rendered scenes.

    Attributes:
        frames: uint8 ``[N, side, side, 3]`` RGB.
        boxes: per scene float64 ``[K, 4]``: x1, y1, x2, y2 in pixels, at pixel edges, tight around the mask.
        labels: per scene int64 ``[K]``: the digits, by their place in :data:`KINDS`.
        masks: uint8 ``[N, side, side]``: 0 is the background, k + 1 the digit ``KINDS[k]``.
    """

    frames: Frames
    boxes: list[npt.NDArray[np.float64]]
    labels: list[npt.NDArray[np.int64]]
    masks: npt.NDArray[np.uint8]


class SceneRenderer:
    """Draws scenes from one half of the sources.

    Args:
        test: the half that is kept for testing.
        side: of a scene, pixels.
    """

    def __init__(self, *, test: bool, side: int = SCENE_SIDE) -> None:
        self.side = side
        self._sources = Sources(test=test)

    def render(self, count: int, seed: int) -> Scenes:
        """``count`` scenes with 1 to 3 digits each, which do not overlap; the same for the same seed."""
        random = np.random.default_rng(seed)
        frames, boxes, labels, masks = zip(*(self._scene(random) for _ in range(count)), strict=True)
        return Scenes(np.stack(frames), list(boxes), list(labels), np.stack(masks))

    def _scene(
        self, random: np.random.Generator
    ) -> tuple[Frames, npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        frame = self._sources.background(random, self.side, _CROP_SIDES)
        mask = np.zeros((self.side, self.side), np.uint8)
        taken: list[tuple[int, int, int, int]] = []
        boxes, labels = [], []
        for _ in range(int(random.integers(1, MOST_DIGITS + 1))):
            place = self._free_place(random, taken)
            if place is None:
                continue
            taken.append(place)
            top, left, height, width = place
            digit, label = self._sources.digit(random, KINDS)
            alpha = _drawn(digit, height, width)
            window = frame[top : top + height, left : left + width]
            colour = colour_against(window.mean((0, 1)), random)
            window[:] = np.rint(window * (1 - alpha[..., None]) + colour * alpha[..., None])
            ink = alpha >= _INK
            mask[top : top + height, left : left + width][ink] = label + 1
            rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
            boxes.append((left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1))
            labels.append(label)
        return frame, np.array(boxes, np.float64).reshape(-1, 4), np.array(labels, np.int64), mask

    def _free_place(
        self, random: np.random.Generator, taken: list[tuple[int, int, int, int]]
    ) -> tuple[int, int, int, int] | None:
        """Top, left, height and width of a place that no digit has yet; None where the scene is full."""
        for _ in range(_TRIES):
            height = int(random.integers(*_DIGIT_SIDES))
            width = int(height * random.uniform(0.75, 1.0))
            top, left = (int(random.integers(0, self.side - extent + 1)) for extent in (height, width))
            apart = (
                top + height <= other[0]
                or other[0] + other[2] <= top
                or left + width <= other[1]
                or other[1] + other[3] <= left
                for other in taken
            )
            if all(apart):
                return top, left, height, width
        return None


def _drawn(digit: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]:
    """A digit's opacity, float32 ``[height, width]``, 0..1."""
    ink = Pillow.fromarray((digit * 255).astype(np.uint8)).resize((width, height), Pillow.Resampling.BICUBIC)
    opacity: npt.NDArray[np.float32] = np.asarray(ink, np.float32) / np.float32(255)
    return opacity


def save_scenes(scenes: Scenes, folder: Path) -> None:
    """Writes ``images/*.png``, ``masks/*.png`` (class numbers) and ``annotations.json`` (COCO's object detection form)."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for k, (frame, boxes, labels, mask) in enumerate(zip(*scenes, strict=True)):
        name = f"{k:05d}.png"
        Pillow.fromarray(frame).save(folder / "images" / name, compress_level=1)
        Pillow.fromarray(mask).save(folder / "masks" / name, compress_level=1)
        images.append({"id": k, "file_name": name, "height": frame.shape[0], "width": frame.shape[1]})
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), labels.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": k,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(DIGIT_NAMES)]
    table = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(table) + "\n")
