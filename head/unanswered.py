"""A link's frames without an answer: which is to be sent next, and that each is answered once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import grpc

from narrowcast.head.errors import LinkError
from narrowcast.head.video.chain import SentAs, Source
from narrowcast.transport.rpc import tail_pb2 as pb

DEADLINE_EXCEEDED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
# A frame that a server puts off again and again fails in the end.
MAX_PUT_OFFS = 8
# A server that wants a frame later than that has none to hope for.
MAX_HINT_SECONDS = 30.0

LONGEST_MS = 2**32 - 1


class Answered(NamedTuple):
    """A frame's answer.

    Attributes:
        result: the server's.
        waited_ms: from sending to it; 0 where nothing was sent.
        at: when it was there, by ``time.perf_counter()``.
        sent: how the frame went out; None where it did not.
    """

    result: pb.Result
    waited_ms: float
    at: float
    sent: SentAs | None = None


class Listener(Protocol):
    """Is told of each packet: rate control listens."""

    def queued(self, frame_id: int, size: int) -> None:
        """It waits to be sent."""

    def sent(self, frame_id: int, size: int) -> None:
        """It is being sent, now."""

    def answered(self, frame_id: int, server_seconds: float) -> None:
        """It was answered, in time or not; the server took so long of it."""

    def lost(self, frame_id: int) -> None:
        """It is not under way any more: it was given up before it was sent, or its stream ended."""


@dataclass
class LinkCounters:
    """What a link has done so far.

    Attributes:
        packets_resent: sent once more, over another stream or after the server put them off.
        results: that were reported.
        results_late: that came for a frame that was answered already: by the local exit, by another stream, by its deadline.
        results_put_off: RESOURCE_EXHAUSTED with a hint, upon which the frame was sent again.
        results_unasked: for frames that were not sent on their stream.
        drains: streams that a server wanted to be rid of.
        hangs: streams that were ended because nothing was heard any more.
        audit_sent: sources of frames, as images, that the server asked for and the client's user consented to.
        audit_missed: those that it asked for and that were no longer held.
        packets_predicted: of those that were sent, predicted from an earlier frame.
        packets_skipped: that said no more than that nothing has changed.
        keys_wanted: frames that a server wanted again, as key frames.
    """

    streams_opened: int = 0
    packets_sent: int = 0
    packet_bytes_sent: int = 0
    packets_resent: int = 0
    results: int = 0
    results_late: int = 0
    results_put_off: int = 0
    results_unasked: int = 0
    drains: int = 0
    hangs: int = 0
    audit_sent: int = 0
    audit_missed: int = 0
    packets_predicted: int = 0
    packets_skipped: int = 0
    keys_wanted: int = 0


@dataclass
class Waiting:
    """A packet without an answer.

    Attributes:
        carrier: the stream that it was sent on; None where none has it now.
        expires_at: seconds of ``time.monotonic()``; None for never.
        source: what a packet that refers to another frame is made from; None where it is to go out as it is.
        by_itself: it is to refer to no other frame.
        sent: how it went out last.
    """

    frame_id: int
    data: bytes
    answer: asyncio.Future[Answered]
    expires_at: float | None
    carrier: object | None = None
    times_sent: int = 0
    times_put_off: int = 0
    source: Source | None = None
    by_itself: bool = False
    sent: SentAs | None = None

    def left_ms(self) -> int:
        """What is left of its deadline, at least 1; 0 where it has none."""
        if self.expires_at is None:
            return 0
        return min(max(1, round((self.expires_at - time.monotonic()) * 1000)), LONGEST_MS)


class Unanswered:
    """The frames of one link, in their order.

    Args:
        counters: are kept up.
        window: how many there may be.
        listener: is told of them.

    Attributes:
        changed: set whenever there may be something to send.
        progressed_at: when there was the last answer, or the first frame to wait for one.
    """

    def __init__(self, counters: LinkCounters, window: int, listener: Listener | None = None) -> None:
        self.counters = counters
        self.listener = listener
        self.changed = asyncio.Event()
        self.progressed_at = time.monotonic()
        self._room = asyncio.Semaphore(window)
        self._waiting: dict[int, Waiting] = {}
        self._next_id = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def first_id(self) -> int:
        """The first frame that is not reported yet."""
        return min(self._waiting, default=self._next_id)

    async def room(self) -> None:
        """Waits for a place; :meth:`add` or :meth:`no_frame` must follow."""
        await self._room.acquire()

    def no_frame(self) -> None:
        """The place is not needed."""
        self._room.release()

    def add(
        self, frame_id: int, data: bytes, expires_at: float | None, source: Source | None = None
    ) -> asyncio.Future[Answered]:
        """A packet to be sent; it is answered DEADLINE_EXCEEDED at ``expires_at`` (``time.monotonic()``).

        Returns:
            its answer; cancelling it gives up the frame.
        """
        loop = asyncio.get_running_loop()
        if not self._waiting:
            self.progressed_at = time.monotonic()  # nobody was owed an answer until now
        answer: asyncio.Future[Answered] = loop.create_future()
        self._waiting[frame_id] = Waiting(frame_id, data, answer, expires_at, source=source)
        if self.listener is not None:
            self.listener.queued(frame_id, len(data))
        self._next_id = max(self._next_id, frame_id + 1)
        answer.add_done_callback(lambda _: self._forget(frame_id))
        if expires_at is not None and expires_at <= time.monotonic():
            self._expire(frame_id)
        elif expires_at is not None:
            timer = loop.call_later(expires_at - time.monotonic(), self._expire, frame_id)
            answer.add_done_callback(lambda _: timer.cancel())
        self.changed.set()
        return answer

    def fresh(self) -> Waiting | None:
        """The first that no stream carries."""
        return next((one for one in self._waiting.values() if one.carrier is None and not one.answer.done()), None)

    def settle(self, result: pb.Result, waited_ms: float) -> float | None:
        """A stream's answer to a frame that it carried.

        Returns:
            the seconds after which the server wants to be asked again; None where this was its answer.
        """
        self.progressed_at = time.monotonic()
        waiting = self._waiting.get(result.frame_id)
        if waiting is None or waiting.answer.done():
            self.counters.results_late += 1
            return None
        hint = self._hint(waiting, result)
        if hint is not None:
            waiting.times_put_off += 1
            waiting.carrier = None
            self.counters.results_put_off += 1
            return hint
        self.answer(waiting, result, waited_ms)
        self.counters.results += 1
        return None

    def give_back(self, frame_id: int) -> bool:
        """A stream cannot have a frame answered: another one is to carry it.

        Returns:
            whether the frame is still waited for, and has not been given back too often.
        """
        waiting = self._waiting.get(frame_id)
        if waiting is None or waiting.answer.done() or waiting.times_put_off >= MAX_PUT_OFFS:
            return False
        waiting.times_put_off += 1
        waiting.carrier = None
        return True

    def want_key(self, frame_id: int) -> None:
        """A server does not have what a frame refers to: it is sent again, as a key frame."""
        waiting = self._waiting.get(frame_id)
        if waiting is not None and not waiting.answer.done():
            waiting.by_itself, waiting.carrier = True, None
            self.counters.keys_wanted += 1

    def _hint(self, waiting: Waiting, result: pb.Result) -> float | None:
        """When to send a frame again that a server has no room for; None where its word is final."""
        seconds = result.retry_after_ms / 1000
        if result.code != RESOURCE_EXHAUSTED or not 0 < seconds <= MAX_HINT_SECONDS:
            return None
        in_time = waiting.expires_at is None or time.monotonic() + seconds < waiting.expires_at
        return seconds if in_time and waiting.times_put_off < MAX_PUT_OFFS else None

    def answer(self, waiting: Waiting, result: pb.Result, waited_ms: float) -> None:
        """A frame's one and only answer."""
        waiting.answer.set_result(Answered(result, waited_ms, time.perf_counter(), waiting.sent))
        self._forget(waiting.frame_id)

    def release(self, carrier: object, frame_ids: Iterable[int]) -> None:
        """A stream has ended: what it carried is to be sent again."""
        for frame_id in frame_ids:
            if self.listener is not None:
                self.listener.lost(frame_id)
            waiting = self._waiting.get(frame_id)
            if waiting is not None and waiting.carrier is carrier:
                waiting.carrier = None
        self.changed.set()

    def fail(self, error: LinkError) -> None:
        """No frame will be answered any more."""
        for waiting in list(self._waiting.values()):
            if not waiting.answer.done():
                waiting.answer.set_exception(error)
                waiting.answer.exception()  # whoever waits is told; nobody has to wait
            self._forget(waiting.frame_id)

    def _expire(self, frame_id: int) -> None:
        waiting = self._waiting.get(frame_id)
        if waiting is not None and not waiting.answer.done():
            message = "no answer before the frame's deadline"
            self.answer(waiting, pb.Result(frame_id=frame_id, code=DEADLINE_EXCEEDED, message=message), 0.0)

    def _forget(self, frame_id: int) -> None:
        """A frame is answered or given up: its place is free."""
        waiting = self._waiting.pop(frame_id, None)
        if waiting is None:
            return
        if waiting.carrier is None and self.listener is not None:
            self.listener.lost(frame_id)
        self._room.release()
