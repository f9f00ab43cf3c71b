"""docs/protocol.md, over real sockets, with a tail that the test can hold."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import numpy as np
from support import bundles
from support.inprocess import RawStream, SteppedBackend, running, stream, until, value

from narrowcast.tail import service
from narrowcast.tail.batcher import Batcher
from narrowcast.tail.store import Model, load_model
from narrowcast.tail.stream import Ageing
from narrowcast.transport.images import encode_image
from narrowcast.transport.packet import CodecId, Kind
from narrowcast.transport.rpc import tail_pb2 as pb

INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]


EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


EXPIRED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


class TestDrain:
    async def test_a_shutdown_answers_what_has_arrived_and_ends_well(self, model):
        async with running(model) as server, stream(server, model) as raw:
            await raw.send(0, 1)
            await until(lambda: model.backend.batches, "a batch runs")
            server.service.drain(30)
            drain = (await raw.read()).drain
            assert (drain.reason, drain.come_back, drain.grace_ms) == ("shutdown", False, 30_000)
            await raw.send(2)  # crossed the drain on its way
            await raw.call.done_writing()
            model.backend.go.set()
            code, responses = await raw.ending()
            assert code is grpc.StatusCode.OK
            assert [value(response.result) for response in responses] == [100, 101, 102]
            async with server.stub() as stub:
                late = RawStream(stub, model)
                with contextlib.suppress(grpc.aio.AioRpcError):  # it may be refused before it has spoken
                    await late.call.write(pb.StreamRequest(open=pb.Open(**late.opening)))
                assert (await late.ending())[0] is grpc.StatusCode.UNAVAILABLE
            assert server.recorder.closed == [(server.recorder.opened[0], "OK")]
            assert server.recorder.refusals[0][2] == "UNAVAILABLE"

    async def test_a_client_that_ignores_it_is_ended_with_its_grace(self, model):
        async with running(model) as server, stream(server, model) as raw:
            await raw.send(0, 1)
            await until(lambda: model.backend.batches, "a batch runs")
            server.service.drain(0.2)
            code, responses = await raw.ending()
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "the time for it is over" in await raw.call.details()
            assert [response.WhichOneof("message") for response in responses] == ["drain"]
            await until(lambda: server.recorder.closed, "the stream is closed")
            assert server.recorder.closed[0][1] == "UNAVAILABLE"

    async def test_a_model_that_is_unloaded_drains_its_streams(self, model):
        async with running(model) as server, stream(server, model) as raw:
            await raw.send(0)
            await until(lambda: model.backend.batches, "a batch runs")
            batcher = server.table.retire("tiny", model.codec.fingerprint)
            drain = (await raw.read()).drain
            assert (drain.reason, drain.come_back) == ("model unloaded", True)
            await raw.call.done_writing()
            model.backend.go.set()
            code, responses = await raw.ending()
            assert code is grpc.StatusCode.OK
            assert [value(response.result) for response in responses] == [100]
            await asyncio.wait_for(batcher.idle(), 20)
            await batcher.close()

    async def test_old_streams_are_asked_to_move_and_may_come_back(self, free):
        async with running(free, ageing=Ageing(0.2, 20.0)) as server, stream(server, free) as raw:
            await raw.send(0)
            assert value(await raw.result()) == 100
            drain = (await raw.read()).drain
            assert (drain.reason, drain.come_back, drain.grace_ms) == ("age", True, 20_000)
            await raw.call.done_writing()
            assert (await raw.ending())[0] is grpc.StatusCode.OK
            async with stream(server, free, stream_id=raw.context.stream_id, resume_from=1) as again:
                again.context = raw.context
                await again.send(1)
                assert value(await again.result()) == 101

    async def test_a_stream_that_was_never_opened_holds_up_nothing(self, free):
        async with running(free) as server, server.stub() as stub:
            call = stub.Stream()
            await call.wait_for_connection()
            await until(lambda: server.service._opening, "the server waits for `open`")
            server.service.drain(60)
            assert await asyncio.wait_for(call.code(), 20) is grpc.StatusCode.UNAVAILABLE

    async def test_a_stream_that_is_never_opened_ends(self, free, monkeypatch):
        monkeypatch.setattr(service, "OPEN_SECONDS", 0.05)
        async with running(free) as server, server.stub() as stub:
            call = stub.Stream()
            assert await asyncio.wait_for(call.code(), 20) is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "no `open`" in await call.details()
            assert server.recorder.refusals == [("127.0.0.1", "", "DEADLINE_EXCEEDED")]


class TestFrames:
    async def test_a_model_is_exchanged_under_a_stream(self, tiny, model, tmp_path):
        newer = load_model(bundles.open_made(bundles.make(release=2).write(tmp_path / "new.ncb")))
        async with running(model) as server, stream(server, model) as raw:
            await raw.send(0)
            await until(lambda: model.backend.batches, "a batch runs")
            before = server.table.publish(Batcher(newer))
            await raw.send(1, 2)
            model.backend.go.set()
            assert [value(await raw.result()) for _ in range(3)] == [100, 101, 102]
            assert model.backend.batches == [1]
            await asyncio.wait_for(before.idle(), 20)
            await before.close()
            await raw.send(3)
            assert value(await raw.result()) == 103
            assert [record.release for record in server.recorder.frames] == [1, 2, 2, 2]

    async def test_deadlines_of_messages_and_of_the_stream(self, model):
        async with running(model) as server, stream(server, model, deadline_ms=10) as raw:
            await raw.send(0, deadline_ms=60_000)
            await until(lambda: model.backend.batches, "a batch runs")
            await raw.send(1)
            await raw.send(2, deadline_ms=60_000)
            await raw.send(3, deadline_ms=5)
            await raw.settle()
            slot = next(iter(server.table))
            await until(lambda: slot.batcher.queued == 1, "two have expired")
            model.backend.go.set()
            results = [await raw.result() for _ in range(4)]
            assert [result.code for result in results] == [0, EXPIRED, 0, EXPIRED]
            assert [result.frame_id for result in results] == [0, 1, 2, 3]
            assert model.backend.batches == [1, 1]

    async def test_frames_of_a_cancelled_stream_are_not_computed(self, model):
        async with running(model, max_batch=1) as server, stream(server, model) as other:
            async with stream(server, model) as raw:
                await raw.send(*range(8))
                slot = next(iter(server.table))
                await until(lambda: model.backend.batches, "the first is computed")
                await until(lambda: slot.batcher.queued == 7, "seven wait")
                await other.send(8)
                await until(lambda: slot.batcher.queued == 8, "eight wait")
                raw.call.cancel()
            await until(lambda: slot.batcher.queued == 1, "seven are gone")
            model.backend.go.set()
            assert value(await other.result()) == 108
            assert model.backend.batches == [1, 1]
            assert server.recorder.closed[0][1] == "CANCELLED"

    async def test_frames_before_the_point_of_resuming_are_refused(self, free):
        async with running(free) as server, stream(server, free, resume_from=5) as raw:
            await raw.send(4, 5)
            refused, answered = await raw.result(), await raw.result()
            assert refused.code == INVALID
            assert "lies before 5" in refused.message
            assert value(answered) == 105

    async def test_a_full_queue_refuses_single_frames(self, model):
        async with running(model, max_batch=1, max_queue=2, max_client_queue=2) as server, stream(server, model) as raw:
            await raw.send(0)
            await until(lambda: model.backend.batches, "a batch runs")
            await raw.send(1, 2, 3)
            await raw.settle()  # two wait, and the third is refused
            model.backend.go.set()
            results = [await raw.result() for _ in range(4)]
            assert [result.code for result in results] == [0, 0, 0, EXHAUSTED]
            await raw.send(3)  # once more, under its own id
            assert value(await raw.result()) == 103

    async def test_priorities(self, model):
        """Urgent ones, sent last, are computed before background ones."""
        async with (
            running(model, max_batch=1) as server,
            stream(server, model, priority=pb.PRIORITY_BACKGROUND) as slow,
            stream(server, model, priority=pb.PRIORITY_URGENT) as fast,
        ):
            slot = next(iter(server.table))
            await slow.send(0)
            await until(lambda: model.backend.batches, "a batch runs")
            await slow.send(1, 2, 3)
            await until(lambda: slot.batcher.queued == 3, "three wait")
            for frame_id in (4, 5, 6):
                payload = model.codec.encode(np.zeros(bundles.SHAPE, np.uint8), 0)
                await fast.send(frame_id, level=0, payload=payload)
            await until(lambda: slot.batcher.queued == 6, "six wait")
            model.backend.go.set()
            for one, count in ((fast, 3), (slow, 4)):
                assert [(await one.result()).code for _ in range(count)] == [0] * count
            assert model.backend.levels == [1, 0, 0, 0, 1, 1, 1]

    async def test_images(self, tmp_path):
        whole = load_model(bundles.open_made(bundles.with_whole(bundles.make()).write(tmp_path / "whole.ncb")))
        picture = encode_image(np.full((20, 30, 3), 200, np.uint8), CodecId.JPEG)
        async with running(whole) as server, stream(server, whole) as raw:
            await raw.send(0, kind=Kind.IMAGE, codec=CodecId.JPEG, level=0, payload=picture)
            await raw.send(1)
            await raw.send(2, kind=Kind.IMAGE, codec=CodecId.WEBP, level=0, payload=picture)
            answered, symbols, damaged = [await raw.result() for _ in range(3)]
            assert value(answered) == 100 + 200 // 16
            assert value(symbols) == 101
            assert damaged.code == INVALID
            async with server.stub() as stub:
                image = raw.packet(3, kind=Kind.IMAGE, codec=CodecId.JPEG, level=0, payload=picture)
                response = await stub.Infer(pb.InferRequest(model="tiny", packet=image.to_bytes()))
                assert value(response.result) == 100 + 200 // 16
                (listed,) = (await stub.ListModels(pb.ListModelsRequest())).models
                assert listed.images

    async def test_images_to_a_model_without_a_whole_network(self, free):
        async with running(free) as server, stream(server, free) as raw:
            await raw.send(0, kind=Kind.IMAGE, codec=CodecId.JPEG, level=0, payload=b"any")
            result = await raw.result()
            assert result.code == INVALID
            assert "it has whole networks for none" in result.message

    async def test_observers_are_told(self, free):
        async with running(free) as server, stream(server, free) as raw:
            await raw.send(0, 1)
            await raw.result(), await raw.result()
            told = server.recorder
            (opened,) = told.opened
            assert (opened.client, opened.model, opened.stream_id) == ("127.0.0.1", "tiny", raw.context.stream_id)
            first = told.frames[0]
            assert (first.stream, first.release, first.packet.frame_id) == (opened, 1, 0)
            assert first.packet_bytes == len(raw.packet(0).to_stream_bytes(raw.context))
            assert first.result_bytes > first.result.ByteSize() > 0
            assert first.encode_ms > 0
            assert first.result.times.total_us >= first.result.times.tail_us > 0
            assert first.result.times.arrived_us > 0
            assert sum(size for _, size, _ in told.batches) == 2

    async def test_a_client_that_leaves_with_all_of_its_answers_has_cancelled_nothing(self, free):
        async with running(free) as server:
            async with stream(server, free) as raw:
                await raw.send(0)
                assert (await raw.result()).code == 0
            await until(lambda: server.recorder.closed, "the stream is closed")
            assert [reason for _, reason in server.recorder.closed] == ["OK"]


class TestCredits:
    async def test_the_window_shrinks_under_overload_and_grows_again(self, tiny):
        """An urgent stream beside eleven waiting frames, more than half of the queue; then all of them are computed."""
        loaded = load_model(tiny)
        tail = SteppedBackend(loaded.backend)
        model = Model(loaded.manifest, loaded.codec, tail)
        async with (
            running(model, max_batch=1, max_queue=20, max_client_queue=20) as server,
            stream(server, model, window=12) as other,
            stream(server, model, window=4, priority=pb.PRIORITY_URGENT) as raw,
        ):
            batcher = next(iter(server.table)).batcher
            await other.send(*range(12))
            await until(lambda: batcher.queued == 11, "eleven wait")
            window, told, sent, answers = 4, [], 0, 0

            async def take(responses: int) -> None:
                nonlocal window, answers
                for _ in range(responses):
                    response = await raw.read()
                    if response.HasField("credits"):
                        window = response.credits.window
                        told.append(window)
                    else:
                        answers += 1

            for count, steps, responses in ((4, 5, 5), (2, 3, 3), (1, 2, 1)):  # windowfuls, each with its credits
                assert window == count
                await raw.send(*range(sent, sent + count))
                sent += count
                await until(lambda there=12 + sent: batcher.queued + len(tail.batches) == there, "all have arrived")
                for _ in range(steps):
                    tail.steps.release()
                await take(responses)
            assert told == [2, 1]
            tail.go.set()
            tail.steps.release()
            await until(lambda: batcher.queued == 0, "nothing waits")
            while told[-1] != 4:
                await raw.send(sent)
                sent += 1
                await take(1)
                if (answers - 7, told[-1]) in ((1, 1), (3, 2)):  # one answer at a window of 1, two at one of 2
                    await take(1)
            assert told == [2, 1, 2, 4]
            assert answers == sent

    async def test_more_than_the_window_ends_the_stream(self, model):
        async with running(model) as server, stream(server, model, window=2) as raw:
            await raw.send(0, 1, 2)
            ((opened,),) = server.service._streams.values()
            await until(lambda: opened._no_more, "the third packet has come before the first is answered")
            model.backend.go.set()
            code, responses = await raw.ending()
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert [value(response.result) for response in responses] == [100, 101]
