"""Sends spooled packets when there is a server again: in their order, behind live frames, with their own names and times."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy.typing as npt

from narrowcast.head.answers import AnswerReader
from narrowcast.head.doubts import Doubts
from narrowcast.head.errors import LinkClosedError, LinkError, RefusedError
from narrowcast.head.link import Link
from narrowcast.head.outage import Note
from narrowcast.head.rate.control import RateControl
from narrowcast.head.results import PUT_OFF, STATUS
from narrowcast.head.spool import Record, Spool
from narrowcast.transport.errors import PacketError, TransportError
from narrowcast.transport.packet import STREAM_HEADER_BYTES, Packet, StreamContext
from narrowcast.transport.tasks import Answer

log = logging.getLogger(__name__)
_Value = TypeVar("_Value")
IDLE_SECONDS = 0.5
# A live frame that waits for room goes first, but not for ever.
YIELD_SECONDS = 1.0
# Where a budget or a cap has nothing to spare it is asked again so often.
LIMIT_SECONDS = 0.1
# Before it is tried again: at first, and after many times in a row.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
# What a server says of a packet that is wrong. All else that it fails with may be its own fault.
WRONG = {"INVALID_ARGUMENT"}
# Packets of one stream that were captured a little before its first one still have a time after its epoch.
SLACK_US = 86_400_000_000


@dataclass(frozen=True)
class Replayed:
    """A spooled frame's answer. It may come twice; stream id and frame id name it for good.

    Attributes:
        stream_id: of the run that captured it, 16 bytes.
        frame_id: of that stream.
        capture_us: when it was captured, microseconds since 1970 UTC.
        level: the rate point it was sent at.
        outputs: the task's outputs by name; empty if it failed.
        answers: by tail; see :class:`narrowcast.head.results.Result`.
        error: why it failed, in a line; None if it did not.
        status: gRPC's name for that.
    """

    stream_id: bytes
    frame_id: int
    capture_us: int
    level: int
    outputs: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    answers: Mapping[str, Answer] = field(default_factory=dict)
    error: str | None = None
    status: str = "OK"

    @property
    def name(self) -> str:
        """As servers name its result."""
        return f"{self.stream_id.hex()}-{self.frame_id}"


@dataclass
class ReplayCounters:
    """What became of spooled frames: together, the spool's ``acknowledged``, and what is being acknowledged.

    Attributes:
        answered: by a server.
        dropped: that no server will ever answer, by reason.
        late: answers to what the spool had dropped meanwhile, and counts so.
    """

    answered: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    late: int = 0


class Replayer:
    """Works on one event loop until it is closed.

    Args:
        spool: what to send.
        link: makes one for a stream as it was (``context``), of the lowest priority, that never gives up.
        reader: knows the outputs.
        size: height and width of the network's input.
        fingerprint: of the client's codec. Packets for another one, of a model before, are dropped where
            every server says that it has the model with other codecs only.
        is_busy: whether live frames wait for room.
        limits: budgets and caps that spooled frames share with live ones; None for none.
        live: how many live frames have been answered.
        on_replayed: told of each answer, on the event loop. Must not block; what it returns is waited for before the packet
            is acknowledged.
        window: how many may be unanswered.
    """

    def __init__(
        self,
        spool: Spool,
        link: Callable[..., Link],
        reader: AnswerReader,
        size: tuple[int, int],
        fingerprint: bytes,
        *,
        is_busy: Callable[[], bool] = lambda: False,
        limits: RateControl | None = None,
        live: Callable[[], int] = lambda: 0,
        on_replayed: Callable[[Replayed], Awaitable[None] | None] | None = None,
        window: int = 4,
    ) -> None:
        self.counters = ReplayCounters()
        self._spool, self._make_link, self._reader = spool, link, reader
        self._size, self._fingerprint = size, fingerprint
        self._is_busy, self._on_replayed = is_busy, on_replayed or (lambda replayed: None)
        self._window, self._limits = window, limits
        self._doubts = Doubts(fingerprint, live)
        self._link: Link | None = None
        self._last_id = -1
        self._running: set[asyncio.Task[None]] = set()
        self._acknowledging: set[asyncio.Task[None]] = set()
        self._again = False
        self._pause = FIRST_PAUSE_SECONDS
        # Its own: a disk that hangs must not take those on which the loop's other work is done.
        self._thread = ThreadPoolExecutor(1, "narrowcast-replay")
        self._closed = False
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Stops; what is unanswered stays in the spool, for whoever works on it next."""
        if self._closed:  # another client may be at the spool by now
            return
        self._closed = True
        tasks = [self._task, *self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*self._acknowledging, return_exceptions=True)  # what was told is not handed out again
        await self._end_link()
        await self._on_thread(self._spool.rewind)
        self._thread.shutdown(wait=False)

    async def _on_thread(self, call: Callable[..., _Value], *args: Any) -> _Value:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    async def _work(self) -> None:
        while True:
            if self._again:
                await self._start_over()
            record = await self._on_thread(self._spool.next)
            if record is None:
                await self._on_thread(self._spool.tick)
                if not self._running:
                    self._again = self._again or self._doubts.pending
                    await self._end_link()  # an idle link costs nothing, but the next run has another stream
                await asyncio.sleep(IDLE_SECONDS)
                continue
            try:
                packet = record.packet()
            except PacketError as error:
                log.warning("the spool %s holds what is no packet: %s", self._spool.folder, error)
                await self._acknowledge(record, "no packet")
                continue
            await self._give_way()
            await self._send(record, packet)

    async def _give_way(self) -> None:
        end = asyncio.get_running_loop().time() + YIELD_SECONDS
        while self._is_busy() and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)

    async def _start_over(self) -> None:
        """A server had no room, or failed, or none takes this client: after a while, from the first without an answer on."""
        if self._running:
            await asyncio.wait(self._running)
        await self._end_link()
        await self._on_thread(self._spool.rewind)
        self._again = False
        self._doubts.start_over()
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    async def _send(self, record: Record, packet: Packet) -> None:
        context = None if self._link is None else self._link.context
        fits = context is not None and (packet.stream_id, packet.fingerprint) == context[:2]
        if context is None or not fits or packet.frame_id <= self._last_id or packet.capture_us < context.epoch_us:
            if self._running:
                await asyncio.wait(self._running)
            await self._end_link()
            epoch_us = max(0, packet.capture_us - SLACK_US)
            self._link = self._make_link(context=StreamContext(packet.stream_id, packet.fingerprint, epoch_us))
        assert self._link is not None
        while len(self._running) >= self._window:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        await self._come_within_limits(STREAM_HEADER_BYTES + len(packet.payload))
        if self._again:  # it is handed out again
            return
        self._last_id = packet.frame_id
        try:
            answer = await self._link.send(packet)
        except LinkError as error:
            await self._failed(record, packet, error)
            return
        task = asyncio.create_task(self._answered(record, packet, answer))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _come_within_limits(self, size: int) -> None:
        while self._limits is not None and not self._again:
            if await self._on_thread(self._limits.may_replay, size):
                return
            await self._on_thread(self._spool.tick)
            await asyncio.sleep(LIMIT_SECONDS)

    async def _answered(self, record: Record, packet: Packet, answer: asyncio.Future[Any]) -> None:
        try:
            result = (await answer).result
        except LinkError as failure:
            await self._failed(record, packet, failure)
            return
        status = STATUS.get(result.code, "UNKNOWN")
        if status in PUT_OFF:
            self._again = True
            return
        first = not self._doubts.pending
        if status == "OK":
            self._again = self._doubts.answered(record.number, packet.fingerprint) or self._again
        elif status not in WRONG and not self._doubts.failed(record.number, packet.fingerprint):
            if first:  # a line for all of them
                log.warning("spooled frames wait: the server says %s: %s", status, result.message)
            self._again = self._again or self._doubts.hopeless
            return
        self._pause = FIRST_PAUSE_SECONDS
        outputs: dict[str, npt.NDArray[Any]] = {}
        answers: dict[str, Answer] = {}
        error = None if status == "OK" else result.message or f"the server says {status} (code {result.code})"
        if error is None:
            try:
                outputs, answers = self._reader.read(result.outputs, Note.read(record.note).placed(self._size))
            except TransportError as trouble:
                error, status = str(trouble), "DATA_LOSS"
        await self._tell(packet, outputs, answers, error, status)
        await self._acknowledge(record, "" if error is None else status)

    async def _tell(
        self, packet: Packet, outputs: Mapping[str, Any], answers: Mapping[str, Answer], error: str | None, status: str
    ) -> None:
        replayed = Replayed(
            packet.stream_id, packet.frame_id, packet.capture_us, packet.level, outputs, answers, error, status
        )
        try:
            if (kept := self._on_replayed(replayed)) is not None:
                await kept
        except Exception:
            log.exception("on_replayed failed for frame %s", replayed.name)

    async def _failed(self, record: Record, packet: Packet, error: LinkError) -> None:
        other = packet.fingerprint != self._fingerprint
        if other and isinstance(error, RefusedError) and error.is_of_codec(packet.fingerprint):
            await self._tell(packet, {}, {}, str(error), "FAILED_PRECONDITION")
            await self._acknowledge(record, "of a model that no server has")
            return
        if not isinstance(error, LinkClosedError) and not self._again:
            log.warning("spooled frames wait: %s", error)
        self._again = True

    async def _acknowledge(self, record: Record, dropped: str) -> None:
        """Once begun it is done to its end: its answer was told."""
        task = asyncio.create_task(self._settle(record, dropped))
        self._acknowledging.add(task)
        task.add_done_callback(self._acknowledging.discard)
        await asyncio.shield(task)

    async def _settle(self, record: Record, dropped: str) -> None:
        """On a thread: a disk may take its time. Counted before: whoever sees an empty spool sees why."""
        self._count(dropped, 1)
        if not await self._on_thread(self._spool.acknowledge, record):
            self._count(dropped, -1)
            self.counters.late += 1

    def _count(self, dropped: str, by: int) -> None:
        if dropped:
            self.counters.dropped[dropped] += by
            self.counters.dropped += Counter()  # without those that are 0 again
        else:
            self.counters.answered += by

    async def _end_link(self) -> None:
        link, self._link, self._last_id = self._link, None, -1
        if link is not None:
            if self._limits is not None:
                await self._on_thread(self._limits.count)
            with suppress(LinkError):
                await link.close()
