"""The gRPC service: packets to the batcher, answers back, in order (``transport/rpc/narrowcast/tail/v1/tail.proto``)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc

from narrowcast.tail.access import Context, Gate, OpenGate
from narrowcast.tail.batcher import Answer, Batcher
from narrowcast.tail.errors import AccessError, FrameRefusedError, ModelUnavailableError
from narrowcast.tail.models import ModelTable, Slot
from narrowcast.tail.observe import FrameRecord, Observer, Silent, StreamInfo
from narrowcast.transport.errors import PacketError
from narrowcast.transport.packet import STREAM_HEADER_BYTES, VERSION, Packet, StreamContext
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.channels import MAX_PACKET_BYTES
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceServicer
from narrowcast.transport.tasks import MAIN

MAX_WINDOW = 64


class _EndedError(Exception):
    """A stream ends with this status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class TailService(TailServiceServicer):
    """Serves models.

    Args:
        models: what there is.
        gate: who may use it.
        observer: is told what happens.
    """

    def __init__(self, models: ModelTable, *, gate: Gate | None = None, observer: Observer | None = None) -> None:
        self._models = models
        self._gate = gate or OpenGate()
        self._observer = observer or Silent()
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """From now on: no new streams; open ones answer what they have taken in, and end."""
        self._draining.set()

    async def Stream(self, request_iterator: Any, context: Context) -> None:
        """See the .proto."""
        try:
            await _Stream(self._models, self._gate, self._observer, self._draining, context).serve()
        except _EndedError as ended:
            await context.abort(ended.code, str(ended))

    async def Infer(self, request: pb.InferRequest, context: Context) -> pb.InferResponse:
        """See the .proto."""
        arrived = time.perf_counter()
        try:
            client = _admit(self._gate, context)
            packet = Packet.from_bytes(request.packet)
            batcher = _find(self._models, request.model, packet.fingerprint, VERSION).batcher
            tails = _tails(batcher, request.tails)
        except PacketError as error:
            await context.abort(grpc.StatusCode.DATA_LOSS, str(error))
        except _EndedError as ended:
            await context.abort(ended.code, str(ended))
        result = await _result(packet, _submit(batcher, packet, tails), arrived)
        stream = StreamInfo(client, request.model, b"")
        self._observer.frame_done(_record(stream, batcher, packet, result))
        return pb.InferResponse(result=result)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """See the .proto."""
        return pb.ListModelsResponse(
            models=[
                pb.Model(
                    name=name,
                    release=batcher.model.manifest.release,
                    codec_fingerprint=batcher.model.codec.fingerprint,
                    symbols_shape=batcher.model.codec.spec.shape,
                    levels=batcher.model.codec.spec.levels,
                    tails=batcher.model.tails,
                )
                for name, batcher in ((slot.name, slot.batcher) for slot in self._models)
            ]
        )


