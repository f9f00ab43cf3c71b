"""The load of ``bench/tail.py``: streams that are kept full, without narrowcast's own client in the way.

The same code drives narrowcast's server and a raw grpc.aio one: messages are bytes that were made beforehand, answers are
counted and not parsed, so that the difference between the two is the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import grpc

from narrowcast.transport.packet import VERSION, Packet, StreamContext
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.channels import CLIENT_OPTIONS

METHOD = "/narrowcast.tail.v1.TailService/Stream"


class Peer(NamedTuple):
    """Where to send, and what.

    Attributes:
        port: on this machine.
        method: full name.
        opening: the first message, answered by one; none for a raw server.
        frames: what follows, for each stream.
        least_bytes: of an answer; what is shorter is no answer, but a refusal or new credits.
    """

    port: int
    method: str
    opening: bytes | None
    frames: Sequence[bytes]
    least_bytes: int = 0


class Load(NamedTuple):
    """What a run gave: milliseconds per answer, and answers in how many seconds."""

    latencies_ms: list[float]
    answers: int
    seconds: float

    @property
    def per_second(self) -> float:
        return self.answers / self.seconds


def opening(model: str, fingerprint: bytes, window: int) -> bytes:
    """The first message of a stream to narrowcast's server."""
    wanted = pb.Open(
        model=model, codec_fingerprint=fingerprint, packet_version=VERSION, stream_id=bytes(16), epoch_us=0,
        window=window,
    )  # fmt: skip
    return pb.StreamRequest(open=wanted).SerializeToString()


def frames(packet: Packet, count: int) -> list[bytes]:
    """``count`` messages with the same payload and frame ids of their own."""
    context = StreamContext(bytes(16), packet.fingerprint, 0)
    made = (packet._replace(frame_id=k, stream_id=bytes(16), capture_us=k) for k in range(count))
    return [pb.StreamRequest(packet=one.to_stream_bytes(context)).SerializeToString() for one in made]


def check(answers: Sequence[bytes]) -> None:
    """Every answer of narrowcast's server is a result, in order, without an error."""
    for k, data in enumerate(answers):
        result = pb.StreamResponse.FromString(data).result
        if result.code or result.frame_id != k:
            raise SystemExit(f"frame {k} was answered with frame {result.frame_id}, {result.code} {result.message}")


async def one_stream(peer: Peer, window: int, keep: list[bytes] | None = None) -> list[float]:
    """Sends all of ``peer.frames`` over one new connection, never more than ``window`` unanswered; milliseconds of each."""
    times: list[float] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{peer.port}", options=CLIENT_OPTIONS) as channel:
        call = channel.stream_stream(peer.method)()
        if peer.opening is not None:
            await call.write(peer.opening)
            await call.read()
        sent: list[float] = []
        room = asyncio.Semaphore(window)

        async def write() -> None:
            for frame in peer.frames:
                await room.acquire()
                sent.append(time.perf_counter())
                await call.write(frame)
            await call.done_writing()

        writing = asyncio.create_task(write()) if window > 1 else None
        for frame in peer.frames:
            if writing is None:
                sent.append(time.perf_counter())
                await call.write(frame)
            data = await _answer(call, peer.least_bytes)
            times.append((time.perf_counter() - sent[len(times)]) * 1000)
            if keep is not None:
                keep.append(data)
            room.release()
        if writing is not None:
            await writing
        call.cancel()
    return times


async def _answer(call: Any, least_bytes: int) -> bytes:
    while True:
        data = await call.read()
        if data is grpc.aio.EOF:
            raise SystemExit(f"the server ended a stream: {await call.code()} {await call.details()}")
        if len(data) >= least_bytes:
            return bytes(data)
        response = pb.StreamResponse.FromString(data)
        if not response.HasField("credits"):
            raise SystemExit(f"not an answer: {response}")


async def load(peer: Peer, streams: int, window: int, keep: list[bytes] | None = None) -> Load:
    """``streams`` connections at once, each kept full; answers of all of them go to ``keep``."""
    started = time.perf_counter()
    times = await asyncio.gather(*(one_stream(peer, window, keep) for _ in range(streams)))
    return Load([t for part in times for t in part], sum(map(len, times)), time.perf_counter() - started)
