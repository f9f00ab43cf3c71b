"""A task's answers: made of a network's outputs, sent, and led back to the source image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from narrowcast.transport.contract import Placement
from narrowcast.transport.errors import TransportError
from narrowcast.transport.tasks.boxes import decode_boxes
from narrowcast.transport.tasks.settings import DetectTask, SegmentTask, Task

Array = npt.NDArray[Any]
MAIN = "main"  # what the tail of a bundle is called that is its only or first one


class SentOutput(NamedTuple):
    """What goes back for a frame; with ``up_to``, the first side of ``shape`` is the most that there may be."""

    name: str
    dtype: str
    shape: list[int]
    up_to: bool = False


class Detections(NamedTuple):
    """Boxes of one frame, by descending score.

    Attributes:
        boxes: float64 ``[K, 4]``: x1, y1, x2, y2 in pixels of the source image, at pixel edges.
        scores: float32 ``[K]``, 0..1.
        labels: int64 ``[K]``: class numbers.
        names: of all classes.
    """

    boxes: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    names: Sequence[str]


@dataclass(frozen=True)
class Segmentation:
    """A map of classes of one frame.

    Attributes:
        mask: class numbers ``[h, w]`` over the network's input, at the network's own resolution.
        names: of all classes.
        placement: where the source image lies in the network's input.
        input_size: its height and width.
    """

    mask: Array
    names: Sequence[str]
    placement: Placement
    input_size: tuple[int, int]

    def to_source(self, outside: int = 0) -> Array:
        """The map over the source image ``[H, W]``, by nearest neighbour; ``outside`` where the input does not show it."""
        return self.placement.mask_to_source(self.mask, self.input_size, outside)


Answer = Detections | Segmentation


def finish(
    task: Task | None, outputs: Mapping[str, Array], size: tuple[int, int], *, on: str = "server"
) -> list[dict[str, Array]]:
    """A batch of a network's outputs, frame by frame, as they go back.

    Args:
        task: with every output named; None, or one that is decoded elsewhere, leaves the outputs as they are.
        outputs: by name, ``[N, ...]``.
        size: height and width of the network's input.
        on: where this is: ``server`` or ``device``.
    """
    count = len(next(iter(outputs.values())))
    frames = [{name: values[row] for name, values in outputs.items()} for row in range(count)]
    if not isinstance(task, DetectTask | SegmentTask) or task.decode_on != on:
        return frames
    return [decode(task, frame, size) for frame in frames]


def decode(task: DetectTask | SegmentTask, outputs: Mapping[str, Array], size: tuple[int, int]) -> dict[str, Array]:
    """One frame's outputs, without the batch, as ``boxes``, ``scores`` and ``labels``, or ``mask``, over the input."""
    if isinstance(task, SegmentTask):
        assert task.output is not None
        return {"mask": outputs[task.output].argmax(0).astype(_mask_dtype(task))}
    boxes, scores, labels = decode_boxes(task, outputs, size)
    return {"boxes": boxes, "scores": scores, "labels": labels.astype(np.int32)}


def answer_of(
    task: Task | None, outputs: Mapping[str, Array], placement: Placement, size: tuple[int, int]
) -> Answer | None:
    """One frame's answer in terms of the source image; None where the task has none beyond its outputs.

    Args:
        task: with every output named.
        outputs: what came back, without the batch, decoded or not.
        placement: where the source image lies in the network's input.
        size: the network's input's height and width.

    Raises:
        TransportError: what came back are no detections, or no map, of these classes.
    """
    if not isinstance(task, DetectTask | SegmentTask):
        return None
    found = dict(outputs) if task.decode_on == "server" else decode(task, outputs, size)
    labels = found["mask"] if isinstance(task, SegmentTask) else found["labels"]
    if labels.size and not 0 <= labels.min() <= labels.max() < len(task.classes):
        raise TransportError(f"an answer has the class {labels.max()}; the bundle has {len(task.classes)}")
    if isinstance(task, SegmentTask):
        return Segmentation(labels, task.classes, placement, size)
    counts = [len(found[name]) for name in ("boxes", "scores", "labels")]
    if len(set(counts)) != 1 or not np.isfinite(found["boxes"]).all() or not np.isfinite(found["scores"]).all():
        raise TransportError(f"an answer has {counts} boxes, scores and labels, or some that are no finite numbers")
    return Detections(placement.boxes_to_source(found["boxes"]), found["scores"], labels.astype(np.int64), task.classes)


def sent_outputs(task: Task | None, outputs: Sequence[Any]) -> list[SentOutput]:
    """What a server sends back for a frame of a tail whose outputs have these names, dtypes and shapes."""
    if isinstance(task, DetectTask) and task.decode_on == "server":
        most = task.max_detections
        return [
            SentOutput("boxes", "float32", [most, 4], up_to=True),
            SentOutput("scores", "float32", [most], up_to=True),
            SentOutput("labels", "int32", [most], up_to=True),
        ]
    if isinstance(task, SegmentTask) and task.decode_on == "server":
        shape = next(list(one.shape) for one in outputs if one.name == task.output)
        return [SentOutput("mask", _mask_dtype(task), shape[1:])]
    return [SentOutput(one.name, one.dtype, list(one.shape)) for one in outputs]


def _mask_dtype(task: SegmentTask) -> str:
    return "uint8" if len(task.classes) <= 256 else "int32"
