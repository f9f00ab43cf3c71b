"""What a board tells of a frame: the records of ``docs/results-schema.md``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import grpc
import numpy as np

from narrowcast.head.daemon.model import Model
from narrowcast.head.replay import Replayed
from narrowcast.head.results import KINDS, Result
from narrowcast.transport.packet import Kind
from narrowcast.transport.sinks import Record, summarize
from narrowcast.transport.sinks.records import SCHEMA, record_id
from narrowcast.transport.tasks import MAIN, Answer, Detections

CODES = {code.name: code.value[0] for code in grpc.StatusCode}


class Telling:
    """A record that is made when somebody wants it, once.

    Args:
        make: makes it.
        weight: bytes of memory that it holds until then.
    """

    def __init__(self, make: Callable[[], Record], weight: int) -> None:
        self._make = make
        self.weight = weight

    @cached_property
    def record(self) -> Record:
        """The record."""
        return self._make()


class Teller:
    """Makes records of one source's frames and one model.

    Args:
        source: its name.
        model: that they go through.
    """

    def __init__(self, source: str, model: Model) -> None:
        self._source, self._manifest, self._labels = source, model.manifest, model.labels

    def result(
        self, result: Result, stream_id: bytes, capture_us: int, name: str, payload: Kind = Kind.SYMBOLS
    ) -> Telling:
        """Of a frame that ended; ``name`` is the frame's, for people, and ``payload`` what was made of it to be sent."""

        def make() -> Record:
            body: dict[str, Any] = {
                **self._place(stream_id, result.frame_id, capture_us, result.level),
                "frame": name, "packet_bytes": result.packet_bytes,
                "latency_ms": round(result.latency_ms, 3),
                "times_ms": {stage: round(value, 3) for stage, value in result.times.stages().items()},
            }  # fmt: skip
            if result.spooled:
                return self._record(f"spooled-{record_id(stream_id, result.frame_id)}", "spooled", body)
            if result.error is not None:
                body |= {"code": CODES.get(result.status, 2) or 2, "message": result.error}
                body |= {"dropped": result.dropped} if result.dropped else {}
            else:
                answers = self._answers(result.outputs, result.answers, result.placement.input)
                for answer in answers.values():
                    if "boxes" in answer:
                        answer["source_size"] = list(result.placement.source)
                body |= {"from": result.source, "code": 0, "answers": answers}
                if result.source == "server":
                    body["kind"] = _kind(result, payload)
                if result.reference is not None:
                    body["reference"] = result.reference
            return self._record(record_id(stream_id, result.frame_id), "result", body)

        return Telling(make, sum(values.nbytes for values in result.outputs.values()))

    def failure(self, stream_id: bytes, frame_id: int, capture_us: int, name: str, error: Exception) -> Telling:
        """Of a frame that was handed over when the link had failed, or failed under way."""
        body = self._place(stream_id, frame_id, capture_us, 0)
        body |= {"frame": name, "code": CODES["UNAVAILABLE"], "message": str(error)}
        return Telling(lambda: self._record(record_id(stream_id, frame_id), "result", body), 0)

    def replayed(self, replayed: Replayed) -> Telling:
        """Of a frame that was spooled, by this process or one before."""

        def make() -> Record:
            body = self._place(replayed.stream_id, replayed.frame_id, replayed.capture_us, replayed.level)
            body["from"] = "spool"
            if replayed.error is not None:
                body |= {"code": CODES.get(replayed.status, 2) or 2, "message": replayed.error}
            else:
                answers = self._answers(replayed.outputs, replayed.answers, self._manifest.input.size)
                body |= {"code": 0, "answers": answers}
            return self._record(record_id(replayed.stream_id, replayed.frame_id), "result", body)

        return Telling(make, sum(values.nbytes for values in replayed.outputs.values()))

    def _record(self, name: str, kind: str, body: dict[str, Any]) -> Record:
        return Record(SCHEMA, kind, name, self._manifest.name, body)

    def _place(self, stream_id: bytes, frame_id: int, capture_us: int, level: int) -> dict[str, Any]:
        return {
            "source": self._source, "release": self._manifest.release, "stream_id": stream_id.hex(), "frame_id": frame_id,
            "capture_us": capture_us, "level": level,
        }  # fmt: skip

    def _answers(
        self, outputs: Mapping[str, Any], answers: Mapping[str, Answer], size: tuple[int, int]
    ) -> dict[str, Any]:
        tails = [tail for tail in self._manifest.all_tails() if tail.name not in answers]
        found = summarize(tails, outputs, size)
        for entry in found.get(MAIN, {}).get("classes", []) if self._labels else []:
            if entry["class"] < len(self._labels):
                entry.setdefault("name", self._labels[entry["class"]])
        return found | {tail: _told(answer) for tail, answer in answers.items()}


def _kind(result: Result, payload: Kind) -> str:
    """How a frame was sent, as servers call it."""
    return next((kind for kind, sent in KINDS.items() if sent == result.kind), payload).name.lower()


def _told(answer: Answer) -> dict[str, Any]:
    if isinstance(answer, Detections):
        rows = zip(answer.boxes.tolist(), answer.scores.tolist(), answer.labels.tolist(), strict=True)
        boxes = [
            {"class": k, "name": answer.names[k], "score": round(score, 6), "box": [round(side, 2) for side in box]}
            for box, score, k in rows
        ]
        return {"boxes": boxes}
    labels, counts = np.unique(answer.mask, return_counts=True)
    segments = [
        {"class": int(k), "name": answer.names[int(k)], "share": round(float(count) / answer.mask.size, 4)}
        for k, count in zip(labels, counts, strict=True)
    ]
    return {"segments": segments}
