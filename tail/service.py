"""The gRPC service: packets to the batcher, answers back, in order (``transport/rpc/narrowcast/tail/v1/tail.proto``)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import grpc

from narrowcast.tail.batcher import Answer, Batcher
from narrowcast.tail.errors import FrameRefusedError
from narrowcast.transport.errors import PacketError
from narrowcast.transport.packet import VERSION, Packet, StreamContext
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.channels import MAX_PACKET_BYTES
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceServicer
from narrowcast.transport.tasks import MAIN

MAX_WINDOW = 64
Context = grpc.aio.ServicerContext[Any, Any]


class _EndedError(Exception):
    """A stream ends with this status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class TailService(TailServiceServicer):
    """Serves the batchers' models.

    Args:
        batchers: by model name.
    """

    def __init__(self, batchers: Mapping[str, Batcher]) -> None:
        self._batchers = batchers
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """From now on: no new streams; open ones answer what they have taken in, and end."""
        self._draining.set()

    async def Stream(self, request_iterator: Any, context: Context) -> None:
        """See the .proto."""
        try:
            await _Stream(self._batchers, self._draining, context).serve()
        except _EndedError as ended:
            await context.abort(ended.code, str(ended))

    async def Infer(self, request: pb.InferRequest, context: Context) -> pb.InferResponse:
        """See the .proto."""
        arrived = time.perf_counter()
        try:
            packet = Packet.from_bytes(request.packet)
            batcher = _find(self._batchers, request.model, packet.fingerprint, VERSION)
            tails = _tails(batcher, request.tails)
        except PacketError as error:
            await context.abort(grpc.StatusCode.DATA_LOSS, str(error))
        except _EndedError as ended:
            await context.abort(ended.code, str(ended))
        result = await _result(packet, _submit(batcher, packet, tails), arrived)
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
                for name, batcher in self._batchers.items()
            ]
        )


class _Stream:
    """One open stream: a task that takes packets in, and the handler that sends answers out in their order."""

    def __init__(self, batchers: Mapping[str, Batcher], draining: asyncio.Event, context: Context) -> None:
        self._batchers = batchers
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
        stream, batcher = await self._open()
        taking = asyncio.create_task(self._take_in(stream, batcher))
        draining = asyncio.create_task(self._stop_when_draining(taking))
        try:
            while (item := await self._under_way.get()) is not None:
                if isinstance(item, _EndedError):
                    raise item
                result = await _result(*item)
                self._answered += 1
                await self._context.write(pb.StreamResponse(result=result))
        finally:
            taking.cancel()
            draining.cancel()
            while not self._under_way.empty():  # nobody waits for these any more
                if isinstance(left := self._under_way.get_nowait(), tuple):
                    left[1].cancel()

    async def _open(self) -> tuple[StreamContext, Batcher]:
        request = await self._context.read()
        if request is grpc.aio.EOF or not request.HasField("open"):
            raise _EndedError(grpc.StatusCode.INVALID_ARGUMENT, "the first message of a stream is `open`")
        wanted = request.open
        if len(wanted.stream_id) != 16:
            raise _EndedError(
                grpc.StatusCode.INVALID_ARGUMENT, f"a stream id has 16 bytes, not {len(wanted.stream_id)}"
            )
        batcher = _find(self._batchers, wanted.model, wanted.codec_fingerprint, wanted.packet_version)
        self._tails = _tails(batcher, wanted.tails)
        self._window = min(max(1, wanted.window), MAX_WINDOW)
        await self._context.write(
            pb.StreamResponse(
                opened=pb.Opened(
                    model=wanted.model,
                    release=batcher.model.manifest.release,
                    window=self._window,
                    max_packet_bytes=MAX_PACKET_BYTES,
                )
            )
        )
        return StreamContext(wanted.stream_id, wanted.codec_fingerprint, wanted.epoch_us), batcher

    async def _take_in(self, stream: StreamContext, batcher: Batcher) -> None:
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
                self._under_way.put_nowait((packet, _submit(batcher, packet, self._tails), arrived))
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


def _find(batchers: Mapping[str, Batcher], model: str, fingerprint: bytes, packet_version: int) -> Batcher:
    """The batcher for a client's model.

    Raises:
        _EndedError: no such model, another codec, or another packet version; says what the server has.
    """
    if packet_version != VERSION:
        raise _EndedError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"the client speaks packet version {packet_version}, this server {VERSION}; update the older one",
        )
    batcher = batchers.get(model)
    if batcher is None:
        raise _EndedError(
            grpc.StatusCode.FAILED_PRECONDITION, f"no model {model[:80]!r} here; there is {', '.join(sorted(batchers))}"
        )
    known = batcher.model.codec.fingerprint
    if fingerprint != known:
        raise _EndedError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"the client's bundle of {model!r} has the codec {fingerprint[:16].hex()}, the server's release "
            f"{batcher.model.manifest.release} has {known.hex()}; both must come from one compilation",
        )
    return batcher
