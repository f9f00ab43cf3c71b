"""A client's link to its model: packets in, results out, each frame exactly once, over any number of streams and servers.

What is unanswered when a stream breaks is sent again over the next one, under the same stream id, to the same server or
another. Servers may so compute a frame twice; it is reported once. A stream that its server drains keeps its last answers
coming while the next one is in use already.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from typing import Literal

import grpc
import numpy as np
import numpy.typing as npt

from narrowcast.head.audit import AuditConsent, AuditFrames
from narrowcast.head.endpoints import Endpoint, Endpoints, To, parse_endpoints
from narrowcast.head.errors import LinkClosedError, LinkError, PeerUnreachableError, RefusedError
from narrowcast.head.socket_bytes import SocketBytes, SocketMeter
from narrowcast.head.stream import HungError, NotServingError, Stream, StreamError
from narrowcast.head.unanswered import Answered, LinkCounters, Listener, Unanswered
from narrowcast.head.video.chain import Source
from narrowcast.head.wire import let_go
from narrowcast.transport.errors import TransportError
from narrowcast.transport.packet import VERSION, Packet, StreamContext
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.credentials import ClientTls, explain
from narrowcast.transport.video import VideoCodec

# Statuses that another try cannot change. All others (UNAVAILABLE, DATA_LOSS, ...) are worth a new stream.
_FINAL = {
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
}
# Of a client whose certificate or token has run out while its stream was open: the files may hold newer ones by now.
_OF_THE_CALLER = {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}
# A server that ends a stream for that so soon, and has answered nothing, refuses this caller.
SETTLED_SECONDS = 5.0
OPEN_SECONDS = 10.0
# Where there are others to try; a server that needs longer gets twice as long the next time.
HURRIED_OPEN_SECONDS = 1.5
# Servers that take streams and answer nothing, again and again, are not ones to wait for.
MAX_FRUITLESS_STREAMS = 8

Priority = Literal["background", "normal", "urgent"]
PRIORITIES: dict[Priority, pb.Priority] = {
    "background": pb.PRIORITY_BACKGROUND,
    "normal": pb.PRIORITY_NORMAL,
    "urgent": pb.PRIORITY_URGENT,
}


class Link:
    """A link to one model on one or several servers. Must be made and used on one event loop.

    Nothing is sent while there is nothing to do: a link that was lost is taken up again when there is a frame for it.

    Args:
        to: ``HOST:PORT[,HOST:PORT...]``; a name stands for all its addresses. One server is used at a time, chosen by
            chance at first; the others while it is gone, draining, hung or refusing.
        model: the model's name there.
        fingerprint: of the codec, 16 bytes.
        tails: which of the model's tails to run; the first one, ``main``, where none is named.
        window: how many frames may be unanswered; the server may allow fewer.
        give_up_seconds: how long to try without any answer before frames fail; None for ever.
        keep_trying: never to fail for want of a server; ``give_up_seconds`` then ends silent streams alone.
        hold_refused: nor where every server refuses: they are asked again and again; may be changed.
        on_trouble: told, in a line, whenever the link breaks and is tried again.
        tls: what the server is known by, and this client; None for plain TCP.
        priority: which frames go first where they have to wait.
        audit: whether and how sources of frames are sent where the server asks for them; None: never.
        may_audit: whether so many bytes of a source are within budgets and caps now; it may wait for the disk.
        listener: is told of each packet.
        context: of a stream of an earlier run that is gone on with; one of its own if None.
        video: makes packets that refer to answered frames, of those that are sent with their symbols; None: there are none.

    Attributes:
        audit: is to be told of each frame's source; None where none is sent.

    Raises:
        AddressError: no address to connect to.
    """

    def __init__(
        self,
        to: To,
        model: str,
        fingerprint: bytes,
        *,
        tails: Sequence[str] = (),
        window: int = 8,
        give_up_seconds: float | None = 30.0,
        keep_trying: bool = False,
        hold_refused: bool = False,
        on_trouble: Callable[[str], None] | None = None,
        tls: ClientTls | None = None,
        priority: Priority = "normal",
        audit: AuditConsent | None = None,
        may_audit: Callable[[int], bool] | None = None,
        listener: Listener | None = None,
        context: StreamContext | None = None,
        video: VideoCodec | None = None,
    ) -> None:
        self.counters = LinkCounters()
        self.endpoints = Endpoints(parse_endpoints(to))
        self._model = model
        self._tails = list(tails)
        self._context = context or StreamContext(os.urandom(16), fingerprint, time.time_ns() // 1000)
        self._began = time.monotonic_ns()
        self._window = max(1, window)
        self._give_up_seconds = give_up_seconds
        self._keep_trying = keep_trying
        self.hold_refused = hold_refused
        self._on_trouble = on_trouble or (lambda line: None)
        self._tls = tls
        self._priority = PRIORITIES[priority]
        self._video = video
        self._frames = Unanswered(self.counters, self._window, listener)
        self.audit: AuditFrames | None = None
        if audit is not None:
            self.audit = AuditFrames(audit, self._context, self.counters, self._frames.changed.set, may_audit)
        self._wanted = asyncio.Event()
        self._failure: LinkError | None = None
        self._fruitless = 0
        self._stream: Stream | None = None
        self._drained: set[asyncio.Task[None]] = set()  # streams whose last answers are coming
        self._meter = SocketMeter(*self.endpoints.ports)
        self._task: asyncio.Task[None] | None = None

    @property
    def context(self) -> StreamContext:
        """What packets for this link must carry."""
        return self._context

    @property
    def failure(self) -> LinkError | None:
        """Why the link has failed for good; None while it has not."""
        return self._failure

    @property
    def connected(self) -> bool:
        """Whether a stream is open, as far as is known."""
        return self._stream is not None

    def now_us(self) -> int:
        """The time for packets: microseconds since 1970 by the clock as it was when the link was made.

        It goes on evenly where the system's clock jumps: boards without a battery for it boot in the past.
        """
        return self.us_at(time.monotonic())

    def us_at(self, seconds: float) -> int:
        """A moment of ``time.monotonic()`` as :meth:`now_us` tells it, at the earliest when the link was made."""
        return self._context.epoch_us + max(0, round(seconds * 1e6) - self._began // 1000)

    def socket_bytes(self) -> SocketBytes | None:
        """Bytes on this link's sockets so far; None where the system does not tell."""
        return self._meter.read()

    async def send(
        self, packet: Packet, expires_at: float | None = None, symbols: npt.NDArray[np.uint8] | None = None
    ) -> asyncio.Future[Answered]:
        """Queues a packet; waits while ``window`` packets are unanswered.

        Frame ids must increase. A frame whose future is cancelled is not sent any more; one that is on its way keeps its
        place among what the server allows until it is answered or the stream ends.

        Args:
            packet: of this link's :attr:`context`; a key frame or an image.
            expires_at: its deadline, in seconds of ``time.monotonic()``; what is left of it goes with the packet. At that
                time an unanswered frame is answered here, with DEADLINE_EXCEEDED. None for no deadline.
            symbols: of a key frame, uint8 ``[C, H, W]``: it may then be sent by reference to another frame.

        Returns:
            a future with the result and the milliseconds from sending to it.

        Raises:
            PacketError: the packet cannot be sent on this link.
            LinkError: the link has failed for good or was closed.
        """
        data = packet.to_stream_bytes(self._context)
        await self._frames.room()
        if self._failure is not None:
            self._frames.no_frame()
            raise self._failure
        source = None if symbols is None or self._video is None else Source(packet, symbols)
        answer = self._frames.add(packet.frame_id, data, expires_at, source)
        self.want()
        return answer

    def want(self) -> None:
        """There is use for a stream: one is opened if there is none."""
        self._wanted.set()
        if self._task is None and self._failure is None:
            self._task = asyncio.create_task(self._keep_up())

    async def close(self) -> None:
        """Ends the link; unanswered frames fail with :class:`LinkClosedError`."""
        self._meter.read()
        if self.audit is not None:
            await self.audit.close()
        self._fail(LinkClosedError(f"the client was closed while frames were under way to {self.endpoints}"))
        running = {task for task in (self._task, *self._drained) if task is not None}
        while running:  # a call that fails in the moment in which it is cancelled takes the cancelling with it
            for task in running:
                task.cancel()
            ended, running = await asyncio.wait(running, timeout=0.2)
            let_go(ended)
        self.endpoints.close()

    def _fail(self, error: LinkError) -> None:
        self._failure = self._failure or error
        self._frames.fail(self._failure)

    async def _keep_up(self) -> None:
        """Opens streams while there is a point in another."""
        leave: Endpoint | None = None
        try:
            while (stream := await self._connect(leave)) is not None:
                leave = await self._use(stream)
        except Exception as error:
            self._fail(LinkError(f"the link to {self.endpoints} failed: {type(error).__name__}: {error}"))
            raise

    async def _connect(self, leave: Endpoint | None) -> Stream | None:
        """A stream, at the best endpoint that takes one; None where the link has failed for good.

        Args:
            leave: to be tried last: it wants to be rid of this client.
        """
        self._wanted.clear()
        while not self._is_over():
            if not len(self._frames):
                await self._wanted.wait()
                self._wanted.clear()
            await self.endpoints.refresh()
            if (stream := await self._try_all(leave)) is not None:
                return stream
            if not self._is_over():
                await asyncio.sleep(max(0.01, self.endpoints.seconds_to_next()))
        return None

    async def _try_all(self, leave: Endpoint | None) -> Stream | None:
        alone = len(self.endpoints) == 1
        unfit: list[Endpoint] = []
        for endpoint in self.endpoints.in_order(leave):
            try:
                return await self._open(endpoint, hurried=not alone, ask_health=not alone)
            except NotServingError as error:
                unfit.append(endpoint)
                self._tell(endpoint, str(error))
            except (LinkError, StreamError, TransportError, grpc.aio.AioRpcError) as error:
                self._note(endpoint, error)
        for endpoint in unfit:  # better than none
            try:
                return await self._open(endpoint, hurried=True, ask_health=False)
            except (LinkError, StreamError, TransportError, grpc.aio.AioRpcError) as error:
                self._note(endpoint, error)
        return None

    async def _open(self, endpoint: Endpoint, *, hurried: bool, ask_health: bool) -> Stream:
        opening = pb.Open(
            model=self._model,
            codec_fingerprint=self._context.fingerprint,
            packet_version=VERSION,
            stream_id=self._context.stream_id,
            epoch_us=self._context.epoch_us,
            window=self._window,
            tails=self._tails,
            resume_from=self._frames.first_id,
            priority=self._priority,
            audit=self.audit is not None,
        )
        seconds = min(OPEN_SECONDS, HURRIED_OPEN_SECONDS * endpoint.patience) if hurried else OPEN_SECONDS
        stream = await Stream.open(
            endpoint, opening, self._frames, tls=self._tls, seconds=seconds, ask_health=ask_health,
            at_end=self._meter.read, audit=self.audit, video=self._video,
        )  # fmt: skip
        self.endpoints.use(endpoint)
        return stream

    async def _use(self, stream: Stream) -> Endpoint | None:
        """Serves a stream until it breaks or drains.

        Returns:
            the endpoint, if it wants to be rid of this client.
        """
        if self._keep_trying:  # however long there was none: this stream owes no answer until now
            self._frames.progressed_at = time.monotonic()
        self._stream, opened_at = stream, time.monotonic()
        self._frames.changed.set()
        running = asyncio.create_task(stream.run(self._give_up_seconds))
        draining = asyncio.create_task(stream.drained.wait())
        try:
            await asyncio.wait([running, draining], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            let_go([running])
            raise
        finally:
            draining.cancel()
            self._stream = None
        if stream.drained.is_set():
            if stream.unavailable is not None:
                self._note(stream.endpoint, StreamError(stream.unavailable))
            elif not stream.answers:  # a server that drains every stream at once is not asked without a pause
                self.endpoints.failed(stream.endpoint, "it drains new streams")
            self._drained.add(running)
            running.add_done_callback(self._end_drained)
            return None if stream.come_back else stream.endpoint
        self._fruitless = 0 if stream.answers or not len(self._frames) else self._fruitless + 1
        known = stream.answers > 0 or time.monotonic() - opened_at > SETTLED_SECONDS
        ended = running.exception() or StreamError("the server ended the stream")
        self._note(stream.endpoint, ended, opened=True, known=known)
        return None

    def _end_drained(self, running: asyncio.Task[None]) -> None:
        """A drained stream has ended; what it left unanswered has gone back to be sent again."""
        self._drained.discard(running)
        if not running.cancelled():
            running.exception()  # however it ended

    def _note(self, endpoint: Endpoint, error: BaseException, *, opened: bool = False, known: bool = False) -> None:
        """What went wrong with a stream; one that was ``opened`` has no trouble with TLS, whatever a broken link looks like.

        ``known``: the server took this caller before.
        """
        status: str | None = None
        if isinstance(error, grpc.aio.AioRpcError):
            status = error.code().name
            refused = error.code() in _FINAL and not (known and error.code() in _OF_THE_CALLER)
            trouble = str(error.details()) if refused else f"{error.code().name}: {error.details()}"
            if error.code() is grpc.StatusCode.UNAVAILABLE and not opened:
                trouble = explain(endpoint.address, endpoint.name, self._tls, str(error.details())) or trouble
        elif isinstance(error, RefusedError | StreamError | TransportError):
            refused, trouble = isinstance(error, RefusedError), str(error)
        else:
            raise error
        hung = isinstance(error, HungError)
        self.endpoints.failed(endpoint, trouble, refused=refused, status=status, hung=hung)
        if not self._is_hopeless() and (self.hold_refused or self.endpoints.refusals() is None):
            self._tell(endpoint, trouble)

    def _tell(self, endpoint: Endpoint, trouble: str) -> None:
        if trouble != endpoint.told:  # the same trouble again is no news
            self._on_trouble(f"link to {endpoint.address}: {trouble}; trying again")
        endpoint.told = trouble

    def _is_over(self) -> bool:
        """Whether there is no point in another try; fails the link then."""
        if (refusals := self.endpoints.refusals()) is not None and not self.hold_refused:
            self._fail(RefusedError(refusals, self.endpoints.words()))
        elif self._is_hopeless():
            troubles = self.endpoints.troubles()
            self._fail(PeerUnreachableError(f"no answer from a tail server at {self.endpoints} ({troubles})"))
        return self._failure is not None

    def _is_hopeless(self) -> bool:
        if self._give_up_seconds is None or self._keep_trying or not len(self._frames):
            return False
        silent = time.monotonic() - self._frames.progressed_at > self._give_up_seconds
        return silent or self._fruitless >= MAX_FRUITLESS_STREAMS
