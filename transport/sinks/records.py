"""What leaves: one JSON object per result or event (``docs/results-schema.md``)."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from narrowcast.transport.bundle.manifest import TailSpec
from narrowcast.transport.tasks import MAIN, ClassifyTask, DetectTask, SegmentTask, Task
from narrowcast.transport.tasks.answers import decode

SCHEMA = 1
TOP = 5
Array = npt.NDArray[Any]


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One result or event; every key is in ``docs/results-schema.md``.

    Attributes:
        schema: :data:`SCHEMA`.
        type: ``result`` or ``drift``.
        id: the same however often this is delivered.
        body: further keys, which come to lie beside these.
    """

    schema: int
    type: str
    id: str
    model: str
    body: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """As one flat JSON object."""
        return {"schema": self.schema, "type": self.type, "id": self.id, "model": self.model, **self.body}

    def to_json(self) -> bytes:
        """UTF-8 JSON. Numbers that are none (infinite, not a number) become null."""
        return msgspec.json.encode(self.plain())


def record_id(stream_id: bytes, frame_id: int) -> str:
    """What names a frame's result, wherever it is told and however often."""
    return f"{stream_id.hex()}-{frame_id}"


def summarize(
    tails: Sequence[TailSpec], outputs: Mapping[str, Array], size: tuple[int, int], *, raw: bool = False
) -> dict[str, Any]:
    """What a frame's outputs say, per tail, for JSON.

    Args:
        tails: of the model.
        outputs: what goes back for a frame, by name (``TAIL/NAME`` for further tails), without the batch.
        size: height and width of the network's input, which boxes are given in.
        raw: with the tensors as they are, too.

    Returns:
        by tail: ``classes``, ``boxes``, ``segments`` or ``scores``; only tails that were run.
    """
    found: dict[str, Any] = {}
    for spec in tails:
        prefix = "" if spec.name == MAIN else f"{spec.name}/"
        own = {
            name.removeprefix(prefix): values
            for name, values in outputs.items()
            if (name.startswith(prefix) if prefix else "/" not in name or name in {one.name for one in spec.outputs})
        }
        if not own:
            continue
        told = _told(spec.task, own, size)
        if raw:
            told["tensors"] = {name: _tensor(values) for name, values in own.items()}
        found[spec.name] = told
    return found


def _told(task: Task | None, outputs: Mapping[str, Array], size: tuple[int, int]) -> dict[str, Any]:
    if isinstance(task, DetectTask | SegmentTask) and task.decode_on == "device":
        outputs = decode(task, outputs, size)
    if isinstance(task, DetectTask):
        return {"boxes": _boxes(task, outputs), "input_size": list(size)}
    if isinstance(task, SegmentTask):
        return {"segments": _segments(task, outputs["mask"])}
    names = task.classes if isinstance(task, ClassifyTask) else []
    vectors = {name: values for name, values in outputs.items() if values.ndim == 1 and values.size > 1}
    if len(vectors) == 1:
        return {"classes": _top(next(iter(vectors.values())), names)}
    if vectors:
        return {"scores": {name: _top(values, []) for name, values in vectors.items()}}
    return {"shapes": {name: list(values.shape) for name, values in outputs.items()}}


def _top(scores: Array, names: Sequence[str]) -> list[dict[str, Any]]:
    values = np.nan_to_num(scores.astype(np.float64), nan=-np.inf)
    best = np.argsort(-values, kind="stable")[:TOP]
    return [{"class": int(k), **_name(names, int(k)), "score": _number(scores[k])} for k in best]


def _boxes(task: DetectTask, outputs: Mapping[str, Array]) -> list[dict[str, Any]]:
    return [
        {
            "class": int(label),
            **_name(task.classes, int(label)),
            "score": _number(score),
            "box": [round(float(side), 2) for side in box],
        }
        for box, score, label in zip(outputs["boxes"], outputs["scores"], outputs["labels"], strict=True)
    ]


def _segments(task: SegmentTask, mask: Array) -> list[dict[str, Any]]:
    labels, counts = np.unique(mask, return_counts=True)
    return [
        {"class": int(label), **_name(task.classes, int(label)), "share": round(float(count) / mask.size, 4)}
        for label, count in zip(labels, counts, strict=True)
    ]


def _name(names: Sequence[str], label: int) -> dict[str, str]:
    return {"name": names[label]} if 0 <= label < len(names) else {}


def _number(value: Any) -> float | None:
    number = float(value)
    return round(number, 6) if np.isfinite(number) else None


def _tensor(values: Array) -> dict[str, Any]:
    return {
        "dtype": values.dtype.name,
        "shape": list(values.shape),
        "data": base64.b64encode(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()).decode(),
    }
