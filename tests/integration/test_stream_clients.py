"""docs/protocol.md, over real sockets: silent clients, who may do what, single calls, and many clients at once."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import numpy as np
import pytest
from support import inprocess
from support.inprocess import RawStream, running, stream, until, value
from support.relay import thin

from narrowcast.tail import stream as streams
from narrowcast.tail.access import OpenGate
from narrowcast.tail.access_callers import ByAddress
from narrowcast.tail.access_files import Watched
from narrowcast.tail.access_gate import AccessGate
from narrowcast.tail.access_limits import ClientLimits, Limits
from narrowcast.tail.errors import AccessError
from narrowcast.tail.store import Model
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceStub

INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]


EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


OWN = [("grpc.use_local_subchannel_pool", 1)]  # connections


EXPIRED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


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

        def allow_frame(self, client: str, packet_bytes: int, frames: int = 1) -> int:
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


class TestRoom:
    def gate(self, **limits) -> AccessGate:
        found = ClientLimits(default=Limits(**limits))
        return AccessGate(ByAddress(), Watched([], lambda: found, "limits"), max_streams=2)

    async def opens(self, server, model: Model) -> bool:
        """Whether there is room for one more; it is given back at once."""
        async with server.stub() as stub:
            raw = RawStream(stub, model)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await raw.open()
                raw.call.cancel()
                return True
            _, _, code = server.recorder.refusals[
                -1
            ]  # to a client whose first message crosses the refusal gRPC says less
            assert code == "RESOURCE_EXHAUSTED"
            return False

    @pytest.mark.parametrize(("limits", "count"), [({"streams": 1}, 1), ({}, 2)])
    async def test_a_client_that_lost_its_power_gives_its_place_back(self, free, limits, count, monkeypatch):
        quiet = [*inprocess.SERVER_OPTIONS, ("grpc.http2.bdp_probe", 0)]  # gRPC's measuring, which writes by itself
        monkeypatch.setattr(inprocess, "SERVER_OPTIONS", quiet)
        async with (
            running(free, gate=self.gate(**limits)) as server,
            thin(server.address, 1e9) as relay,
            contextlib.AsyncExitStack() as open_streams,
        ):
            for _ in range(count):
                channel = await open_streams.enter_async_context(grpc.aio.insecure_channel(relay.address, options=OWN))
                raw = RawStream(TailServiceStub(channel), free)
                await raw.open()
                await raw.settle()
            relay.vanish()
            assert not server.recorder.closed  # nothing was written, so nothing is known
            end = asyncio.get_running_loop().time() + 30
            while not await self.opens(server, free):
                assert asyncio.get_running_loop().time() < end, "its place is still taken"
                await asyncio.sleep(0.05)
            assert server.recorder.closed

    async def test_a_client_that_is_there_keeps_its_place(self, free, monkeypatch):
        monkeypatch.setattr(streams, "KNOCK_EVERY_SECONDS", 1e9)
        async with running(free, gate=self.gate(streams=1)) as server, stream(server, free) as raw:
            assert not await self.opens(server, free)
            assert (await raw.read()).credits.window == 8  # what it had
            assert not await self.opens(server, free)
            await raw.send(0)
            assert value(await raw.result()) == 100  # and it was asked once
            assert not server.recorder.closed


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
