"""A tail server on a real socket that does with each stream what a test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from narrowcast.transport.packet import Packet, StreamContext
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceServicer, add_TailServiceServicer_to_server
from narrowcast.transport.rpc.tensors import to_tensor

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Conversation:
    """One stream: what has arrived, and what is said. Pings are answered at once unless ``deaf``."""

    def __init__(self, opening: pb.Open, number: int, requests: AsyncIterator[pb.StreamRequest]) -> None:
        self.opening, self.number = opening, number
        self.arrived: list[int] = []
        self.packets: list[Packet] = []
        self.deadlines_ms: list[int] = []
        self.limits_ms = [opening.silence_limit_ms]
        self.answered = 0
        self.pings = 0
        self.deaf = False
        self.half_closed = asyncio.Event()
        self.said: asyncio.Queue[pb.StreamResponse] = asyncio.Queue()
        self._fresh: asyncio.Queue[int | None] = asyncio.Queue()
        self._requests = requests

    async def read(self) -> None:
        """Takes in what comes."""
        agreed = StreamContext(self.opening.stream_id, self.opening.codec_fingerprint, self.opening.epoch_us)
        async for request in self._requests:
            if request.HasField("ping"):
                self.pings += 1
                self.limits_ms.append(request.ping.silence_limit_ms)
                if not self.deaf:
                    self.said.put_nowait(pb.StreamResponse(pong=pb.Pong(number=request.ping.number)))
                continue
            packet = Packet.from_stream_bytes(request.packet, agreed)
            self.packets.append(packet)
            self.arrived.append(packet.frame_id)
            self.deadlines_ms.append(request.deadline_ms)
            self._fresh.put_nowait(packet.frame_id)
        self.half_closed.set()
        self._fresh.put_nowait(None)

    async def frame(self) -> int | None:
        """The next frame's id; None after the last."""
        return await self._fresh.get()

    async def frames(self) -> AsyncIterator[int]:
        """All that come."""
        while (frame_id := await self.frame()) is not None:
            yield frame_id

    def answer(self, frame_id: int, **fields) -> None:
        """A result: the frame's id three times, unless told otherwise."""
        outputs = [] if fields.get("code") else [to_tensor("output", np.full(3, frame_id, np.float32))]
        self.answered += 1
        self.say(result=pb.Result(**{"frame_id": frame_id, "outputs": outputs, **fields}))

    def say(self, **message) -> None:
        """Any response."""
        self.said.put_nowait(pb.StreamResponse(**message))


Script = Callable[[Conversation], Awaitable[None]]


class EndedError(Exception):
    """Ends a stream with this status."""

    def __init__(self, code: grpc.StatusCode, message: str = "scripted") -> None:
        super().__init__(message)
        self.code = code


class Scripted(TailServiceServicer):
    """Opens every stream, then goes on by the script until that returns (OK) or raises :class:`EndedError`."""

    def __init__(self, script: Script, opened: dict) -> None:
        self.script, self.opened = script, opened
        self.streams: list[Conversation] = []
        self.health = health.aio.HealthServicer()
        self.address = ""

    async def Stream(self, requests, context):
        opening = (await anext(requests)).open
        talk = Conversation(opening, len(self.streams), requests)
        self.streams.append(talk)
        yield pb.StreamResponse(opened=pb.Opened(**{"model": opening.model, "release": 1, "window": 8, **self.opened}))
        reading, acting = asyncio.create_task(talk.read()), asyncio.create_task(self.script(talk))
        acting.add_done_callback(lambda _: talk.said.put_nowait(None))
        try:
            while (response := await talk.said.get()) is not None:
                yield response
            if isinstance(error := acting.exception(), EndedError):
                await context.abort(error.code, str(error))
            acting.result()
        finally:
            reading.cancel()
            acting.cancel()
            await asyncio.gather(reading, acting, return_exceptions=True)


@contextlib.asynccontextmanager
async def scripted(script: Script, *, listen: str = "127.0.0.1:0", status: int = SERVING, **opened):
    """A server for the length of the block."""
    server, servicer = grpc.aio.server(), Scripted(script, opened)
    add_TailServiceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(servicer.health, server)
    await servicer.health.set("tiny", status)
    await servicer.health.set("", status)
    port = server.add_insecure_port(listen)
    servicer.address = f"{listen.rpartition(':')[0]}:{port}"
    await server.start()
    try:
        yield servicer
    finally:
        await server.stop(None)


async def echo(talk: Conversation) -> None:
    """Answers everything."""
    async for frame_id in talk.frames():
        talk.answer(frame_id)
