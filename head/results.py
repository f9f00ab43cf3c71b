"""What became of a frame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc
import numpy as np
import numpy.typing as npt

from narrowcast.head.accounting import Fate
from narrowcast.head.answers import AnswerReader
from narrowcast.head.session import Encoded
from narrowcast.head.timing import Exchange, FrameTimes
from narrowcast.head.unanswered import Answered
from narrowcast.transport.contract import Placement
from narrowcast.transport.errors import TransportError
from narrowcast.transport.packet import STREAM_HEADER_BYTES, Kind
from narrowcast.transport.tasks import Answer, Detections, Segmentation

Array = npt.NDArray[np.generic]

STATUS = {code.value[0]: code.name for code in grpc.StatusCode}
SentKind = Literal["key", "predicted", "skipped"]
KINDS: dict[Kind, SentKind] = {Kind.PREDICTED: "predicted", Kind.SKIP: "skipped"}
# What a server says of a frame that it has no room or time for; nothing is wrong with the frame.
PUT_OFF = {"RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED"}


@dataclass(frozen=True)
class Result:
    """What became of one frame.

    Attributes:
        frame_id: counts the client's frames from 0.
        outputs: the task's outputs by name, without the batch; empty if the frame failed.
        error: why the frame failed, in a line; None if it did not.
        status: gRPC's name for that: ``OK``, ``DEADLINE_EXCEEDED``, ...; DATA_LOSS for an answer that the bundle does not
            describe.
        level: the rate point it was sent at; 0 for an image.
        packet_bytes: what it took on the wire, header included.
        times: where its time went.
        latency_ms: from handing the frame over to its result.
        placement: leads boxes and masks back to the frame.
        source: who answered: the server; or the bundle's local exit, or its uncut network here, whose answers cost no bytes
            (``packet_bytes`` is 0).
        dropped: why rate control did not send the frame (``late``, ``budget``, ``data-cap``, ``too-large``); None if it did.
            One that would have been ``late`` is spooled all the same where there is a spool.
        spooled: it is on disk, to be sent when there is a server; ``error`` then says so, and the status is UNAVAILABLE.
        answers: by tail (``main`` is the first or only one): boxes or a map of classes in terms of the frame, where the
            bundle's ``[task]`` is one of detection or segmentation.
        exchange: when it went, came there, left there and was answered; None where no server answered, or it does not tell.
        answer_bytes: what the answer took as a message, without the stream's framing.
        kind: how it was sent: by itself, predicted from an earlier frame, or ``skipped``: nothing has changed since an
            earlier frame, whose answer this is (``docs/video.md``).
        reference: that frame's id; None for a frame by itself.
    """

    frame_id: int
    outputs: dict[str, Array]
    error: str | None
    level: int
    packet_bytes: int
    times: FrameTimes
    latency_ms: float
    placement: Placement
    source: Literal["server", "exit", "whole"] = "server"
    spooled: bool = False
    answers: Mapping[str, Answer] = field(default_factory=dict)
    status: str = "OK"
    dropped: str | None = None
    exchange: Exchange | None = None
    answer_bytes: int = 0
    kind: SentKind = "key"
    reference: int | None = None

    @property
    def fate(self) -> Fate:
        """How it ended, in the client's ledger."""
        if self.spooled:
            return "spooled"
        if self.error is not None:
            return "dropped"
        return "answered" if self.source == "server" else "local"

    @property
    def detections(self) -> Detections | None:
        """The first tail's boxes that there are, in pixels of the frame; None where no tail detects."""
        return next((answer for answer in self.answers.values() if isinstance(answer, Detections)), None)

    @property
    def segmentation(self) -> Segmentation | None:
        """The first tail's map of classes that there is; None where no tail segments."""
        return next((answer for answer in self.answers.values() if isinstance(answer, Segmentation)), None)


# What is said of a frame that rate control did not send, and its status in gRPC's terms.
DROPPED = {
    "late": ("DEADLINE_EXCEEDED", "not sent: no answer would have been there before its deadline"),
    "budget": ("RESOURCE_EXHAUSTED", "not sent: the budget is used up for now"),
    "data-cap": ("RESOURCE_EXHAUSTED", "not sent: the day's bytes are used up"),
    "too-large": ("RESOURCE_EXHAUSTED", "not sent: its packet is too large at every level"),
}


def not_sent(encoded: Encoded, frame_id: int, started: float) -> Result:
    """The result of a frame that rate control dropped."""
    assert encoded.dropped is not None
    status, error = DROPPED[encoded.dropped]
    return Result(
        frame_id=frame_id, outputs={}, error=error, level=encoded.level, packet_bytes=0, times=encoded.times,
        latency_ms=(time.perf_counter() - started) * 1000, placement=encoded.placement, status=status,
        dropped=encoded.dropped,
    )  # fmt: skip


async def finish(
    encoded: Encoded,
    frame_id: int,
    answer: asyncio.Future[Answered],
    started: float,
    reader: AnswerReader,
) -> Result:
    """The result of a frame when its answer is there.

    Args:
        encoded: what was sent.
        frame_id: of the frame.
        answer: the server's, and the milliseconds to it.
        started: when the frame was handed over, by ``time.perf_counter()``.
        reader: knows the outputs.

    Raises:
        LinkError: the link failed.
    """
    result, waited_ms, answered_at, sent = await answer
    outputs: dict[str, npt.NDArray[Any]] = {}
    answers: dict[str, Answer] = {}
    status = STATUS.get(result.code, "UNKNOWN")
    error = None if result.code == 0 else result.message or f"the server says {status} (code {result.code})"
    if error is None:
        try:
            outputs, answers = reader.read(result.outputs, encoded.placement)
        except TransportError as trouble:
            error, status = str(trouble), "DATA_LOSS"
    times, server = encoded.times, result.times
    if server.total_us:
        times.queue_ms, times.decode_ms = server.queue_us / 1000, server.decode_us / 1000
        times.tail_ms = server.tail_us / 1000
        times.wire_ms = max(0.0, waited_ms - server.total_us / 1000)
    exchange = None
    if waited_ms and server.arrived_us:
        arrived = server.arrived_us / 1e6
        exchange = Exchange(answered_at - waited_ms / 1000, arrived, arrived + server.total_us / 1e6, answered_at)
    return Result(
        frame_id=frame_id,
        outputs=outputs,
        error=error,
        level=encoded.level,
        packet_bytes=STREAM_HEADER_BYTES + len(encoded.payload) if sent is None else sent.size,
        times=times,
        latency_ms=(time.perf_counter() - started) * 1000,
        placement=encoded.placement,
        answers=answers,
        status=status,
        exchange=exchange,
        answer_bytes=result.ByteSize(),
        kind="key" if sent is None else KINDS.get(sent.kind, "key"),
        reference=None if sent is None or sent.reference is None else sent.reference.source.packet.frame_id,
    )
