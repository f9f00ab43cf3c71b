"""One open stream on one server: what is sent on it, what comes back, and when it has to be left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

import grpc

from narrowcast.head import liveness
from narrowcast.head.audit import AuditFrames
from narrowcast.head.endpoints import Endpoint
from narrowcast.head.errors import RefusedError
from narrowcast.head.health import Health
from narrowcast.head.socket_bytes import SocketWatch
from narrowcast.head.unanswered import Unanswered, Waiting
from narrowcast.head.video.chain import SentAs
from narrowcast.head.video.outgoing import Outgoing
from narrowcast.head.wire import Wire, first_of, let_go
from narrowcast.transport.packet import Kind
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.credentials import ClientTls
from narrowcast.transport.video import VideoCodec

# After the time that a server gives for answering what it has, so much more for its last answers' way.
LAST_ANSWERS_SECONDS = 1.0
# The same, where the client leaves by itself.
LEAVING_MS = 5_000
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]


class StreamError(Exception):
    """A stream does not open or has to be left; the message says why, in a few words."""


class HungError(StreamError):
    """Nothing is heard from the server any more."""


class SilenceError(StreamError):
    """The server lives, takes packets and answers none."""


class NotServingError(StreamError):
    """The server takes streams and says itself that it should not be used."""


class _Sent(NamedTuple):
    """A packet on its way: when it left (``time.perf_counter()``), as what, and the bytes of all images for audit so far."""

    at: float
    packet: SentAs
    images: int

    @property
    def size(self) -> int:
        return self.packet.size


class Stream:
    """An open stream. Made by :meth:`open`.

    Attributes:
        endpoint: whose it is.
        drained: set when the server wants to be rid of it; nothing is sent any more then.
        come_back: whether a server that drains takes new streams.
        unavailable: what a server said of a frame that it has no model for any more: the stream is left as if it had
            drained.
        answers: how many there were.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        wire: Wire,
        socket: SocketWatch,
        frames: Unanswered,
        at_end: Callable[[], object],
        audit: AuditFrames | None = None,
        video: VideoCodec | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.drained = asyncio.Event()
        self.come_back = True
        self.answers = 0
        self.unavailable: str | None = None
        self._grace_seconds = 0.0
        self._wire = wire
        self._socket = socket
        self._frames = frames
        self._at_end = at_end
        self._audit = audit
        self._outgoing = Outgoing(video)
        self._window = self._most = 1
        self._max_packet_bytes = 0
        self._in_flight: dict[int, _Sent] = {}  # in the order of sending
        self._held_until = 0.0
        self._images = self._images_passed = 0  # bytes: sent, and ahead of what is answered
        self._writing = 0  # bytes of an image that is being written
        self._busy = asyncio.Event()
        self._silence = liveness.Silence()
        self._answered_at = time.perf_counter()
        self._question: asyncio.Task[None] | None = None
        self._pings = self._pongs = 0
        self._ping_due = False
        self._promised_seconds = 0.0

    @classmethod
    async def open(
        cls,
        endpoint: Endpoint,
        opening: pb.Open,
        frames: Unanswered,
        *,
        tls: ClientTls | None = None,
        seconds: float,
        ask_health: bool = False,
        at_end: Callable[[], object] = lambda: None,
        audit: AuditFrames | None = None,
        video: VideoCodec | None = None,
    ) -> Stream:
        """Connects and opens a stream.

        Args:
            endpoint: where.
            opening: its first message.
            frames: what is to be sent on it, once it runs.
            tls: certificates, and a token where there is one; None for plain TCP.
            seconds: for all of it.
            ask_health: pass over a server whose health service does not call the model serving.
            at_end: called before the connection is closed.
            audit: sources of frames that the server may ask for; None: it may not, and is not obeyed if it does.
            video: makes packets that refer to frames which the server has answered; None: there are none.

        Raises:
            RefusedError: this is no tail server.
            NotServingError: see ``ask_health``.
            StreamError: no answer in time.
            grpc.aio.AioRpcError: what the server or the connection says.
        """
        socket = SocketWatch(endpoint.address.host, endpoint.address.port)
        wire = Wire(endpoint, tls)
        stream = cls(endpoint, wire, socket, frames, at_end, audit, video)
        health = asyncio.ensure_future(wire.health(opening.model)) if ask_health else None
        begun = asyncio.ensure_future(stream._begin(opening, health))
        try:
            # Not wait_for: until Python 3.12 it forgets that it was cancelled where that coincides with what it waits for,
            # and the link would never end.
            if not (await asyncio.wait([begun], timeout=seconds))[0]:
                raise HungError(f"no answer to opening a stream within {seconds:.0f} s")
            begun.result()
        except BaseException:
            begun.cancel()
            await asyncio.gather(begun, return_exceptions=True)
            await stream._close()
            raise
        finally:
            if health is not None:
                health.cancel()
                await asyncio.gather(health, return_exceptions=True)
                let_go([health])
            let_go([begun])
            del begun, health
        return stream

    async def _begin(self, opening: pb.Open, health: asyncio.Future[Health | None] | None) -> None:
        self._promised_seconds = self.endpoint.pace.promise_seconds(0, self.endpoint.patience)
        opening.silence_limit_ms = round(self._promised_seconds * 1000)
        self._outgoing.ask(opening)
        response = await self._wire.open(opening)
        if response is None or not response.HasField("opened"):
            raise RefusedError("it does not answer like a tail server of this protocol")
        if health is not None and await health is Health.NOT_SERVING:
            raise NotServingError(f"its health service does not call {opening.model} serving")
        self._socket.found()
        self._most = opening.window
        self._window = min(max(1, int(response.opened.window)), self._most)
        self._max_packet_bytes = int(response.opened.max_packet_bytes)
        self._outgoing.agreed(opening, int(response.opened.references), self._window)
        self._frames.counters.streams_opened += 1
        self.endpoint.opened()

    async def run(self, give_up_seconds: float | None) -> None:
        """Sends and receives until the server ends the stream, which it does after a drain.

        Args:
            give_up_seconds: without any answer, although the server lives; None for ever.

        Raises:
            StreamError: the stream had to be left.
            RefusedError: the server does not keep the protocol.
            grpc.aio.AioRpcError: what the server or the connection says.
        """
        try:
            await first_of(self._receive_all(), self._send_all(), self._watch(give_up_seconds))
        finally:
            self._frames.release(self, self._in_flight)
            await self._close()

    async def _close(self) -> None:
        if self._question is not None:
            self._question.cancel()
        self._at_end()
        await self._wire.close()

    async def _send_all(self) -> None:
        """Sends what no stream carries, in order, never more than the window unanswered."""
        while not self.drained.is_set():
            self._frames.changed.clear()
            if self._ping_due:
                await self._ping()
            may = len(self._in_flight) < self._window and time.monotonic() >= self._held_until
            waiting = self._frames.fresh() if may else None
            if waiting is None:
                if not await self._send_source():
                    await self._frames.changed.wait()
            elif not await self._promise_more(len(waiting.data)):
                await self._send(waiting)
        await self._wire.done_writing()
        ends = time.monotonic() + self._grace_seconds
        while self._in_flight and time.monotonic() < ends:
            await asyncio.sleep(min(self._grace_seconds, liveness.TICK_SECONDS))
        # Nothing more is due but the server's word that it has ended the stream: a connection is not kept for its sake.
        left = min(max(0.0, ends - time.monotonic()), LEAVING_MS / 1000)
        await asyncio.sleep(left + LAST_ANSWERS_SECONDS)

    async def _send(self, waiting: Waiting) -> None:
        size, most = len(waiting.data), self._max_packet_bytes
        if 0 < most < size:
            code, message = grpc.StatusCode.INVALID_ARGUMENT, f"a packet of {size} bytes; the server takes {most}"
            result = pb.Result(frame_id=waiting.frame_id, code=code.value[0], message=message)
            self._frames.answer(waiting, result, 0.0)
            return
        data, sent = await self._outgoing.made(waiting)
        if waiting.answer.done():  # while it was made
            return
        size = len(data)
        waiting.sent = sent
        self._in_flight[waiting.frame_id] = _Sent(time.perf_counter(), sent, self._images)
        self._busy.set()
        counters = self._frames.counters
        counters.packets_sent += 1
        counters.packet_bytes_sent += size
        counters.packets_predicted += sent.kind is Kind.PREDICTED
        counters.packets_skipped += sent.kind is Kind.SKIP
        counters.packets_resent += waiting.times_sent > 0
        if self._frames.listener is not None:
            self._frames.listener.sent(waiting.frame_id, size)
        waiting.times_sent += 1
        waiting.carrier = self
        await self._wire.write(pb.StreamRequest(packet=data, deadline_ms=waiting.left_ms()))

    async def _send_source(self) -> bool:
        """Sends the source of a frame, where the server wants one and nothing else is to be sent."""
        idle = self._frames.fresh() is None and time.monotonic() >= self._held_until
        data = self._audit.ready() if self._audit is not None and idle else None
        if data is None:
            return False
        if not 0 < self._max_packet_bytes < len(data):
            self._writing = len(data)
            self._busy.set()
            await self._promise_more(len(data))
            self._images += len(data)
            await self._wire.write(pb.StreamRequest(audit=data))
            self._writing = 0
        return True

    async def _promise_more(self, size: int) -> bool:
        """Tells the server, where it is necessary, that a large packet takes its time, in which nothing else arrives."""
        seconds = self.endpoint.pace.promise_seconds(size, self.endpoint.patience)
        if seconds <= self._promised_seconds:
            return False
        self._promised_seconds = seconds
        await self._ping()
        return True

    async def _ping(self) -> None:
        self._ping_due = False
        self._pings += 1
        limit_ms = round(self._promised_seconds * 1000)
        await self._wire.write(pb.StreamRequest(ping=pb.Ping(number=self._pings, silence_limit_ms=limit_ms)))

    async def _receive_all(self) -> None:
        while (response := await self._wire.read()) is not None:
            self._silence.broken()
            kind = response.WhichOneof("message")
            if kind == "result":
                self._take(response.result)
            elif kind == "credits":
                self._window = min(int(response.credits.window), self._most)
                self._busy.set()
            elif kind == "pong":
                self._pongs = int(response.pong.number)
            elif kind == "drain":
                self._drain(response.drain)
            else:
                raise RefusedError("it does not answer like a tail server of this protocol")
            self._frames.changed.set()

    def _take(self, result: pb.Result) -> None:
        sent, now = self._in_flight.pop(result.frame_id, None), time.perf_counter()
        if result.audit and self._audit is not None:
            self._audit.ask(result.audit)
        if sent is None:
            self._frames.counters.results_unasked += 1
            return
        self._outgoing.answered(sent.packet, result)
        # How long a server has had a frame that it refuses it does not say: nothing is learned of the link from that.
        timed = not result.code or result.times.total_us > 0
        if self._frames.listener is not None:
            if timed:
                self._frames.listener.answered(result.frame_id, result.times.total_us / 1e6)
            else:
                self._frames.listener.lost(result.frame_id)
        if result.code == UNAVAILABLE and self._frames.give_back(result.frame_id):
            self.unavailable = f"UNAVAILABLE: {result.message}"
            self._drain(pb.Drain(grace_ms=LEAVING_MS))
            return
        self.answers += 1
        whole = now - sent.at
        on_the_way = max(0.0, whole - result.times.total_us / 1e6)
        ahead = self._images_ahead(sent)
        if ahead:  # no time for a frame of its size
            if timed:
                self.endpoint.pace.carried(on_the_way, ahead + sent.size)
            self._images_passed = sent.images
        elif timed:
            self.endpoint.pace.answered(min(on_the_way, now - self._answered_at), sent.size)
        self.endpoint.answered()
        self._answered_at = now
        if result.need_key and sent.packet.reference is not None:
            self._frames.want_key(result.frame_id)
            return
        hint = self._frames.settle(result, whole * 1000)
        if hint is not None:
            # Its room is short: the frames behind this one would be put off as well.
            self._held_until = max(self._held_until, time.monotonic() + hint)
            asyncio.get_running_loop().call_at(self._held_until, self._frames.changed.set)

    def _images_ahead(self, sent: _Sent) -> int:
        """Bytes of images for audit that a frame has to wait behind, as far as is known."""
        return max(0, sent.images - self._images_passed)

    def _drain(self, drain: pb.Drain) -> None:
        if not self.drained.is_set() and self.unavailable is None:
            self._frames.counters.drains += 1
        self.come_back = drain.come_back
        self._grace_seconds = drain.grace_ms / 1000
        self.drained.set()

    async def _watch(self, give_up_seconds: float | None) -> None:
        """Leaves a server that nothing is heard from, that answers no packet, or lets none be sent.

        Sleeps while none is under way, and no image for audit is being written, behind which frames would wait for ever.
        """
        while True:
            if not self._in_flight and not self._writing and self._window:
                self._busy.clear()
                await self._busy.wait()
                self._answered_at = time.perf_counter()
                self._silence.broken()
            await asyncio.sleep(liveness.TICK_SECONDS)
            self._silence.tick(self._socket.read())
            if not self._in_flight:
                waited = time.monotonic() - self._frames.progressed_at if len(self._frames) else 0.0
                if not self._window and give_up_seconds is not None and waited > give_up_seconds:
                    raise SilenceError(f"no packet may be sent (a window of 0) for {give_up_seconds:.0f} s")
                if self._writing:
                    self._question_silence()
                continue
            owed_since = max(self._answered_at, next(iter(self._in_flight.values())).at)
            if give_up_seconds is not None and time.perf_counter() - owed_since > give_up_seconds:
                raise SilenceError(f"packets are taken and none is answered for {give_up_seconds:.0f} s")
            self._question_silence()

    def _question_silence(self) -> None:
        oldest = next(iter(self._in_flight.values()), None)
        size, ahead = (0, self._writing) if oldest is None else (oldest.size, self._images_ahead(oldest))
        bound = self.endpoint.pace.bound_seconds(size, self.endpoint.patience, ahead)
        if self._silence.seconds > bound:
            self._frames.counters.hangs += 1
            what = "an image is being written" if oldest is None else "frames are under way"
            raise HungError(f"nothing is heard for {bound:.0f} s while {what}")
        quiet = self._silence.seconds > bound / 2
        if self.drained.is_set():  # nothing more may be said on the stream itself
            if quiet and (self._question is None or self._question.done()):
                self._question = asyncio.create_task(self._ask())
        elif (
            quiet and self._pongs == self._pings
        ) or time.monotonic() - self._wire.sent_at > self._promised_seconds / 3:
            self._ping_due = True
            self._frames.changed.set()

    async def _ask(self) -> None:
        """Whether somebody is there at all: it may just be slow."""
        try:
            await self._wire.health("")
        except grpc.aio.AioRpcError:
            return  # the stream itself says what is wrong
        self._silence.broken()
