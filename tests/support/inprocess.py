"""The tail service over a real socket, in the test's own event loop, with a tail that can be held."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import numpy as np

from narrowcast.tail.batcher import Batcher
from narrowcast.tail.models import ModelTable
from narrowcast.tail.observe import Observers, Silent
from narrowcast.tail.service import TailService
from narrowcast.tail.store import Model
from narrowcast.transport.packet import VERSION, CodecId, Packet, StreamContext
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.channels import SERVER_OPTIONS
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceStub, add_TailServiceServicer_to_server
from narrowcast.transport.rpc.tensors import from_tensors
from support import bundles


class HeldBackend:
    """Runs the tail when it is told to, and writes down the batches."""

    name = "held"

    def __init__(self, inner, held: bool = True) -> None:
        self.inner = inner
        self.go = threading.Event()
        self.batches: list[int] = []
        self.levels: list[int] = []
        if not held:
            self.go.set()

    def run(self, symbols, levels):
        self.batches.append(len(symbols))
        self.levels += levels.tolist()
        assert self.go.wait(20)
        return self.inner.run(symbols, levels)


class SteppedBackend(HeldBackend):
    """Runs as many batches as it is told to."""

    def __init__(self, inner) -> None:
        super().__init__(inner)
        self.steps = threading.Semaphore(0)

    def run(self, symbols, levels):
        self.batches.append(len(symbols))
        assert self.go.is_set() or self.steps.acquire(timeout=20)
        return self.inner.run(symbols, levels)


def held(model: Model, held: bool = True) -> Model:
    """The model with a tail that can be held."""
    return Model(
        model.manifest, model.codec, HeldBackend(model.backend, held), {}, model.whole, video=model.video
    )  # fmt: skip


async def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> None:
    """Returns as soon as ``condition()`` holds; fails after ``seconds``."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while not condition():
        assert loop.time() < end, f"after {seconds} s still not: {what}"
        await asyncio.sleep(0.002)


class Recorder(Silent):
    """An observer that remembers."""

    def __init__(self) -> None:
        self.opened, self.closed, self.refusals, self.frames, self.batches = [], [], [], [], []

    def stream_opened(self, stream):
        self.opened.append(stream)

    def stream_closed(self, stream, reason):
        self.closed.append((stream, reason))

    def refused(self, client, model, code):
        self.refusals.append((client, model, code))

    def frame_done(self, record):
        self.frames.append(record)

    def batch_done(self, model, size, queued):
        self.batches.append((model, size, queued))


class Running:
    """A service, its table and its address."""

    def __init__(self, table: ModelTable, service: TailService, address: str, recorder: Recorder) -> None:
        self.table, self.service, self.address, self.recorder = table, service, address, recorder

    @contextlib.asynccontextmanager
    async def stub(self, **options: int) -> AsyncIterator[TailServiceStub]:
        given = [("grpc.use_local_subchannel_pool", 1), *((f"grpc.{key}", value) for key, value in options.items())]
        async with grpc.aio.insecure_channel(self.address, options=given) as channel:
            yield TailServiceStub(channel)


@contextlib.asynccontextmanager
async def running(model: Model, *, gate=None, ageing=None, auditor=None, **limits) -> AsyncIterator[Running]:
    """A service with one model, for the length of the block."""
    table, recorder = ModelTable(), Recorder()
    observer = recorder if auditor is None else Observers([recorder, auditor])
    table.publish(Batcher(model, observer=observer, **limits))
    service = TailService(table, gate=gate, observer=observer, ageing=ageing, auditor=auditor)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    add_TailServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    batchers = [slot.batcher for slot in table]
    try:
        yield Running(table, service, f"127.0.0.1:{port}", recorder)
    finally:
        for batcher in {*batchers, *(slot.batcher for slot in table)}:
            if isinstance(backend := batcher.model.backend, HeldBackend):
                backend.go.set()
            await batcher.close()
        await server.stop(0)


class RawStream:
    """A stream as the wire has it, for tests that break the rules or watch what is said."""

    def __init__(self, stub: TailServiceStub, model: Model, **opening) -> None:
        self.model = model
        self.context = StreamContext(os.urandom(16), model.codec.fingerprint, 1_000)
        self.call = stub.Stream()
        self.opening = {
            "model": model.name,
            "codec_fingerprint": model.codec.fingerprint,
            "packet_version": VERSION,
            "stream_id": self.context.stream_id,
            "epoch_us": self.context.epoch_us,
            "window": 8,
            **opening,
        }

    async def open(self) -> pb.Opened:
        await self.call.write(pb.StreamRequest(open=pb.Open(**self.opening)))
        return (await self.call.read()).opened

    def packet(self, frame_id: int, **change) -> Packet:
        symbols = np.full(self.model.codec.spec.shape, frame_id % 16, np.uint8)
        payload = self.model.codec.encode(symbols, 1)
        made = Packet(CodecId.RANS, 1, frame_id, 2_000, payload, self.context.stream_id, self.context.fingerprint)
        return made._replace(**change)

    async def send(self, *frame_ids: int, deadline_ms: int = 0, **change) -> None:
        for frame_id in frame_ids:
            data = self.packet(frame_id, **change).to_stream_bytes(self.context)
            await self.call.write(pb.StreamRequest(packet=data, deadline_ms=deadline_ms))

    async def settle(self) -> None:
        """Returns when the server has read all that was sent, while no answer is on its way."""
        await self.call.write(pb.StreamRequest(ping=pb.Ping(number=1)))
        response = await self.read()
        assert response.pong.number == 1, response

    async def read(self) -> pb.StreamResponse:
        response = await asyncio.wait_for(self.call.read(), 20)
        assert response is not grpc.aio.EOF, "the stream has ended"
        return response

    async def result(self) -> pb.Result:
        response = await self.read()
        assert response.HasField("result"), response
        return response.result

    async def ending(self) -> tuple[grpc.StatusCode, list[pb.StreamResponse]]:
        """Reads to the end; its status, and what came."""
        responses = []
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while (response := await asyncio.wait_for(self.call.read(), 20)) is not grpc.aio.EOF:
                responses.append(response)
        return await self.call.code(), responses


@contextlib.asynccontextmanager
async def stream(server: Running, model: Model, **opening) -> AsyncIterator[RawStream]:
    """An open stream over a connection of its own."""
    async with server.stub() as stub:
        raw = RawStream(stub, model, **opening)
        await raw.open()
        yield raw
        raw.call.cancel()


def value(result: pb.Result) -> float:
    """The first number of the first output."""
    return float(from_tensors(result.outputs, bundles.OUTPUTS)["output"][0])
