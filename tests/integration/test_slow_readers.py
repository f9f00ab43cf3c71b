"""Clients that read their answers late, or never, over real sockets."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
from support.inprocess import running, stream, until

from narrowcast.tail import batcher as batching
from narrowcast.tail import stream as open_stream
from narrowcast.tail.store import Model
from narrowcast.transport.rpc import tail_pb2 as pb

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


class Large(Model):
    """Answers with more than a connection takes without a reader."""

    def answer(self, symbols, levels, wanted):
        noise = np.random.default_rng(0).integers(0, 256, 2**21).astype(np.uint8)
        return [{"output": noise} for _ in wanted]


class TestSlowReaders:
    @pytest.fixture
    def large(self, free) -> Model:
        return Large(free.manifest, free.codec, free.backend)

    async def test_answers_that_nobody_reads_are_bounded_by_the_window(self, large, free):
        async with running(large) as server, stream(server, large) as slow, stream(server, large) as other:
            streams = next(iter(server.service._streams.values()))
            (mine,) = [one for one in streams if one.info.stream_id == slow.context.stream_id]
            await slow.send(*range(8))
            await until(lambda: server.recorder.frames, "one is being written")
            await slow.send(*range(8, 40))
            await until(lambda: mine._no_more, "the window is exceeded")
            assert len(mine._pending) <= 8  # a busy machine looks here late, when gRPC has taken another one
            await other.send(0)
            assert (await other.result()).code == 0
            code, responses = await slow.ending()
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            frame_ids = [response.result.frame_id for response in responses]
            assert frame_ids == list(range(len(frame_ids)))
            assert 8 <= len(frame_ids) < 40  # eight, and what gRPC has taken off the server's hands: not all

    async def test_bytes_that_wait_for_a_reader_are_bounded(self, model, monkeypatch):
        monkeypatch.setattr(open_stream, "MAX_PENDING_BYTES", 2000)
        async with running(model) as server, stream(server, model) as raw:
            await raw.send(0)
            await until(lambda: model.backend.batches, "a batch runs")
            await raw.send(1, payload=bytes(2000))
            await raw.send(2)
            await until(lambda: next(iter(server.table)).batcher.queued == 1, "the last one waits")
            model.backend.go.set()
            results = [await raw.result() for _ in range(3)]
            assert [result.code for result in results] == [0, EXHAUSTED, 0]
            assert "bytes of unanswered packets" in results[1].message

    async def test_a_stream_ends_in_the_middle_of_a_write(self, large):
        async with running(large) as server, stream(server, large) as slow:
            await slow.send(*range(8))
            await until(lambda: server.recorder.frames, "one is being written")
            server.service.drain(0.05)
            await until(lambda: server.recorder.closed, "the stream is closed")
            assert server.recorder.closed[0][1] == "UNAVAILABLE"
            assert (await slow.ending())[0] is grpc.StatusCode.UNAVAILABLE

    async def test_a_client_that_vanishes_in_the_middle_of_a_write(self, large, caplog):
        async with running(large) as server:
            async with stream(server, large) as slow:
                await slow.send(*range(8))
                await until(lambda: server.recorder.frames, "one is being written")
            await until(lambda: server.recorder.closed, "the stream is closed")
            assert server.recorder.closed[0][1] == "CANCELLED"
        assert "Traceback" not in caplog.text


class TestTheReaderAnswers:
    """Of a light model, while the writer has nothing to do."""

    @pytest.fixture
    def large(self, free) -> Model:
        return Large(free.manifest, free.codec, free.backend)

    @pytest.fixture(autouse=True)
    def light(self, monkeypatch):
        monkeypatch.setattr(batching, "LIGHT_SECONDS", 3600.0)

    @staticmethod
    async def writing(server, raw) -> tuple[open_stream.OpenStream, int]:
        """The stream, in the middle of a write by its reader, and the last of seven frames that are sent meanwhile.

        The client has read one answer, and does not read another. gRPC may take an answer or two off the reader's hands.
        """
        await raw.send(0)
        assert (await raw.result()).code == 0
        ((opened,),) = server.service._streams.values()
        (slot,) = server.table
        number, stands = 0, 0
        while stands < 20:
            if not opened._reader_writes:
                await until(lambda: slot.batcher._sleeping and opened._awake is not None, "all is quiet")
                number, stands = number + 1, 0
                assert number < 20, "gRPC takes everything"
                await raw.send(number)
                await until(lambda number=number: len(server.recorder.frames) > number, "it is written")
            await asyncio.sleep(0.005)
            stands += 1
        for behind in range(number + 1, number + 8):
            await raw.send(behind)
        assert opened._reader_writes
        return opened, number + 7

    async def test_every_frame_comes_once_and_in_order(self, free):
        async with running(free) as server, stream(server, free, window=4) as raw:
            for first in range(0, 40, 4):
                await raw.send(*range(first, first + 4))
                results = [await raw.result() for _ in range(4)]
                assert [(one.frame_id, one.code) for one in results] == [(first + k, 0) for k in range(4)]

    async def test_what_comes_meanwhile_is_written_afterwards(self, large):
        async with running(large) as server, stream(server, large) as raw:
            opened, last = await self.writing(server, raw)
            opened.drain("age", True, 20.0)
            responses = []
            while not any(one.HasField("drain") for one in responses):
                responses.append(await raw.read())
            await raw.call.write(pb.StreamRequest(ping=pb.Ping(number=3)))
            while not (any(one.HasField("pong") for one in responses) and frames_of(responses)[-1:] == [last]):
                responses.append(await raw.read())
            assert frames_of(responses) == list(range(1, last + 1))

    async def test_its_write_is_cut_short_with_the_stream(self, large):
        async with running(large) as server, stream(server, large) as raw:
            await self.writing(server, raw)
            server.service.drain(0.05)
            await until(lambda: server.recorder.closed, "the stream is closed")
            assert server.recorder.closed[0][1] == "UNAVAILABLE"
            assert (await raw.ending())[0] is grpc.StatusCode.UNAVAILABLE

    async def test_a_client_that_vanishes_meanwhile(self, large, caplog):
        async with running(large) as server:
            async with stream(server, large) as raw:
                await self.writing(server, raw)
            await until(lambda: server.recorder.closed, "the stream is closed")
            assert server.recorder.closed[0][1] == "CANCELLED"
        assert "Traceback" not in caplog.text


def frames_of(responses: list[pb.StreamResponse]) -> list[int]:
    """The frames that are answered in them."""
    return [one.result.frame_id for one in responses if one.HasField("result")]
