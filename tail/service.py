"""The gRPC service: packets to the batcher, answers back, in order (``docs/protocol.md``)."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc

from narrowcast.tail.access import Context, Gate, OpenGate
from narrowcast.tail.clock import stamp
from narrowcast.tail.errors import FrameRefusedError
from narrowcast.tail.frame import Frame, priority_of
from narrowcast.tail.models import ModelTable, Slot
from narrowcast.tail.observe import Auditor, Observer, Silent, StreamInfo, record_of
from narrowcast.tail.opening import EndedError, admit, choose_tails, find_slot, rate_refusal, refusal_of
from narrowcast.tail.references import Room
from narrowcast.tail.stream import Ageing, OpenStream
from narrowcast.transport.errors import PacketError
from narrowcast.transport.packet import VERSION, Packet
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceServicer

OPEN_SECONDS = 10.0
_WATCH_SECONDS = 0.5


class TailService(TailServiceServicer):
    """Serves models. Must be made and used on one event loop.

    Args:
        models: what there is.
        gate: who may use it.
        observer: is told what happens.
        ageing: when streams are asked to move.
        auditor: wants sources of frames; None: no client is ever asked for one.
    """

    def __init__(
        self,
        models: ModelTable,
        *,
        gate: Gate | None = None,
        observer: Observer | None = None,
        ageing: Ageing | None = None,
        auditor: Auditor | None = None,
    ) -> None:
        self._models = models
        self._gate = gate or OpenGate()
        self._observer = observer or Silent()
        self._ageing = ageing or Ageing()
        self._auditor = auditor
        self._room = Room()
        self._draining = False
        self._opening: set[asyncio.Task[Any]] = set()
        self._streams: dict[Slot, set[OpenStream]] = {}
        self._watching: dict[Slot, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._gate.when_full(self._knock)

    def drain(self, grace_seconds: float = 10.0) -> None:
        """From now on: no new streams; open ones are asked to move, and end within ``grace_seconds``."""
        self._draining = True
        for handler in self._opening:
            handler.cancel()
        for streams in self._streams.values():
            for stream in streams:
                stream.drain("shutdown", False, grace_seconds)

    async def Stream(self, request_iterator: Any, context: Context) -> None:
        """See the .proto."""
        stream = OpenStream(
            self._models, self._gate, self._observer, self._ageing, context, self._auditor, self._room
        )  # fmt: skip
        try:
            await self._open(stream)
        except EndedError as ended:
            self._observer.refused(stream.info.client, stream.info.model, ended.code.name)
            await context.abort(ended.code, str(ended))
        self._enter(stream)
        try:
            await stream.serve()
        except EndedError as ended:
            await context.abort(ended.code, str(ended))
        finally:
            self._leave(stream)

    async def Infer(self, request: pb.InferRequest, context: Context) -> pb.InferResponse:
        """See the .proto."""
        arrived = time.perf_counter()
        client = ""
        try:
            client = admit(self._gate, context, request.model)
            self._check_serving()
            packet = Packet.from_bytes(request.packet)
            slot = find_slot(self._models, request.model, packet.fingerprint, VERSION)
            tails = choose_tails(slot.batcher, request.tails)
        except PacketError as error:
            self._observer.refused(client, request.model, grpc.StatusCode.DATA_LOSS.name)
            await context.abort(grpc.StatusCode.DATA_LOSS, str(error))
        except EndedError as ended:
            self._observer.refused(client, request.model, ended.code.name)
            await context.abort(ended.code, str(ended))
        left = context.time_remaining()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        frame = Frame(
            packet,
            tails,
            client=client,
            priority=self._gate.priority(client, priority_of(request.priority)),
            deadline=None if left is None else arrived + left,
            on_done=lambda _: None if done.done() else done.set_result(None),
            packet_bytes=len(request.packet),
            arrived=arrived,
        )
        await self._computed(frame, slot, done)
        assert frame.response is not None
        result = frame.response.result
        if not result.code:
            stamp(result.times, arrived)
        self._observer.frame_done(record_of(StreamInfo(client, request.model, b""), frame))
        return pb.InferResponse(result=result)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """See the .proto."""
        try:
            admit(self._gate, context)
        except EndedError as ended:
            self._observer.refused("", "", ended.code.name)
            await context.abort(ended.code, str(ended))
        return pb.ListModelsResponse(
            models=[
                pb.Model(
                    name=name,
                    release=batcher.model.manifest.release,
                    codec_fingerprint=batcher.model.codec.fingerprint,
                    symbols_shape=batcher.model.codec.spec.shape,
                    levels=batcher.model.codec.spec.levels,
                    tails=batcher.model.tails,
                    images=bool(batcher.model.image_tails),
                )
                for name, batcher in ((slot.name, slot.batcher) for slot in self._models)
            ]
        )

    async def _open(self, stream: OpenStream) -> None:
        """Takes a client's `open`; one that sends none must neither stay for ever nor hold up the server's end."""
        self._check_serving()
        handler = asyncio.current_task()
        assert handler is not None
        self._opening.add(handler)
        try:
            await asyncio.wait_for(stream.open(), OPEN_SECONDS)
        except asyncio.TimeoutError as error:  # TimeoutError itself from Python 3.11 on
            raise EndedError(grpc.StatusCode.DEADLINE_EXCEEDED, f"no `open` within {OPEN_SECONDS:.0f} s") from error
        except asyncio.CancelledError:
            self._check_serving()
            raise
        finally:
            self._opening.discard(handler)
        self._check_serving()

    async def _computed(self, frame: Frame, slot: Slot, done: asyncio.Future[None]) -> None:
        """Returns once the frame has its response; a cancelled call's frame is not computed."""
        batcher = slot.batcher
        refused: FrameRefusedError | None = rate_refusal(self._gate, frame.client, frame.packet_bytes)
        refused = refused or refusal_of(batcher, frame.packet, frame.tails)
        if refused is not None:
            frame.release = batcher.model.manifest.release
            frame.refuse(refused)
            return
        batcher.put(frame)
        try:
            await done
        finally:
            frame.drop()  # nothing, where it is answered

    def _check_serving(self) -> None:
        if self._draining:
            raise EndedError(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")

    # The streams

    def _enter(self, stream: OpenStream) -> None:
        slot = stream.slot
        assert slot is not None
        streams = self._streams.get(slot)
        if streams is None:
            streams = self._streams[slot] = set()
            self._watching[slot] = asyncio.get_running_loop().create_task(self._drain_retired(slot, streams))
        elif slot.retired.is_set():  # while this one was opened; the others have been told
            stream.drain("model unloaded", True, self._ageing.grace_seconds)
        streams.add(stream)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_WATCH_SECONDS, self._watch)

    def _leave(self, stream: OpenStream) -> None:
        slot = stream.slot
        assert slot is not None
        streams = self._streams[slot]
        streams.discard(stream)
        if not streams:
            del self._streams[slot]
            self._watching.pop(slot).cancel()
            if not self._streams and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    async def _drain_retired(self, slot: Slot, streams: set[OpenStream]) -> None:
        """One task for all streams of a slot, since most servers have many streams and few models."""
        await slot.retired.wait()
        for stream in list(streams):
            stream.drain("model unloaded", True, self._ageing.grace_seconds)

    def _knock(self, client: str | None) -> None:
        """There is no room: perhaps some streams, of this client or (None) of all, are held by nobody any more."""
        now = time.monotonic()
        for streams in self._streams.values():
            for stream in streams:
                if client is None or stream.info.client == client:
                    stream.knock(now)

    def _watch(self) -> None:
        """Looks for silent clients."""
        self._timer = asyncio.get_running_loop().call_later(_WATCH_SECONDS, self._watch)
        now = time.monotonic()
        for streams in self._streams.values():
            for stream in streams:
                stream.watch(now)
