"""One stream to a tail server, kept up: packets in, results out, in order, each frame exactly once.

What is unanswered when the link breaks is sent again over the next stream, under the same stream id. The server may so
compute a frame twice; it is reported once.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
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


@dataclass
class LinkCounters:
    """What a link has done so far."""

    streams_opened: int = 0
    packets_sent: int = 0
    packet_bytes_sent: int = 0
    packets_resent: int = 0
    results: int = 0
    results_unasked: int = 0


@dataclass
class _Waiting:
    """A packet without an answer."""

    packet: Packet
    answer: asyncio.Future[tuple[pb.Result, float]]
    sent_at: float | None = None  # on the current stream
    times_sent: int = 0


class Link:
    """A link to one model of one server. Must be made and used on one event loop.

    Args:
        address: of the server.
        model: the model's name there.
        fingerprint: of the codec, 16 bytes.
        window: how many frames may be unanswered; the server may allow fewer.
        give_up_seconds: how long to try without any answer before frames fail; None for ever.
        on_trouble: told, in a line, whenever the link breaks and is tried again.
    """

    def __init__(
        self,
        address: Address,
        model: str,
        fingerprint: bytes,
        *,
        window: int = 8,
        give_up_seconds: float | None = 30.0,
        on_trouble: Callable[[str], None] | None = None,
    ) -> None:
        self.address = address
        self.counters = LinkCounters()
        self._model = model
        self._context = StreamContext(os.urandom(16), fingerprint, time.time_ns() // 1000)
        self._window = max(1, window)
        self._give_up_seconds = give_up_seconds
        self._on_trouble = on_trouble or (lambda line: None)
        self._waiting: dict[int, _Waiting] = {}  # in the order of the frames
        self._changed = asyncio.Event()
        self._room = asyncio.Semaphore(self._window)
        self._failure: LinkError | None = None
        self._last_progress = time.monotonic()
        self._fruitless = 0
        self._meter = SocketMeter(address.port)
        self._task: asyncio.Task[None] | None = None

    @property
    def context(self) -> StreamContext:
        """What packets for this link must carry."""
        return self._context

    def socket_bytes(self) -> SocketBytes | None:
        """Bytes on this link's sockets so far; None where the system does not tell."""
        return self._meter.read()

    async def send(self, packet: Packet) -> asyncio.Future[tuple[pb.Result, float]]:
        """Queues a packet; waits while ``window`` packets are unanswered.

        Frame ids must increase.

        Returns:
            a future with the result and the milliseconds from sending to it.

        Raises:
            LinkError: the link has failed for good or was closed.
        """
        await self._room.acquire()
        if self._failure is not None:
            self._room.release()
            raise self._failure
        if self._task is None:
            self._last_progress = time.monotonic()
            self._task = asyncio.create_task(self._keep_up())
        answer: asyncio.Future[tuple[pb.Result, float]] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(lambda _: self._room.release())
        self._waiting[packet.frame_id] = _Waiting(packet, answer)
        self._changed.set()
        return answer

    async def close(self) -> None:
        """Ends the link; unanswered frames fail with :class:`LinkClosedError`."""
        self._meter.read()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._fail(LinkClosedError(f"the client was closed while frames were under way to {self.address}"))

    def _fail(self, error: LinkError) -> None:
        self._failure = self._failure or error
        for waiting in self._waiting.values():
            if not waiting.answer.done():
                waiting.answer.set_exception(error)
                waiting.answer.exception()  # whoever waits is told; nobody has to wait
        self._waiting.clear()

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
        if self._give_up_seconds is None:
            return False
        silent = time.monotonic() - self._last_progress
        return silent > self._give_up_seconds or self._fruitless >= MAX_FRUITLESS_STREAMS

    async def _one_stream(self) -> None:
        """Opens a stream and serves it until it breaks."""
        async with grpc.aio.insecure_channel(str(self.address), options=CLIENT_OPTIONS) as channel:
            call = TailServiceStub(channel).Stream()
            try:
                window = await asyncio.wait_for(self._open(call), OPEN_SECONDS)
                for waiting in self._waiting.values():
                    waiting.sent_at = None
                self._changed.set()
                sender = asyncio.create_task(self._send_all(call, window))
                try:
                    await self._receive_all(call)
                finally:
                    sender.cancel()
                    await asyncio.gather(sender, return_exceptions=True)
            finally:
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
                data = waiting.packet.to_stream_bytes(self._context)
                waiting.sent_at = time.perf_counter()
                self.counters.packets_sent += 1
                self.counters.packet_bytes_sent += len(data)
                self.counters.packets_resent += waiting.times_sent > 0
                waiting.times_sent += 1
                await call.write(pb.StreamRequest(packet=data))
            await self._changed.wait()

    async def _receive_all(self, call: Any) -> None:
        while (response := await call.read()) is not grpc.aio.EOF:
            received = time.perf_counter()
            waiting = self._waiting.pop(response.result.frame_id, None)
            if waiting is None or waiting.sent_at is None:
                self.counters.results_unasked += 1
                continue
            self.counters.results += 1
            self._last_progress = time.monotonic()
            if not waiting.answer.done():
                waiting.answer.set_result((response.result, (received - waiting.sent_at) * 1000))
            self._changed.set()
