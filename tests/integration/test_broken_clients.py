"""What clients do to a server by mistake, by accident or on purpose, and what it must not do to the others."""

from __future__ import annotations

import asyncio
import contextlib
import time

import grpc
import pytest
from support import bundles, inprocess
from support.inprocess import RawStream, running, stream, until
from support.relay import thin

from narrowcast.tail.access import OpenGate
from narrowcast.tail.batcher import Batcher
from narrowcast.tail.frame import Priority
from narrowcast.tail.models import ModelTable
from narrowcast.tail.server import TailServer
from narrowcast.tail.store import Model, load_model
from narrowcast.tail.stream import Ageing
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.channels import Address
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceStub
from narrowcast.transport.rpc.tensors import from_tensors


def value(result: pb.Result) -> float:
    return float(from_tensors(result.outputs, bundles.OUTPUTS)["output"][0])


def unary(model: Model, stub: TailServiceStub, frame_id: int = 0) -> pb.InferRequest:
    return pb.InferRequest(model="tiny", packet=RawStream(stub, model).packet(frame_id).to_bytes())


class TestConnections:
    """That open no stream: HTTP/2 is spoken, and nothing is asked for."""

    GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])

    async def connect(self, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(self.GREETING)
        return reader, writer  # without it, the connection is closed

    async def test_are_closed_after_a_while_and_open_streams_are_not(self, free, monkeypatch):
        self.shorten(monkeypatch, "grpc.max_connection_idle_ms", 200)
        async with running(free) as server, stream(server, free) as raw:
            idle, _writer = await self.connect(server.address)
            assert await asyncio.wait_for(idle.read(), 20)  # to its end
            await raw.send(0)
            assert (await raw.result()).code == 0

    async def test_are_bounded(self, free, monkeypatch):
        self.shorten(monkeypatch, "grpc.max_allowed_incoming_connections", 3)
        async with running(free) as server, stream(server, free) as raw:
            connections = [await self.connect(server.address) for _ in range(6)]
            taken = []
            for reader, _ in connections:
                with contextlib.suppress(ConnectionError):
                    taken.append(bool(await asyncio.wait_for(reader.read(9), 20)))
            assert taken.count(True) == 2  # the others were closed at once
            await raw.send(0)
            assert (await raw.result()).code == 0

    def shorten(self, monkeypatch, option: str, value: int) -> None:
        """Another value for an option that servers do set."""
        usual = dict(inprocess.SERVER_OPTIONS)
        assert usual[option] > value
        monkeypatch.setattr(inprocess, "SERVER_OPTIONS", list({**usual, option: value}.items()))


class TestMessages:
    @pytest.mark.parametrize(
        "method",
        [
            "narrowcast.tail.v1.TailService/Infer",
            "narrowcast.tail.v1.TailService/ListModels",
            "grpc.health.v1.Health/Check",
            "grpc.health.v1.Health/Watch",
            "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ],
    )
    async def test_bytes_that_are_none_are_an_error_of_the_caller_alone(self, free, caplog, method):
        server = TailServer({"tiny": free}, Address("127.0.0.1", 0))
        async with grpc.aio.insecure_channel(str(await server.start())) as channel:
            for garbage in (b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x05no"):
                if method.endswith("Watch"):
                    call = channel.unary_stream(f"/{method}")(garbage)
                elif method.endswith("Info"):
                    call = channel.stream_stream(f"/{method}")(iter([garbage]))
                else:
                    call = channel.unary_unary(f"/{method}")(garbage)
                assert await asyncio.wait_for(call.code(), 20) is grpc.StatusCode.INVALID_ARGUMENT
            models = await TailServiceStub(channel).ListModels(pb.ListModelsRequest())
            assert [one.name for one in models.models] == ["tiny"]
        await server.stop(0)
        assert "Traceback" not in caplog.text

    async def test_one_that_is_too_large_ends_its_own_stream(self, free):
        async with (
            running(free) as server,
            stream(server, free) as sound,
            server.stub(max_send_message_length=-1) as stub,
        ):
            raw = RawStream(stub, free)
            await raw.open()
            await raw.send(0)
            await raw.call.write(pb.StreamRequest(packet=bytes(17 * 1024 * 1024)))
            code, responses = await raw.ending()
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert len(responses) <= 1
            await until(lambda: server.recorder.closed, "the stream is closed")
            await sound.send(1)
            assert value(await sound.result()) == 101

    async def test_a_client_killed_in_the_middle_of_one(self, model):
        """Its connection breaks while a packet is on its way: no part of it is computed, nor what waits."""
        async with (
            running(model, max_batch=1) as server,
            stream(server, model) as sound,
            thin(server.address, 4e6) as relay,
        ):
            slot = next(iter(server.table))
            await sound.send(0)
            await until(lambda: model.backend.batches, "a batch runs")
            async with grpc.aio.insecure_channel(relay.address) as channel:
                raw = RawStream(TailServiceStub(channel), model)
                await raw.open()
                await raw.send(1, 2)
                await until(lambda: slot.batcher.queued == 2, "two wait")
                sending = asyncio.ensure_future(raw.send(3, payload=bytes(8_000_000)))
                await until(lambda: relay.up_bytes > 100_000, "a part of the third is there")
                relay.cut()
                await until(lambda: server.recorder.closed, "the stream is closed")
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
            assert slot.batcher.queued == 0
            model.backend.go.set()
            await sound.send(4)
            assert [value(await sound.result()) for _ in range(2)] == [100, 104]
            assert model.backend.batches == [1, 1]


class TestTime:
    async def test_the_calls_own_deadline_ends_a_stream_and_its_frames(self, model):
        async with running(model, max_batch=1) as server, server.stub() as stub:
            slot = next(iter(server.table))
            raw = RawStream(stub, model)
            raw.call.cancel()
            raw.call = stub.Stream(timeout=6)
            await raw.open()
            await raw.send(0, 1, 2)
            await until(lambda: slot.batcher.queued == 2, "two wait")
            code, responses = await raw.ending()
            assert (code, responses) == (grpc.StatusCode.DEADLINE_EXCEEDED, [])
            await until(lambda: server.recorder.closed, "the stream is closed")
            assert slot.batcher.queued == 0
            model.backend.go.set()
            assert model.backend.batches == [1]

    async def test_a_servers_clock_that_jumps_changes_nothing(self, free, monkeypatch):
        """Deadlines, ages and silence go by clocks that do not jump."""
        jumps = iter(day * 86_400.0 * (-1) ** day for day in range(1, 10**9))
        async with running(free, ageing=Ageing(3600.0, 10.0)) as server:
            monkeypatch.setattr(time, "time", lambda: next(jumps))
            monkeypatch.setattr(time, "time_ns", lambda: round(next(jumps) * 1e9))
            async with stream(server, free, deadline_ms=30_000, silence_limit_ms=30_000) as raw, server.stub() as stub:
                for frame_id in range(20):
                    await raw.send(frame_id)
                    assert value(await raw.result()) == 100 + frame_id % 16
                    answer = await asyncio.wait_for(stub.Infer(unary(free, stub, frame_id)), 20)
                    assert value(answer.result) == 100 + frame_id % 16
                server.service._watch()
                await raw.call.done_writing()
                assert await raw.ending() == (grpc.StatusCode.OK, [])


class TestChanges:
    async def test_calls_under_way_are_answered_by_the_release_that_took_them(self, model, tmp_path):
        newer = load_model(bundles.open_made(bundles.make(release=2).write(tmp_path / "new.ncb")))
        async with running(model, max_batch=1) as server, server.stub() as stub:
            calls = [asyncio.ensure_future(stub.Infer(unary(model, stub, k))) for k in range(3)]
            slot = next(iter(server.table))
            await until(lambda: slot.batcher.queued == 2 and model.backend.batches, "one is computed, two wait")
            before = server.table.publish(Batcher(newer))
            assert value((await stub.Infer(unary(model, stub, 3))).result) == 103
            model.backend.go.set()
            assert [value((await call).result) for call in calls] == [100, 101, 102]
            await asyncio.wait_for(before.idle(), 20)
            await before.close()
            assert model.backend.batches == [1, 1, 1]
            assert sorted(record.release for record in server.recorder.frames) == [1, 1, 1, 2]

    async def test_calls_under_way_are_answered_before_the_end(self, model):
        server = TailServer({"tiny": model}, Address("127.0.0.1", 0), max_batch=1)
        async with grpc.aio.insecure_channel(str(await server.start())) as channel:
            stub = TailServiceStub(channel)
            calls = [asyncio.ensure_future(stub.Infer(unary(model, stub, k))) for k in range(3)]
            slot = next(iter(server.table))
            await until(lambda: slot.batcher.queued == 2 and model.backend.batches, "one is computed, two wait")
            stopping = asyncio.ensure_future(server.stop(20))
            await until(lambda: server.state == "draining", "it drains")
            model.backend.go.set()
            assert [value((await call).result) for call in calls] == [100, 101, 102]
            await asyncio.wait_for(stopping, 20)

    async def test_calls_that_wait_at_the_end_of_the_grace_are_told(self, model):
        server = TailServer({"tiny": model}, Address("127.0.0.1", 0), max_batch=1)
        async with grpc.aio.insecure_channel(str(await server.start())) as channel:
            stub = TailServiceStub(channel)
            calls = [asyncio.ensure_future(stub.Infer(unary(model, stub, k))) for k in range(2)]
            slot = next(iter(server.table))
            await until(lambda: slot.batcher.queued == 1 and model.backend.batches, "one is computed, one waits")
            await asyncio.wait_for(server.stop(0.2), 20)
            for call in calls:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            model.backend.go.set()

    async def test_a_stream_that_opens_while_its_model_goes_is_drained(self, free):
        """Other streams of the model have been told already."""

        class Retiring(OpenGate):
            table: ModelTable

            def priority(self, client: str, wanted: Priority) -> Priority:
                if wanted is Priority.URGENT:
                    self.retired = self.table.retire("tiny", free.codec.fingerprint)
                return wanted

        gate = Retiring()
        async with running(free, gate=gate) as server, stream(server, free) as first:
            gate.table = server.table
            async with stream(server, free, priority=pb.PRIORITY_URGENT) as late:
                for raw in (first, late):
                    drain = (await raw.read()).drain
                    assert (drain.reason, drain.come_back) == ("model unloaded", True)
                    await raw.call.done_writing()
                    with contextlib.suppress(asyncio.InvalidStateError):
                        assert (await raw.ending())[0] is grpc.StatusCode.OK
            await gate.retired.close()
