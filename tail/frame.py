"""One frame on its way through the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from narrowcast.tail.errors import FrameRefusedError
from narrowcast.transport.packet import Packet
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.tasks import MAIN
from narrowcast.transport.video import Memory

if TYPE_CHECKING:  # it keeps frames
    from narrowcast.tail.references import Kept

MAIN_ALONE = frozenset([MAIN])


class Priority(IntEnum):
    """Which frames go first where they have to wait; the place of their lane in the queue."""

    BACKGROUND = 0
    NORMAL = 1
    URGENT = 2


_BY_NUMBER: dict[int, Priority] = {
    pb.PRIORITY_BACKGROUND: Priority.BACKGROUND,
    pb.PRIORITY_URGENT: Priority.URGENT,
}


def priority_of(number: int) -> Priority:
    """What a client's message says; unspecified and unknown ones are normal."""
    return _BY_NUMBER.get(number, Priority.NORMAL)


class _Queue(Protocol):
    def drop(self, frame: Frame) -> None: ...


class Frame:
    """A packet, who sent it, and what becomes of it.

    Args:
        packet: as it came.
        tails: which of the model's tails to run.
        client: whose it is, for its turn in the queue.
        priority: which lane of the queue.
        deadline: ``time.perf_counter()`` after which nobody wants the answer; None: no such time.
        packet_bytes: its size on the wire.
        on_done: called on the event loop, once, when the response is there. Not called for a frame that was dropped.
        arrived: ``time.perf_counter()``; now.

    Attributes:
        response: what goes back, once it is there.
        release: of the model that answered or refused it; 0 where none did.
        encode_ms: time to put the outputs into the response.
        profile: see :func:`narrowcast.tail.drift.profile.profiles`; None where nobody wants it, or there are no symbols.
        reference: the frame that it refers to; None for packets that refer to none.
        keep: whether later frames may refer to it.
        kept: then, once it is decoded, its symbols uint8 ``[C, H, W]`` and what is remembered of it.
        queue: where it waits; None before and afterwards.
        dropped: nobody waits for it any more.
    """

    __slots__ = (
        "arrived", "client", "deadline", "dropped", "encode_ms", "keep", "kept", "on_done", "packet", "packet_bytes",
        "priority", "profile", "queue", "reference", "release", "response", "tails",
    )  # fmt: skip

    def __init__(
        self,
        packet: Packet,
        tails: frozenset[str] = MAIN_ALONE,
        *,
        client: str = "",
        priority: Priority = Priority.NORMAL,
        deadline: float | None = None,
        packet_bytes: int = 0,
        on_done: Callable[[Frame], Any] | None = None,
        arrived: float | None = None,
    ) -> None:
        self.packet = packet
        self.tails = tails
        self.client = client
        self.priority = priority
        self.deadline = deadline
        self.packet_bytes = packet_bytes
        self.on_done = on_done
        self.arrived = time.perf_counter() if arrived is None else arrived
        self.dropped = False
        self.queue: _Queue | None = None
        self.response: pb.StreamResponse | None = None
        self.release = 0
        self.encode_ms = 0.0
        self.profile: npt.NDArray[np.float64] | None = None
        self.reference: Kept | None = None
        self.keep = False
        self.kept: tuple[npt.NDArray[np.uint8], Memory] | None = None

    def finish(self, response: pb.StreamResponse) -> None:
        """The response is there."""
        if self.response is None and not self.dropped:
            self.response, self.queue = response, None
            if self.on_done is not None:
                self.on_done(self)

    def drop(self) -> None:
        """Nobody waits for it any more: it is not computed where that has not begun, and not finished."""
        if self.response is None:
            self.dropped = True
            if self.queue is not None:
                self.queue.drop(self)
                self.queue = None

    def refuse(self, error: FrameRefusedError) -> None:
        """There will be no answer. The payload is not kept until that is told."""
        response = refusal(self.packet, error)
        self.packet = self.packet._replace(payload=b"")
        self.finish(response)


def refusal(packet: Packet, error: FrameRefusedError) -> pb.StreamResponse:
    """What goes back for a frame that is refused."""
    return pb.StreamResponse(
        result=pb.Result(
            frame_id=packet.frame_id,
            code=error.code,
            message=str(error),
            retry_after_ms=error.retry_after_ms,
            need_key=error.need_key,
        )
    )