class _Stream:
    """One open stream: a task that takes packets in, and the handler that sends answers out in their order."""

    def __init__(
        self, models: ModelTable, gate: Gate, observer: Observer, draining: asyncio.Event, context: Context
    ) -> None:
        self._models = models
        self._gate = gate
        self._observer = observer
        self._draining = draining
        self._context = context
        self._window = 0
        self._tails = frozenset([MAIN])
        self._taken = 0
        self._answered = 0
        # A packet's answer to come, an error that ends the stream, or None at its end.
        self._under_way: asyncio.Queue[tuple[Packet, asyncio.Future[Answer], float] | _EndedError | None] = (
            asyncio.Queue()
        )

    async def serve(self) -> None:
        if self._draining.is_set():
            raise _EndedError(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        info, stream, slot = await self._open()
        self._observer.stream_opened(info)
        reason = "OK"
        try:
            await self._answer(info, stream, slot)
        except _EndedError as ended:
            reason = ended.code.name
            raise
        except asyncio.CancelledError:
            reason = "CANCELLED"
            raise
        finally:
            self._observer.stream_closed(info, reason)

    async def _answer(self, info: StreamInfo, stream: StreamContext, slot: Slot) -> None:
        taking = asyncio.create_task(self._take_in(stream, slot))
        draining = asyncio.create_task(self._stop_when_draining(taking))
        try:
            while (item := await self._under_way.get()) is not None:
                if isinstance(item, _EndedError):
                    raise item
                result = await _result(*item)
                self._answered += 1
                self._observer.frame_done(_record(info, slot.batcher, item[0], result))
                await self._context.write(pb.StreamResponse(result=result))
        finally:
            taking.cancel()
            draining.cancel()
            while not self._under_way.empty():  # nobody waits for these any more
                if isinstance(left := self._under_way.get_nowait(), tuple):
                    left[1].cancel()

    async def _open(self) -> tuple[StreamInfo, StreamContext, Slot]:
        client = _admit(self._gate, self._context)
        request = await self._context.read()
        if request is grpc.aio.EOF or not request.HasField("open"):
            raise _EndedError(grpc.StatusCode.INVALID_ARGUMENT, "the first message of a stream is `open`")
        wanted = request.open
        if len(wanted.stream_id) != 16:
            raise _EndedError(
                grpc.StatusCode.INVALID_ARGUMENT, f"a stream id has 16 bytes, not {len(wanted.stream_id)}"
            )
        slot = _find(self._models, wanted.model, wanted.codec_fingerprint, wanted.packet_version)
        self._tails = _tails(slot.batcher, wanted.tails)
        self._window = min(max(1, wanted.window), MAX_WINDOW)
        await self._context.write(
            pb.StreamResponse(
                opened=pb.Opened(
                    model=wanted.model,
                    release=slot.batcher.model.manifest.release,
                    window=self._window,
                    max_packet_bytes=MAX_PACKET_BYTES,
                    client=client,
                )
            )
        )
        info = StreamInfo(client, wanted.model, wanted.stream_id)
        return info, StreamContext(wanted.stream_id, wanted.codec_fingerprint, wanted.epoch_us), slot

    async def _take_in(self, stream: StreamContext, slot: Slot) -> None:
        """Packets to the batcher, until the client has no more or breaks the rules."""
        try:
            while (request := await self._context.read()) is not grpc.aio.EOF:
                arrived = time.perf_counter()
                if not request.HasField("packet"):
                    raise _EndedError(grpc.StatusCode.INVALID_ARGUMENT, "after `open`, a stream carries packets")
                if self._taken - self._answered >= self._window:
                    raise _EndedError(
                        grpc.StatusCode.RESOURCE_EXHAUSTED, f"more than {self._window} unanswered frames (the window)"
                    )
                packet = Packet.from_stream_bytes(request.packet, stream)
                self._taken += 1
                self._under_way.put_nowait((packet, _submit(slot.batcher, packet, self._tails), arrived))
            self._under_way.put_nowait(None)
        except PacketError as error:
            self._under_way.put_nowait(_EndedError(grpc.StatusCode.DATA_LOSS, str(error)))
        except _EndedError as ended:
            self._under_way.put_nowait(ended)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  (the peer is gone, or broke the framing underneath)
            self._under_way.put_nowait(
                _EndedError(grpc.StatusCode.UNAVAILABLE, f"reading from the client failed: {error}")
            )

    async def _stop_when_draining(self, taking: asyncio.Task[None]) -> None:
        await self._draining.wait()
        taking.cancel()
        self._under_way.put_nowait(_EndedError(grpc.StatusCode.UNAVAILABLE, "the server is shutting down"))


def _tails(batcher: Batcher, wanted: Sequence[str]) -> frozenset[str]:
    """The tails that a client asks for. One that names none has a bundle of an age that knew of the first one alone.

    Raises:
        _EndedError: the model has no such tail.
    """
    unknown = sorted(set(wanted) - set(batcher.model.tails))
    if unknown:
        release, there = batcher.model.manifest.release, ", ".join(batcher.model.tails)
        raise _EndedError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"no tail {unknown[0][:80]!r} in {batcher.model.name!r}, release {release}; it has {there}",
        )
    return frozenset(wanted or [MAIN])


def _submit(batcher: Batcher, packet: Packet, tails: frozenset[str]) -> asyncio.Future[Answer]:
    spec = batcher.model.codec.spec
    refused: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    if packet.codec is not batcher.model.codec.codec_id:
        wanted = batcher.model.codec.codec_id.name
        message = f"a packet with codec {packet.codec.name}; {batcher.model.name!r} has {wanted}"
    elif packet.level >= spec.levels:
        message = f"a packet of level {packet.level}; {batcher.model.name!r} has levels 0..{spec.levels - 1}"
    else:
        return batcher.submit(packet, tails)
    refused.set_exception(FrameRefusedError(grpc.StatusCode.INVALID_ARGUMENT.value[0], message))
    return refused


async def _result(packet: Packet, answer: asyncio.Future[Answer], arrived: float) -> pb.Result:
    try:
        outputs, times = await answer
    except FrameRefusedError as error:
        return pb.Result(frame_id=packet.frame_id, code=error.code, message=str(error))
    times.total_us = round((time.perf_counter() - arrived) * 1e6)
    return pb.Result(frame_id=packet.frame_id, outputs=outputs, times=times)


def _admit(gate: Gate, context: Context) -> str:
    """The caller's name.

    Raises:
        _EndedError: it is not to be served.
    """
    try:
        return gate.client(context)
    except AccessError as error:
        raise _EndedError(error.code, str(error)) from error


def _record(stream: StreamInfo, batcher: Batcher, packet: Packet, result: pb.Result) -> FrameRecord:
    started = time.perf_counter()
    size = result.ByteSize()
    encode_ms = (time.perf_counter() - started) * 1000
    packet_bytes = len(packet.payload) + STREAM_HEADER_BYTES
    return FrameRecord(stream, batcher.model.manifest.release, packet, packet_bytes, result, size, encode_ms)


def _find(models: ModelTable, model: str, fingerprint: bytes, packet_version: int) -> Slot:
    """The slot for a client's model.

    Raises:
        _EndedError: no such model, another codec, or another packet version; says what the server has.
    """
    if packet_version != VERSION:
        raise _EndedError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"the client speaks packet version {packet_version}, this server {VERSION}; update the older one",
        )
    try:
        return models.find(model, fingerprint)
    except ModelUnavailableError as error:
        raise _EndedError(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from error
