"""Whether two ways gave the same answer for a frame, by what the task's outputs are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from narrowcast.devices.profile.figures import Agreement
from narrowcast.transport.bundle.manifest import Manifest
from narrowcast.transport.tasks import DetectTask, SegmentTask
from narrowcast.transport.tasks.answers import decode

Array = npt.NDArray[Any]
Answers = Mapping[int, Mapping[str, Array]]

LEAST_IOU = 0.5
NOT_COMPARED = "the uncut network did not run on the board: there is nothing to compare with"


def agreement(manifest: Manifest, answers: Answers, reference: Answers | None) -> Agreement:
    """How much of ``reference`` a way's answers share, over the frames that both have.

    Args:
        manifest: says what the outputs are.
        answers: outputs without the batch, by frame and name.
        reference: those of the uncut network on the board; None where that did not run.
    """
    metric = metric_of(manifest)
    if reference is None:
        return Agreement(metric=metric, share=None, frames=0, why_not=NOT_COMPARED)
    common = sorted(answers.keys() & reference.keys())
    if not common:
        return Agreement(metric=metric, share=None, frames=0, why_not="no frame was answered by both")
    shares = [_share(manifest, metric, answers[frame], reference[frame]) for frame in common]
    return Agreement(metric=metric, share=float(np.mean(shares)), frames=len(common))


def metric_of(manifest: Manifest) -> Literal["top-1", "pixels", "boxes", "outputs"]:
    """What answers are compared by."""
    if isinstance(manifest.task, DetectTask):
        return "boxes"
    if isinstance(manifest.task, SegmentTask):
        return "pixels"
    vector = len(manifest.outputs) == 1 and len(manifest.outputs[0].shape) == 1 and manifest.outputs[0].shape[0] > 1
    return "top-1" if vector and manifest.outputs[0].dtype.startswith("float") else "outputs"


def _share(manifest: Manifest, metric: str, mine: Mapping[str, Array], wanted: Mapping[str, Array]) -> float:
    task = manifest.task
    if isinstance(task, DetectTask | SegmentTask) and task.decode_on == "device":
        mine, wanted = (decode(task, one, manifest.input.size) for one in (mine, wanted))
    if metric == "top-1":
        (name,) = wanted
        return float(mine[name].argmax() == wanted[name].argmax())
    if metric == "pixels":
        return float(np.mean(mine["mask"] == wanted["mask"]))
    if metric == "boxes":
        return _boxes(mine, wanted)
    return float(np.mean([_likeness(mine[name], values) for name, values in wanted.items()]))


def _likeness(mine: Array, wanted: Array) -> float:
    """1 less the squared error by the variance, at least 0."""
    right, left = wanted.astype(np.float64), mine.astype(np.float64)
    if left.shape != right.shape:
        return 0.0
    spread = float(np.square(right - right.mean()).sum())
    error = float(np.square(left - right).sum())
    if spread == 0:
        return float(error == 0)
    return max(0.0, 1 - error / spread)


def _boxes(mine: Mapping[str, Array], wanted: Mapping[str, Array]) -> float:
    """F1 of boxes: pairs of one class, each box in one pair, best overlaps first, IoU of 0.5 or more."""
    counts = len(mine["boxes"]), len(wanted["boxes"])
    if not sum(counts):
        return 1.0
    if not all(counts):
        return 0.0
    overlaps = _iou(mine["boxes"].astype(np.float64), wanted["boxes"].astype(np.float64))
    overlaps[mine["labels"][:, None] != wanted["labels"][None, :]] = 0
    pairs = 0
    while overlaps.size and overlaps.max() >= LEAST_IOU:
        row, column = np.unravel_index(int(overlaps.argmax()), overlaps.shape)
        overlaps[row, :] = overlaps[:, column] = 0
        pairs += 1
    return 2 * pairs / sum(counts)


def _iou(first: Array, second: Array) -> Array:
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    inside = np.clip(high - low, 0, None).prod(2)
    areas = [(one[:, 2:] - one[:, :2]).clip(0).prod(1) for one in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - inside
    return np.asarray(np.divide(inside, union, out=np.zeros_like(inside), where=union > 0))
