"""The client beside servers that do not keep the protocol, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncIterator, Callable

import grpc
import numpy as np
import pytest
from support import bundles
from support.server import serving

from narrowcast.head import link, liveness
from narrowcast.head.client import AsyncClient, Client
from narrowcast.head.errors import PeerUnreachableError, RefusedError
from narrowcast.head.session import HeadSession
from narrowcast.transport.packet import Packet, StreamContext
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceServicer, add_TailServiceServicer_to_server
from narrowcast.transport.rpc.tensors import to_tensor

FRAMES = bundles.random_frames(4)
Answering = Callable[[int], AsyncIterator[pb.StreamResponse]]


def answer(frame_id: int, **fields) -> pb.StreamResponse:
    outputs = [to_tensor("output", np.full(3, frame_id, np.float32))]
    return pb.StreamResponse(result=pb.Result(**{"frame_id": frame_id, "outputs": outputs, **fields}))


class Scripted(TailServiceServicer):
    """Opens every stream, then does with each packet what the test says."""

    def __init__(self, answering: Answering, window: int) -> None:
        self.answering, self.window = answering, window
        self.received: list[int] = []

    async def Stream(self, requests, context):
        opening = (await anext(requests)).open
        agreed = StreamContext(opening.stream_id, opening.codec_fingerprint, opening.epoch_us)
        yield pb.StreamResponse(opened=pb.Opened(model=opening.model, release=1, window=self.window))
        async for request in requests:
            packet = Packet.from_stream_bytes(request.packet, agreed)
            self.received.append(packet.frame_id)
            async for response in self.answering(packet.frame_id):
                yield response


@contextlib.asynccontextmanager
async def scripted(answering: Answering, window: int = 8):
    """A server on a free port: (its address, the servicer)."""
    server, servicer = grpc.aio.server(), Scripted(answering, window)
    add_TailServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        await server.stop(None)


@pytest.fixture(scope="module")
def session(tiny_folder) -> HeadSession:
    return HeadSession(bundles.open_made(tiny_folder / "tiny.ncb"))


async def silent(frame_id: int) -> AsyncIterator[pb.StreamResponse]:
    return
    yield  # makes it a generator


async def test_a_server_that_takes_packets_and_answers_none_is_given_up(session):
    async with scripted(silent) as (address, _), AsyncClient(session, address, give_up_seconds=0.4) as client:
        with pytest.raises(PeerUnreachableError, match="packets are taken and none is answered"):
            await asyncio.wait_for(client.infer(FRAMES[0]), 30)


@pytest.fixture
def exiting(tmp_path) -> HeadSession:
    """A head with a local exit."""
    return HeadSession(bundles.open_made(bundles.with_exit(bundles.make()).write(tmp_path / "exit.ncb"), "device"))


async def test_the_time_without_a_server_is_not_the_new_servers_silence(exiting, monkeypatch):
    monkeypatch.setattr(liveness, "TICK_SECONDS", 0.01)

    async def unhurried(frame_id: int) -> AsyncIterator[pb.StreamResponse]:
        await asyncio.sleep(5 * liveness.TICK_SECONDS)
        yield answer(frame_id)

    async with scripted(unhurried) as (address, _), AsyncClient(exiting, address, exit_after_seconds=60) as client:
        task = await client.submit(FRAMES[0])
        while not len(client._link._frames):
            await asyncio.sleep(0)
        client._link._frames.progressed_at -= 100  # seconds without a link
        result = await asyncio.wait_for(task, 30)
        assert (result.source, result.error, client.counters.streams_opened) == ("server", None, 1)


@pytest.mark.parametrize("code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE])
async def test_the_exit_answers_what_a_busy_server_puts_off(exiting, code):
    async def busy(frame_id: int) -> AsyncIterator[pb.StreamResponse]:
        yield answer(frame_id, code=code.value[0], message="later", outputs=[])

    # What is unavailable here may be had over the next stream: that takes its time.
    seconds = 60 if code is grpc.StatusCode.RESOURCE_EXHAUSTED else 0.3
    async with scripted(busy) as (address, _), AsyncClient(exiting, address, exit_after_seconds=seconds) as client:
        result = await asyncio.wait_for(client.infer(FRAMES[0]), 30)
        assert (result.source, result.error) == ("exit", None)


async def test_a_frame_that_a_server_cannot_answer_is_an_error_with_an_exit_too(exiting):
    async def broken(frame_id: int) -> AsyncIterator[pb.StreamResponse]:
        yield answer(frame_id, code=grpc.StatusCode.INTERNAL.value[0], message="the tail failed", outputs=[])

    async with scripted(broken) as (address, _), AsyncClient(exiting, address, exit_after_seconds=60) as client:
        result = await asyncio.wait_for(client.infer(FRAMES[0]), 30)
        assert (result.source, result.error) == ("server", "the tail failed")


async def test_an_answer_to_a_frame_that_was_not_sent_yet_does_not_count(session):
    async def early(frame_id: int) -> AsyncIterator[pb.StreamResponse]:
        if frame_id == 0:
            yield answer(1, outputs=[])  # made up: frame 1 waits in the client
        yield answer(frame_id)

    async with scripted(early, window=1) as (address, _), AsyncClient(session, address) as client:
        results = await asyncio.wait_for(asyncio.gather(*(client.infer(frame) for frame in FRAMES[:2])), 30)
        assert [result.error for result in results] == [None, None]
        assert sorted(result.outputs["output"][0] for result in results) == [0, 1]
        assert client.counters.results_unasked == 1


async def test_a_response_that_is_no_result_is_refused_not_taken_for_an_answer(session):
    async def opened_again(frame_id: int) -> AsyncIterator[pb.StreamResponse]:
        yield pb.StreamResponse(opened=pb.Opened())

    async with scripted(opened_again) as (address, _), AsyncClient(session, address) as client:
        with pytest.raises(RefusedError, match="does not answer like a tail server"):
            await asyncio.wait_for(client.infer(FRAMES[0]), 30)


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ([], "no outputs"),
        ([to_tensor("other", np.zeros(3, np.float32))], "'other'"),
        ([to_tensor("output", np.zeros(3, np.float64))], "float64"),
        ([to_tensor("output", np.zeros((1000, 1000), np.float32))], r"\[1000, 1000\]"),
        ([to_tensor("output", np.zeros(3, np.float32))] * 3, "the bundle says"),
    ],
)
async def test_other_outputs_than_the_bundles_fail_the_frame_and_are_not_unpacked(session, outputs, said):
    async def wrong(frame_id: int) -> AsyncIterator[pb.StreamResponse]:
        yield answer(frame_id, outputs=outputs)

    async with scripted(wrong) as (address, _), AsyncClient(session, address) as client:
        result = await asyncio.wait_for(client.infer(FRAMES[0]), 30)
        assert result.outputs == {}
        assert re.search(said, result.error), result.error


async def test_cancelled_frames_do_not_pile_up(session):
    async with scripted(silent, window=1) as (address, servicer):
        async with AsyncClient(session, address, window=2, give_up_seconds=None) as client:
            for _ in range(20):
                frame = asyncio.create_task(client.infer(FRAMES[0]))
                while not servicer.received:
                    await asyncio.sleep(0.005)
                await asyncio.sleep(0)
                frame.cancel()
                await asyncio.gather(frame, return_exceptions=True)
            assert len(client._link._frames) <= 2
            assert servicer.received == [0]


def test_a_clock_that_jumps_costs_nothing(tiny_folder, session, monkeypatch):
    """A board without a battery for its clock boots in 1970 and learns the time later."""
    with serving(tiny_folder, tiny_folder / "test.pub") as server:
        monkeypatch.setattr(link.time, "time_ns", lambda: 5_000_000_000)
        with Client(session, server.address) as client:
            assert client.infer(FRAMES[0]).error is None
            monkeypatch.undo()
            assert client.infer(FRAMES[1]).error is None


def test_a_result_does_not_wait_for_the_next_frame(tiny_folder, session):
    answered = threading.Event()

    def camera():
        yield FRAMES[0]
        assert answered.wait(30), "the first frame's result was held back"
        yield FRAMES[1]

    with serving(tiny_folder, tiny_folder / "test.pub") as server, Client(session, server.address) as client:
        results = []
        for result in client.stream(camera()):
            results.append(result.error)
            answered.set()
        assert results == [None, None]


def test_a_source_that_fails_does_so_after_the_results_before(tiny_folder, session):
    def camera():
        yield from FRAMES[:3]
        raise OSError("the camera is gone")

    with serving(tiny_folder, tiny_folder / "test.pub") as server, Client(session, server.address) as client:
        results = []
        with pytest.raises(OSError, match="the camera is gone"):
            results.extend(result.frame_id for result in client.stream(camera()))
        assert results == [0, 1, 2]


def test_a_stream_that_is_left_early_reads_no_further(tiny_folder, session):
    read = []

    def camera():
        for k in range(1000):
            read.append(k)
            yield FRAMES[k % 4]

    with serving(tiny_folder, tiny_folder / "test.pub") as server, Client(session, server.address, window=2) as client:
        stream = client.stream(camera())
        next(stream)
        stream.close()
        assert client.infer(FRAMES[0]).error is None
    assert len(read) < 20
