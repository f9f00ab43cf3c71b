"""docs/protocol.md, over real sockets, with a tail that the test can hold."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import numpy as np
import pytest
from support import bundles
from support.inprocess import RawStream, SteppedBackend, held, running, stream, until

from narrowcast.tail import service
from narrowcast.tail.access import OpenGate
from narrowcast.tail.batcher import Batcher
from narrowcast.tail.errors import AccessError
from narrowcast.tail.store import Model, load_model
from narrowcast.tail.stream import Ageing
from narrowcast.transport.images import encode_image
from narrowcast.transport.packet import CodecId, Kind
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.tensors import from_tensors

INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
EXPIRED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


@pytest.fixture
def model(tiny) -> Model:
    """Held."""
    return held(load_model(tiny))


@pytest.fixture
def free(tiny) -> Model:
    """Not held."""
    return held(load_model(tiny), held=False)


def value(result: pb.Result) -> float:
    """The first number of the first output."""
    return float(from_tensors(result.outputs, bundles.OUTPUTS)["output"][0])


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


class TestLiveness:
    async def test_a_ping_is_answered_at_once(self, model):
        async with running(model) as server, stream(server, model) as raw:
            await raw.send(0)
            for number in (7, 8):
                await raw.call.write(pb.StreamRequest(ping=pb.Ping(number=number)))
                assert (await raw.read()).pong.number == number

    async def test_a_silent_client_with_unanswered_frames_is_ended(self, model):
        async with running(model) as server, stream(server, model, silence_limit_ms=1) as raw:
            await raw.send(0, 1)
            code, _ = await raw.ending()
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "nothing heard from the client" in await raw.call.details()
            slot = next(iter(server.table))
            await until(lambda: slot.batcher.queued == 0, "its frames are gone")

    async def test_a_client_that_pings_or_has_nothing_in_flight_is_not(self, model):
        async with running(model) as server, stream(server, model, silence_limit_ms=1) as idle:
            async with stream(server, model, silence_limit_ms=1) as raw:
                await raw.call.write(pb.StreamRequest(ping=pb.Ping(number=1, silence_limit_ms=60_000)))
                assert (await raw.read()).pong.number == 1
                await raw.send(0)
                async with stream(server, model, silence_limit_ms=1) as silent:
                    await silent.send(0)
                    assert (await silent.ending())[0] is grpc.StatusCode.UNAVAILABLE  # so the watch has gone round
                model.backend.go.set()
                assert value(await raw.result()) == 100
                await idle.send(2)
                assert value(await idle.result()) == 102


class TestGate:
    class Named(OpenGate):
        def __init__(self) -> None:
            self.allowed = 2

        def client(self, context) -> str:
            if not dict(context.invocation_metadata()).get("who"):
                raise AccessError(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
            return dict(context.invocation_metadata())["who"]

        def allow_frame(self, client: str, packet_bytes: int) -> int:
            assert client == "board-7"
            self.allowed -= 1
            return 0 if self.allowed >= 0 else 1234

    async def test_rates_and_names(self, free):
        async with running(free, gate=self.Named()) as server, server.stub() as stub:
            raw = RawStream(stub, free)
            raw.call = stub.Stream(metadata=[("who", "board-7")])
            assert (await raw.open()).client == "board-7"
            await raw.send(0, 1, 2)
            results = [await raw.result() for _ in range(3)]
            assert [result.code for result in results] == [0, 0, EXHAUSTED]
            assert results[2].retry_after_ms == 1234
            assert "used up its rate" in results[2].message
            unary = pb.InferRequest(model="tiny", packet=raw.packet(3).to_bytes())
            assert (await stub.Infer(unary, metadata=[("who", "board-7")])).result.retry_after_ms == 1234
            assert len(server.recorder.frames) == 4

    async def test_nobody_else(self, free):
        async with running(free, gate=self.Named()) as server, server.stub() as stub:
            raw = RawStream(stub, free)
            code, _ = await raw.ending()
            assert code is grpc.StatusCode.UNAUTHENTICATED
            for call in (
                stub.Infer(pb.InferRequest(model="tiny", packet=raw.packet(3).to_bytes())),
                stub.ListModels(pb.ListModelsRequest()),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert [refusal[2] for refusal in server.recorder.refusals] == ["UNAUTHENTICATED"] * 3


class TestUnary:
    def request(self, model: Model, stub, frame_id: int = 0, **fields) -> pb.InferRequest:
        packet = RawStream(stub, model).packet(frame_id)
        return pb.InferRequest(model="tiny", packet=packet.to_bytes(), **fields)

    async def test_the_calls_own_deadline_counts(self, model):
        async with running(model, max_batch=1) as server, server.stub() as stub:
            running_one = asyncio.ensure_future(stub.Infer(self.request(model, stub)))
            await until(lambda: model.backend.batches, "a batch runs")
            try:  # whoever is first says so
                code = (await stub.Infer(self.request(model, stub, 1), timeout=0.1)).result.code
            except grpc.aio.AioRpcError as error:
                code = error.code().value[0]
            assert code == EXPIRED
            cancelled = stub.Infer(self.request(model, stub, 2))
            waiting = asyncio.ensure_future(cancelled)
            slot = next(iter(server.table))
            await until(lambda: slot.batcher.queued == 1, "it waits")
            cancelled.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
            await until(lambda: slot.batcher.queued == 0, "it is gone")
            model.backend.go.set()
            assert value((await running_one).result) == 100
            assert model.backend.batches == [1]

    async def test_a_server_that_ends_takes_none(self, free):
        async with running(free) as server, server.stub() as stub:
            server.service.drain(10)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Infer(self.request(free, stub))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


class TestMany:
    async def test_200_clients_at_once(self, free):
        """Each over a connection of its own, with some that leave in the middle; the others get their own answers."""
        async with running(free, max_client_queue=1024) as server:

            async def one(number: int) -> list[float]:
                async with stream(server, free) as raw:
                    await raw.send(*range(number, number + 3))
                    if number % 10 == 9:
                        raw.call.cancel()
                        return []
                    return [value(await raw.result()) for _ in range(3)]

            answers = await asyncio.gather(*(one(number) for number in range(200)))
            for number, found in enumerate(answers):
                assert found == ([] if number % 10 == 9 else [100 + (number + k) % 16 for k in range(3)])
            await until(lambda: len(server.recorder.closed) == 200, "all streams are closed")
            assert next(iter(server.table)).batcher.queued == 0

    async def test_bytes_that_are_no_messages_end_their_own_stream_only(self, free, caplog):
        random = np.random.default_rng(0)
        async with running(free) as server, stream(server, free) as sound:
            async with grpc.aio.insecure_channel(server.address) as channel:
                method = channel.stream_stream("/narrowcast.tail.v1.TailService/Stream")
                for round_ in range(30):
                    call = method()
                    if round_ % 2:
                        await call.write(pb.StreamRequest(open=pb.Open(**sound.opening)).SerializeToString())
                    with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
                        await call.write(random.integers(0, 256, 1 + 20 * round_).astype(np.uint8).tobytes())
                        await call.done_writing()
                        while await asyncio.wait_for(call.read(), 20) is not grpc.aio.EOF:
                            pass
                    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
            await sound.send(0)
            assert value(await sound.result()) == 100
        assert "Traceback" not in caplog.text
