"""One stream to a tail server, kept up: packets in, results out, in order, each frame exactly once.

What is unanswered when the link breaks is sent again over the next stream, under the same stream id. The server may so
compute a frame twice; it is reported once.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from narrowcast.head.errors import LinkClosedError, LinkError, PeerUnreachableError, RefusedError
from narrowcast.head.socket_bytes import SocketBytes, SocketMeter
from narrowcast.transport.packet import VERSION, Packet, StreamContext
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.channels import CLIENT_OPTIONS, Address
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceStub

# Statuses that another try cannot change. All others (UNAVAILABLE, DATA_LOSS, ...) are worth a new stream.
_FINAL = {
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
}
OPEN_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
# A server that takes streams and answers nothing, again and again, is not one to wait for.
MAX_FRUITLESS_STREAMS = 8
_WATCH_SECONDS = 0.25


@dataclass
class LinkCounters:
    """What a link has done so far."""

    streams_opened: int = 0
    packets_sent: int = 0
    packet_bytes_sent: int = 0
    packets_resent: int = 0
    results: int = 0
    results_unasked: int = 0


class _SilenceError(Exception):
    """The server takes packets and answers none."""


@dataclass
class _Waiting:
    """A packet without an answer."""

    data: bytes
    answer: asyncio.Future[tuple[pb.Result, float]]
    sent_at: float | None = None  # on the current stream
    times_sent: int = 0


class Link:
    """A link to one model of one server. Must be made and used on one event loop.

    Args:
        address: of the server.
        model: the model's name there.
        fingerprint: of the codec, 16 bytes.
        tails: which of the model's tails to run; the first one, ``main``, where none is named.
        window: how many frames may be unanswered; the server may allow fewer.
        give_up_seconds: how long to try without any answer before frames fail; None for ever.
        keep_trying: never to fail for want of a server; ``give_up_seconds`` then ends silent streams alone.
        on_trouble: told, in a line, whenever the link breaks and is tried again.
    """

    def __init__(
        self,
        address: Address,
        model: str,
        fingerprint: bytes,
        *,
        tails: Sequence[str] = (),
        window: int = 8,
        give_up_seconds: float | None = 30.0,
        keep_trying: bool = False,
        on_trouble: Callable[[str], None] | None = None,
    ) -> None:
        self.address = address
        self.counters = LinkCounters()
        self._model = model
        self._tails = list(tails)
        self._context = StreamContext(os.urandom(16), fingerprint, time.time_ns() // 1000)
        self._began = time.monotonic_ns()
        self._window = max(1, window)
        self._give_up_seconds = give_up_seconds
        self._keep_trying = keep_trying
        self.connected = False  # a stream is open, as far as is known
        self._on_trouble = on_trouble or (lambda line: None)
        self._waiting: dict[int, _Waiting] = {}  # in the order of the frames
        self._changed = asyncio.Event()
        self._room = asyncio.Semaphore(self._window)
        self._failure: LinkError | None = None
        self._last_progress = time.monotonic()
        self._fruitless = 0
        self._draining = False
        self._meter = SocketMeter(address.port)
        self._task: asyncio.Task[None] | None = None

    @property
    def context(self) -> StreamContext:
        """What packets for this link must carry."""
        return self._context

    @property
    def failure(self) -> LinkError | None:
        """Why the link has failed for good; None while it has not."""
        return self._failure

    def now_us(self) -> int:
        """The time for packets: microseconds since 1970 by the clock as it was when the link was made.

        It goes on evenly where the system's clock jumps: boards without a battery for it boot in the past.
        """
        return self._context.epoch_us + (time.monotonic_ns() - self._began) // 1000

    def socket_bytes(self) -> SocketBytes | None:
        """Bytes on this link's sockets so far; None where the system does not tell."""
        return self._meter.read()

    async def send(self, packet: Packet) -> asyncio.Future[tuple[pb.Result, float]]:
        """Queues a packet; waits while ``window`` packets are unanswered.

        Frame ids must increase. A frame whose future is cancelled is not sent any more; one that is on its way keeps its
        place in the window until it is answered or the stream ends.

        Returns:
            a future with the result and the milliseconds from sending to it.

        Raises:
            PacketError: the packet cannot be sent on this link.
            LinkError: the link has failed for good or was closed.
        """
        data = packet.to_stream_bytes(self._context)
        await self._room.acquire()
        if self._failure is not None:
            self._room.release()
            raise self._failure
        if not self._waiting:
            self._last_progress = time.monotonic()  # nobody was owed an answer until now
        if self._task is None:
            self._task = asyncio.create_task(self._keep_up())
        answer: asyncio.Future[tuple[pb.Result, float]] = asyncio.get_running_loop().create_future()
        self._waiting[packet.frame_id] = waiting = _Waiting(data, answer)
        answer.add_done_callback(lambda _: self._forget(packet.frame_id) if waiting.times_sent == 0 else None)
        self._changed.set()
        return answer

    def _forget(self, frame_id: int) -> None:
        """A frame is answered or given up: its place in the window is free."""
        if self._waiting.pop(frame_id, None) is not None:
            self._room.release()

    async def close(self) -> None:
        """Ends the link; unanswered frames fail with :class:`LinkClosedError`."""
        self._meter.read()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._fail(LinkClosedError(f"the client was closed while frames were under way to {self.address}"))

    def _fail(self, error: LinkError) -> None:
        self._failure = self._failure or error
        for frame_id, waiting in list(self._waiting.items()):
            if not waiting.answer.done():
                waiting.answer.set_exception(error)
                waiting.answer.exception()  # whoever waits is told; nobody has to wait
            self._forget(frame_id)

    async def _keep_up(self) -> None:
        """Opens streams until there is no point in another."""
        pause, told = FIRST_PAUSE_SECONDS, ""
        while True:
            results = self.counters.results
            try:
                await self._one_stream()
                trouble = "the server ended the stream"
            except grpc.aio.AioRpcError as error:
                trouble = f"{error.code().name}: {error.details()}"
                if error.code() in _FINAL:
                    self._fail(RefusedError(f"{self.address} refuses: {error.details()}"))
                    return
            except asyncio.TimeoutError:  # TimeoutError itself from Python 3.11 on
                trouble = f"no answer to opening a stream within {OPEN_SECONDS:.0f} s"
            except _SilenceError:
                trouble = f"packets are taken and none is answered for {self._give_up_seconds:.0f} s"
            except LinkError as error:
                self._fail(error)
                return
            except Exception as error:
                self._fail(LinkError(f"the link to {self.address} failed: {type(error).__name__}: {error}"))
                raise
            progress = self.counters.results > results
            self._fruitless = 0 if progress else self._fruitless + 1
            pause = FIRST_PAUSE_SECONDS if progress else min(pause * 2, LONGEST_PAUSE_SECONDS)
            if self._is_hopeless():
                self._fail(PeerUnreachableError(f"no answer from a tail server at {self.address} ({trouble})"))
                return
            if progress or trouble != told:  # the same trouble again is no news
                self._on_trouble(f"link to {self.address}: {trouble}; trying again")
            told = trouble
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  (jitter)

    def _is_hopeless(self) -> bool:
        if self._give_up_seconds is None or self._keep_trying:
            return False
        return self._is_silent() or self._fruitless >= MAX_FRUITLESS_STREAMS

    async def _one_stream(self) -> None:
        """Opens a stream and serves it until it breaks."""
        async with grpc.aio.insecure_channel(str(self.address), options=CLIENT_OPTIONS) as channel:
            call = TailServiceStub(channel).Stream()
            self._draining = False
            try:
                window = await asyncio.wait_for(self._open(call), OPEN_SECONDS)
                for frame_id, waiting in list(self._waiting.items()):
                    waiting.sent_at = None
                    if waiting.answer.done():  # cancelled while it was on its way: not to be sent again
                        self._forget(frame_id)
                self._changed.set()
                self.connected = True
                if self._keep_trying:  # however long there was none: this stream owes no answer until now
                    self._last_progress = time.monotonic()
                await _first_of(self._receive_all(call), self._send_all(call, window), self._watch())
            finally:
                self.connected = False
                self._meter.read()
                call.cancel()

    async def _open(self, call: Any) -> int:
        await call.write(
            pb.StreamRequest(
                open=pb.Open(
                    model=self._model,
                    codec_fingerprint=self._context.fingerprint,
                    packet_version=VERSION,
                    stream_id=self._context.stream_id,
                    epoch_us=self._context.epoch_us,
                    window=self._window,
                    tails=self._tails,
                )
            )
        )
        response = await call.read()
        if response is grpc.aio.EOF or not response.HasField("opened"):
            raise RefusedError(f"{self.address} does not answer like a tail server of this protocol")
        self.counters.streams_opened += 1
        return max(1, int(response.opened.window))

    async def _send_all(self, call: Any, window: int) -> None:
        """Sends what has not been sent on this stream, in order, never more than ``window`` unanswered."""
        while True:
            self._changed.clear()
            in_flight = sum(1 for waiting in self._waiting.values() if waiting.sent_at is not None)
            fresh = [waiting for waiting in self._waiting.values() if waiting.sent_at is None]
            for waiting in fresh[: max(0, window - in_flight)]:
                if self._draining:
                    await asyncio.Event().wait()
                waiting.sent_at = time.perf_counter()
                self.counters.packets_sent += 1
                self.counters.packet_bytes_sent += len(waiting.data)
                self.counters.packets_resent += waiting.times_sent > 0
                waiting.times_sent += 1
                try:
                    await call.write(pb.StreamRequest(packet=waiting.data))
                except asyncio.InvalidStateError:  # the call is over; whoever reads it is told why
                    await asyncio.Event().wait()
            await self._changed.wait()

    async def _receive_all(self, call: Any) -> None:
        while (response := await call.read()) is not grpc.aio.EOF:
            received = time.perf_counter()
            if response.HasField("drain"):
                self._draining = True
                await call.done_writing()
                continue
            if not response.HasField("result"):
                raise RefusedError(f"{self.address} does not answer like a tail server of this protocol")
            waiting = self._waiting.get(response.result.frame_id)
            if waiting is None or waiting.sent_at is None:
                self.counters.results_unasked += 1
                continue
            self.counters.results += 1
            self._last_progress = time.monotonic()
            if not waiting.answer.done():
                waiting.answer.set_result((response.result, (received - waiting.sent_at) * 1000))
            self._forget(response.result.frame_id)
            self._changed.set()

    async def _watch(self) -> None:
        """Ends a stream on which packets stay unanswered for too long: keepalive sees a live server then."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if self._waiting and self._is_silent():
                raise _SilenceError

    def _is_silent(self) -> bool:
        limit = self._give_up_seconds
        return limit is not None and time.monotonic() - self._last_progress > limit


async def _first_of(*running: Coroutine[Any, Any, None]) -> None:
    """Runs all until one of them ends, which ends the others; its error is raised."""
    tasks = [asyncio.create_task(one) for one in running]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
