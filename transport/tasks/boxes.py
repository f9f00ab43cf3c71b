"""From a detector's dense maps to boxes: score, decode, suppress. NumPy alone, with bounded work whatever the maps hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowcast.transport.tasks.settings import DetectTask

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
# So many (cell, class) pairs, those with the highest scores, are looked at per frame: it bounds the suppression's work.
MAX_CANDIDATES = 2000


def decode_boxes(
    task: DetectTask, outputs: Mapping[str, npt.NDArray[Any]], size: tuple[int, int]
) -> tuple[Floats, Floats, Ints]:
    """One frame's maps as detections, by descending score.

    Args:
        task: with every output named.
        outputs: by name, without the batch.
        size: height and width of the network's input; boxes are clipped to it.

    Returns:
        boxes float32 ``[K, 4]`` (x1, y1, x2, y2 in input pixels, at pixel edges), scores float32 ``[K]``, classes int64
        ``[K]``; ``K`` is at most ``max_detections``. What is not finite, or has no area, is left out.
    """
    boxes, scores, classes = [], [], []
    for k, stride in enumerate(task.strides):
        score = _scores(task, outputs, k)
        label, row, column = np.nonzero((score >= task.score_threshold) & (score < np.inf))  # False for no number
        scores.append(score[label, row, column])
        classes.append(label)
        sides = outputs[task.names("boxes")[k]].astype(np.float32)[:, row, column]
        boxes.append(_boxes(sides * (stride if task.unit == "stride" else 1), row, column, stride, size))
    together, score, label = np.concatenate(boxes), np.concatenate(scores), np.concatenate(classes)
    sound = np.isfinite(together).all(1) & (together[:, 2] > together[:, 0]) & (together[:, 3] > together[:, 1])
    order = np.flatnonzero(sound)
    order = order[np.argsort(-score[order], kind="stable")][:MAX_CANDIDATES]
    kept = order[suppress(together[order], label[order], task.nms_iou, task.max_detections)]
    return together[kept], score[kept], label[kept]


def suppress(boxes: Floats, classes: Ints, iou: float, most: int) -> npt.NDArray[np.intp]:
    """Greedy non-maximum suppression, each class by itself.

    Args:
        boxes: ``[K, 4]`` by descending score.
        classes: ``[K]``.
        iou: a box that overlaps a kept one of its class by more than this is dropped.
        most: stops when so many are kept.

    Returns:
        the rows that stay, in their order.
    """
    left, areas = np.arange(len(boxes)), _areas(boxes)
    kept: list[int] = []
    while len(left) and len(kept) < most:
        best, left = left[0], left[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[left, :2])
        high = np.minimum(boxes[best, 2:], boxes[left, 2:])
        inside = np.clip(high - low, 0, None).prod(1)
        overlap = inside / (areas[best] + areas[left] - inside)
        left = left[~((overlap > iou) & (classes[left] == classes[best]))]
    return np.array(kept, np.intp)


def _areas(boxes: Floats) -> Floats:
    areas: Floats = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


def _scores(task: DetectTask, outputs: Mapping[str, npt.NDArray[Any]], k: int) -> Floats:
    """Of map ``k``, float32 ``[classes, h, w]``."""
    score = _activated(outputs[task.names("scores")[k]], task)
    if not task.names("centerness"):
        return score
    centre = _activated(outputs[task.names("centerness")[k]], task)
    joined: Floats = np.sqrt(np.clip(score * centre, 0, None))
    return joined


def _activated(values: npt.NDArray[Any], task: DetectTask) -> Floats:
    values = values.astype(np.float32)
    if task.activation == "none":
        return values
    activated: Floats = np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * values))  # the sigmoid, without overflow
    return activated


def _boxes(sides: Floats, row: Ints, column: Ints, stride: int, size: tuple[int, int]) -> Floats:
    """Distances ``[4, K]`` in pixels as boxes ``[K, 4]``; a box with a side that is not finite is no number throughout."""
    x, y = (column + 0.5) * stride, (row + 0.5) * stride
    corners = np.stack([x - sides[0], y - sides[1], x + sides[2], y + sides[3]], 1)
    corners[~np.isfinite(corners).all(1)] = np.nan  # clipped, what is infinite would be as long as the image
    clipped: Floats = np.clip(corners, 0, np.array([size[1], size[0]] * 2)).astype(np.float32)
    return clipped
