"""The recipe's ``[task]``: what a network's outputs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Union

import msgspec

from narrowcast.transport.errors import ConfigError
from narrowcast.transport.structs import Settings, nearest

Where = Literal["server", "device"]
MAX_CLASSES = 65_536
MAX_DETECTIONS = 1000
Part = Annotated[float, msgspec.Meta(ge=0, le=1)]
Names = Annotated[list[str], msgspec.Meta(max_length=MAX_CLASSES)]
Stride = Annotated[int, msgspec.Meta(ge=1, le=1024)]


class ClassifyTask(Settings, frozen=True, tag_field="kind", tag="classify"):
    """``kind = "classify"``: one output ``[K]`` of class scores. Outputs go back as they are.

    Attributes:
        classes: names, in the order of the scores; may be left out.
    """

    classes: Names = []


class DetectTask(Settings, frozen=True, tag_field="kind", tag="detect"):
    """``kind = "detect"``: dense maps, one of each sort per stride, as FCOS and its kin give them.

    The cell in row *i*, column *j* of the map at stride *s* speaks for the point ``((j + 0.5) s, (i + 0.5) s)`` of the
    network's input.

    Attributes:
        classes: names, in the order of the scores.
        strides: input pixels per cell, one per map, in the order of the outputs.
        scores: the outputs ``[K, h, w]`` with a score per class; by default ``scores_0``, ``scores_1``, ... (``scores``
            where there is one stride). ``boxes`` and ``centerness`` are named in the same way.
        boxes: the outputs ``[4, h, w]``: distances from the point to the box's left, upper, right and lower side.
        centerness: the outputs ``[1, h, w]`` whose geometric mean with the class score is the detection's; none with ``[]``
            (the default is what the outputs have).
        activation: what makes scores and centerness parts of one: ``sigmoid``, or ``none`` where the network did it.
        unit: of the distances.
        score_threshold: detections below it are dropped.
        nms_iou: of two boxes of a class that overlap by more than this, the one with the lower score is dropped.
        max_detections: at most so many per frame, those with the highest scores.
        agreement_score: the teacher's detections from this score on stand for the truth where there are no labels.
        decode_on: where boxes are chosen. ``server`` sends back boxes, scores and labels; ``device`` sends back the maps.
    """

    classes: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_CLASSES)]
    strides: Annotated[list[Stride], msgspec.Meta(min_length=1, max_length=8)]
    scores: list[str] | None = None
    boxes: list[str] | None = None
    centerness: list[str] | None = None
    activation: Literal["sigmoid", "none"] = "sigmoid"
    unit: Literal["stride", "pixel"] = "stride"
    score_threshold: Part = 0.05
    nms_iou: Part = 0.6
    max_detections: Annotated[int, msgspec.Meta(ge=1, le=MAX_DETECTIONS)] = 100
    agreement_score: Part = 0.5
    decode_on: Where = "server"

    def __post_init__(self) -> None:
        for sort in ("scores", "boxes", "centerness"):
            given = getattr(self, sort)
            if given is not None and len(given) != len(self.strides) and not (sort == "centerness" and not given):
                raise ValueError(f"{sort} names {len(given)} outputs; there are {len(self.strides)} strides")

    def names(self, sort: Literal["scores", "boxes", "centerness"]) -> list[str]:
        """The outputs of one sort, in the order of the strides."""
        given: list[str] | None = getattr(self, sort)
        if given is not None:
            return given
        return [sort] if len(self.strides) == 1 else [f"{sort}_{k}" for k in range(len(self.strides))]


class SegmentTask(Settings, frozen=True, tag_field="kind", tag="segment"):
    """``kind = "segment"``: one output ``[K, h, w]`` with a score per class and cell; the highest one is the cell's class.

    Attributes:
        classes: names, in the order of the scores.
        output: which output it is; may be left out where there is only one.
        decode_on: where classes are chosen. ``server`` sends back a map of class numbers, ``device`` the scores.
    """

    classes: Annotated[list[str], msgspec.Meta(min_length=2, max_length=MAX_CLASSES)]
    output: str | None = None
    decode_on: Where = "server"


Task = Union[ClassifyTask, DetectTask, SegmentTask]  # noqa: UP007  (msgspec reads it at run time, on Python 3.10 too)


def check_outputs(task: Task, shapes: Mapping[str, Sequence[int]], size: tuple[int, int], where: str) -> Task:
    """Checks that a network's outputs are what its task says; fills in what follows from them.

    Args:
        task: the recipe's or the manifest's.
        shapes: of the outputs, per frame, by name.
        size: height and width of the network's input.
        where: what to call the task in errors.

    Returns:
        the task with every output named.

    Raises:
        ConfigError: an output is missing or of another shape.
    """
    if isinstance(task, ClassifyTask):
        found = [shape[0] for shape in shapes.values() if len(shape) == 1 and shape[0] > 1]
        if not found:
            raise ConfigError(f"{where}: no output [K] of class scores; the outputs are {_listed(shapes)}")
        if task.classes and len(task.classes) != found[0]:
            raise ConfigError(f"{where}: {len(task.classes)} classes; the network gives {found[0]} scores")
        return task
    if isinstance(task, SegmentTask):
        return _checked_segment(task, shapes, where)
    return _checked_detect(task, shapes, size, where)


def _checked_segment(task: SegmentTask, shapes: Mapping[str, Sequence[int]], where: str) -> SegmentTask:
    maps = [name for name, shape in shapes.items() if len(shape) == 3]
    if task.output is None and len(maps) != 1:
        raise ConfigError(f"{where}: name the output with the classes' scores; the outputs are {_listed(shapes)}")
    name = task.output or maps[0]
    _expect(name, [len(task.classes), None, None], shapes, where)
    return msgspec.structs.replace(task, output=name)


def _checked_detect(
    task: DetectTask, shapes: Mapping[str, Sequence[int]], size: tuple[int, int], where: str
) -> DetectTask:
    if task.centerness is None and not any(name in shapes for name in task.names("centerness")):
        task = msgspec.structs.replace(task, centerness=[])
    for k, stride in enumerate(task.strides):
        grid = [-(-side // stride) for side in size]
        _expect(task.names("scores")[k], [len(task.classes), *grid], shapes, where)
        _expect(task.names("boxes")[k], [4, *grid], shapes, where)
        if task.names("centerness"):
            _expect(task.names("centerness")[k], [1, *grid], shapes, where)
    sorts: tuple[Literal["scores", "boxes", "centerness"], ...] = ("scores", "boxes", "centerness")
    return msgspec.structs.replace(task, **{sort: task.names(sort) for sort in sorts})


def _expect(name: str, wanted: list[int | None], shapes: Mapping[str, Sequence[int]], where: str) -> None:
    if name not in shapes:
        raise ConfigError(f"{where}: no output {name!r}{nearest(name, list(shapes))}")
    seen = list(shapes[name])
    if len(seen) != len(wanted) or any(w is not None and s != w for s, w in zip(seen, wanted, strict=True)):
        text = ", ".join("any" if side is None else str(side) for side in wanted)
        raise ConfigError(f"{where}: the output {name!r} is {seen}; [{text}] is wanted")


def _listed(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
