"""What "right" means for a task: class scores, boxes or maps of classes against labels, or against the teacher's answers."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from narrowcast.compiler.samples import Hits, Matches, Overlaps, Samples, concatenated
from narrowcast.transport.errors import MissingDependencyError
from narrowcast.transport.tasks import DetectTask, SegmentTask, Task
from narrowcast.transport.tasks.answers import decode

Outputs = Mapping[str, npt.NDArray[Any]]
IOU = 0.5
IGNORE = -1  # of a truth's map: pixels that nobody is asked about


class Boxes(NamedTuple):
    """Boxes of one frame: ``boxes`` ``[K, 4]`` in input pixels, ``labels`` ``[K]``, ``scores`` ``[K]``, ``crowd`` ``[K]``.

    The boxes of a truth have no scores; those that stand for many (COCO's ``iscrowd``) are neither asked for nor held
    against a detection.
    """

    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64] | None = None
    crowd: npt.NDArray[np.bool_] | None = None


class Judge(Protocol):
    """Compares answers with a truth, chunk by chunk.

    Attributes:
        metric: what its figure is called.
    """

    metric: str

    def at(self, size: tuple[int, int]) -> Judge:
        """The same for frames of another size."""

    def answers(self, outputs: Outputs) -> list[Any] | None:
        """Each frame's answer; None where the outputs hold none."""

    def truth(self, outputs: Outputs) -> list[Any] | None:
        """The teacher's outputs as a truth."""

    def compare(self, answers: Sequence[Any], truth: Sequence[Any]) -> Any:
        """What is kept of some frames."""

    def join(self, parts: Sequence[Any]) -> Samples | None:
        """All that was kept; None where nothing was."""


def judge_for(task: Task | None, size: tuple[int, int]) -> Judge:
    """The judge of a bundle's task.

    Args:
        task: the manifest's; None for class scores, where there are any.
        size: height and width of the network's input.
    """
    if isinstance(task, DetectTask):
        return DetectionJudge(task, size)
    return SegmentationJudge(task, size) if isinstance(task, SegmentTask) else ClassJudge()


def top_class(outputs: Outputs) -> npt.NDArray[np.int64] | None:
    """The top class per image int64 ``[N]``: of the first output that is class scores ``[N, K]``; None without any."""
    for values in outputs.values():
        if values.ndim == 2 and values.shape[1] > 1 and values.dtype.kind == "f":
            top: npt.NDArray[np.int64] = values.argmax(1)
            return top
    return None


class ClassJudge:
    """Top-1."""

    metric = "top-1"

    def at(self, size: tuple[int, int]) -> Judge:
        """See :class:`Judge`: size is nothing to it."""
        return self

    def answers(self, outputs: Outputs) -> list[Any] | None:
        """See :class:`Judge`."""
        top = top_class(outputs)
        return None if top is None else list(top)

    truth = answers

    def compare(self, answers: Sequence[Any], truth: Sequence[Any]) -> npt.NDArray[np.bool_]:
        """See :class:`Judge`."""
        right: npt.NDArray[np.bool_] = np.array(answers) == np.array(truth)
        return right

    def join(self, parts: Sequence[Any]) -> Samples | None:
        """See :class:`Judge`."""
        return Hits(np.concatenate(parts)) if parts else None


class SegmentationJudge:
    """Mean IoU over the network's input, at the input's resolution."""

    metric = "mIoU"

    def __init__(self, task: SegmentTask, size: tuple[int, int]) -> None:
        self._task = task
        self._size = size

    def at(self, size: tuple[int, int]) -> Judge:
        """See :class:`Judge`."""
        return self if size == self._size else SegmentationJudge(self._task, size)

    def answers(self, outputs: Outputs) -> list[Any] | None:
        """See :class:`Judge`."""
        count = len(next(iter(outputs.values())))
        masks = (decode(self._task, {n: v[k] for n, v in outputs.items()}, self._size)["mask"] for k in range(count))
        return [enlarged(mask, self._size) for mask in masks]

    truth = answers

    def compare(self, answers: Sequence[Any], truth: Sequence[Any]) -> Overlaps:
        """See :class:`Judge`."""
        counts = [_overlaps(got, wanted, len(self._task.classes)) for got, wanted in zip(answers, truth, strict=True)]
        return Overlaps(np.stack([c[0] for c in counts]), np.stack([c[1] for c in counts]))

    def join(self, parts: Sequence[Any]) -> Samples | None:
        """See :class:`Judge`."""
        return concatenated(parts) if parts else None


def enlarged(mask: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """A map at any resolution as one of ``size``, by nearest neighbour."""
    if mask.shape == size:
        return mask
    rows, columns = (np.arange(side) * have // side for side, have in zip(size, mask.shape, strict=True))
    larger: npt.NDArray[Any] = mask[rows[:, None], columns[None, :]]
    return larger


def _overlaps(
    got: npt.NDArray[Any], wanted: npt.NDArray[Any], classes: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    asked = wanted != IGNORE
    got, wanted = got[asked].astype(np.int64), wanted[asked].astype(np.int64)
    inside = np.bincount(wanted[got == wanted], minlength=classes)
    either = np.bincount(got, minlength=classes) + np.bincount(wanted, minlength=classes)
    return inside, either - inside


class DetectionJudge:
    """COCO's mean average precision at IoU 0.5, by pycocotools."""

    metric = "mAP50"

    def __init__(self, task: DetectTask, size: tuple[int, int]) -> None:
        coco_tools()
        self._task = task
        self._size = size

    def at(self, size: tuple[int, int]) -> Judge:
        """See :class:`Judge`."""
        return self if size == self._size else DetectionJudge(self._task, size)

    def answers(self, outputs: Outputs) -> list[Any] | None:
        """See :class:`Judge`."""
        frames = []
        for k in range(len(next(iter(outputs.values())))):
            found = decode(self._task, {name: values[k] for name, values in outputs.items()}, self._size)
            boxes, labels, scores = (found[name].astype(np.float64) for name in ("boxes", "labels", "scores"))
            frames.append(Boxes(boxes, labels.astype(np.int64), scores))
        return frames

    def truth(self, outputs: Outputs) -> list[Any] | None:
        """See :class:`Judge`: the detections that the teacher is sure of."""
        found = self.answers(outputs) or []
        sure = [(frame, np.asarray(frame.scores) >= self._task.agreement_score) for frame in found]
        return [Boxes(frame.boxes[rows], frame.labels[rows]) for frame, rows in sure]

    def compare(self, answers: Sequence[Any], truth: Sequence[Any]) -> list[tuple[Boxes, Boxes]]:
        """See :class:`Judge`."""
        return list(zip(answers, truth, strict=True))

    def join(self, parts: Sequence[Any]) -> Samples | None:
        """See :class:`Judge`."""
        frames = [frame for part in parts for frame in part]
        return match(frames, len(self._task.classes), self._task.max_detections) if frames else None


def match(frames: Sequence[tuple[Boxes, Boxes]], classes: int, most: int) -> Matches:
    """Matches detections with the truth, frame by frame.

    Args:
        frames: found and wanted boxes.
        classes: how many there are.
        most: detections per frame and class, those with the highest scores.
    """
    run = _coco_run(frames, classes, most)
    columns: dict[str, list[Any]] = {name: [] for name in ("image", "label", "score", "hit")}
    truths = np.zeros((len(frames), classes), np.int64)
    for entry in run.evalImgs:
        if entry is None:
            continue
        image, label = entry["image_id"] - 1, entry["category_id"] - 1
        truths[image, label] = int((~np.asarray(entry["gtIgnore"], bool)).sum())
        counted = ~np.asarray(entry["dtIgnore"][0], bool)
        columns["image"].append(np.full(int(counted.sum()), image))
        columns["label"].append(np.full(int(counted.sum()), label))
        columns["score"].append(np.asarray(entry["dtScores"], np.float64)[counted])
        columns["hit"].append(np.asarray(entry["dtMatches"][0])[counted] > 0)
    image, label, score, hit = (np.concatenate([*found, []]) for found in columns.values())
    order = np.argsort(image, kind="stable")
    precision = run.eval["precision"]
    measured = precision[precision > -1]
    return Matches(
        image[order].astype(np.int64), label[order].astype(np.int64), score[order], hit[order].astype(bool), truths,
        float(measured.mean()) if measured.size else None,
    )  # fmt: skip


def _coco_run(frames: Sequence[tuple[Boxes, Boxes]], classes: int, most: int) -> Any:
    """Pycocotools' evaluation at IoU 0.5; its numbers count from 1."""
    coco_class, eval_class = coco_tools()
    truth, found = coco_class(), coco_class()
    images = [{"id": k + 1} for k in range(len(frames))]
    categories = [{"id": k + 1} for k in range(classes)]
    truth.dataset = {"images": images, "categories": categories, "annotations": _rows([t for _, t in frames])}
    found.dataset = {"images": images, "categories": categories, "annotations": _rows([f for f, _ in frames])}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth.createIndex()
        found.createIndex()
        run = eval_class(truth, found, "bbox")
        run.params.iouThrs = np.array([IOU])
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.params.maxDets = [most]
        run.evaluate()
        run.accumulate()
    return run


def _rows(frames: Sequence[Boxes]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for image, frame in enumerate(frames, 1):
        sides = frame.boxes[:, 2:] - frame.boxes[:, :2]
        for k, (corner, side) in enumerate(zip(frame.boxes[:, :2].tolist(), sides.tolist(), strict=True)):
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": image,
                    "category_id": int(frame.labels[k]) + 1,
                    "bbox": [*corner, *side],
                    "area": side[0] * side[1],
                    "iscrowd": int(frame.crowd[k]) if frame.crowd is not None else 0,
                    "score": float(frame.scores[k]) if frame.scores is not None else 1.0,
                }
            )
    return rows


def coco_tools() -> tuple[Any, Any]:
    """Pycocotools' two classes.

    Raises:
        MissingDependencyError: it is not installed, or is broken.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except Exception as error:  # a wheel of another NumPy raises what it likes
        raise MissingDependencyError(
            "measuring detections", "pycocotools", "pip install 'narrowcast[metrics]'", error
        ) from error
    return COCO, COCOeval
