"""What a server says to clients that keep the protocol, and to those that do not: a real socket."""

from __future__ import annotations

import asyncio
import os
import signal

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support import bundles
from support.server import serving

from narrowcast.transport.packet import VERSION, CodecId, Packet, StreamContext
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceStub
from narrowcast.transport.rpc.tensors import from_tensors


class TestProtocol:
    """What the server says to clients that are not ours."""

    @pytest.fixture
    async def stub(self, server):
        async with grpc.aio.insecure_channel(str(server.address)) as channel:
            yield TailServiceStub(channel)

    @pytest.fixture
    def context(self, tiny) -> StreamContext:
        return StreamContext(os.urandom(16), tiny.codec().fingerprint, 1_000)

    def opening(self, context: StreamContext, **change) -> pb.StreamRequest:
        fields = {
            "model": "tiny",
            "codec_fingerprint": context.fingerprint,
            "packet_version": VERSION,
            "stream_id": context.stream_id,
            "epoch_us": context.epoch_us,
            "window": 4,
        }
        return pb.StreamRequest(open=pb.Open(**{**fields, **change}))

    def packet(self, session, context: StreamContext, frame_id: int = 0, **change) -> Packet:
        payload = session.encode(bundles.random_frames(1)[0], 1).payload
        made = Packet(CodecId.RANS, 1, frame_id, 2_000, payload, context.stream_id, context.fingerprint)
        return made._replace(**change)

    async def ending(self, stub, *requests: pb.StreamRequest) -> tuple[grpc.StatusCode, str, list[pb.StreamResponse]]:
        """How a stream of these requests ends."""
        call = stub.Stream()
        responses = []
        try:
            for request in requests:
                await call.write(request)
            await call.done_writing()
            while (response := await call.read()) is not grpc.aio.EOF:
                responses.append(response)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        return await call.code(), await call.details(), responses

    async def test_a_good_stream_ends_well(self, stub, session, context):
        packets = [self.packet(session, context, k).to_stream_bytes(context) for k in range(3)]
        requests = [pb.StreamRequest(packet=data) for data in packets]
        code, _, responses = await self.ending(stub, self.opening(context), *requests)
        assert code is grpc.StatusCode.OK
        assert responses[0].opened.window == 4
        assert [response.result.frame_id for response in responses[1:]] == [0, 1, 2]

    async def test_a_frame_that_cannot_be_answered_fails_alone(self, stub, session, context):
        packets = [
            self.packet(session, context, 0, level=7),
            self.packet(session, context, 1, payload=b"garbage"),
            self.packet(session, context, 2, codec=CodecId.ZSTD),
            self.packet(session, context, 3),
        ]
        requests = [pb.StreamRequest(packet=packet.to_stream_bytes(context)) for packet in packets]
        code, _, responses = await self.ending(stub, self.opening(context), *requests)
        assert code is grpc.StatusCode.OK
        results = [response.result for response in responses[1:]]
        invalid = grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert [result.code for result in results] == [invalid, invalid, invalid, 0]
        assert "levels 0..1" in results[0].message
        assert "payload" in results[1].message
        assert "has RANS" in results[2].message
        assert from_tensors(results[3].outputs, bundles.OUTPUTS)["output"].shape == (3,)

    async def test_damaged_packets_end_the_stream(self, stub, session, context):
        good = self.packet(session, context).to_stream_bytes(context)
        for bad in (b"", good[:-1], good + b"x", bytes([good[0] ^ 1]) + good[1:], good[:-1] + bytes([good[-1] ^ 1])):
            code, details, _ = await self.ending(stub, self.opening(context), pb.StreamRequest(packet=bad))
            assert code is grpc.StatusCode.DATA_LOSS
            assert "packet" in details

    async def test_what_was_taken_in_before_a_damaged_packet_is_answered(self, stub, session, context):
        good = self.packet(session, context).to_stream_bytes(context)
        requests = (self.opening(context), pb.StreamRequest(packet=good), pb.StreamRequest(packet=b"bad"))
        code, _, responses = await self.ending(stub, *requests)
        assert code is grpc.StatusCode.DATA_LOSS
        assert [response.WhichOneof("message") for response in responses] == ["opened", "result"]

    @pytest.mark.parametrize(
        ("change", "code", "said"),
        [
            ({"model": "none"}, grpc.StatusCode.FAILED_PRECONDITION, "there is tiny"),
            ({"codec_fingerprint": b"x" * 16}, grpc.StatusCode.FAILED_PRECONDITION, "one compilation"),
            ({"packet_version": 9}, grpc.StatusCode.FAILED_PRECONDITION, "packet version 9"),
            ({"stream_id": b"short"}, grpc.StatusCode.INVALID_ARGUMENT, "16 bytes"),
        ],
    )
    async def test_openings_that_are_refused(self, stub, context, change, code, said):
        found, details, _ = await self.ending(stub, self.opening(context, **change))
        assert found is code
        assert said in details

    async def test_the_order_of_messages(self, stub, context):
        code, details, _ = await self.ending(stub, pb.StreamRequest(packet=b"x"))
        assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, "the first message of a stream is `open`")
        code, details, _ = await self.ending(stub, self.opening(context), self.opening(context))
        assert (code, details) == (grpc.StatusCode.INVALID_ARGUMENT, "after `open`, a stream carries packets and pings")
        assert (await self.ending(stub))[0] is grpc.StatusCode.INVALID_ARGUMENT

    async def test_the_window_is_kept(self, tiny_folder, session, context):
        """A server that is stopped while packets arrive sees them all at once, unanswered."""
        with serving(tiny_folder, tiny_folder / "test.pub", "--max-batch", "1") as server:
            async with grpc.aio.insecure_channel(str(server.address)) as channel:
                call = TailServiceStub(channel).Stream()
                await call.write(self.opening(context, window=2))
                assert (await call.read()).opened.window == 2
                server.kill(signal.SIGSTOP)
                for k in range(40):
                    packet = self.packet(session, context, k).to_stream_bytes(context)
                    await call.write(pb.StreamRequest(packet=packet))
                server.kill(signal.SIGCONT)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    while await call.read() is not grpc.aio.EOF:
                        pass
                assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert "(the window)" in caught.value.details()

    async def test_unary(self, stub, session, context):
        packet = self.packet(session, context)
        response = await stub.Infer(pb.InferRequest(model="tiny", packet=packet.to_bytes(), tails=["main"]))
        expected = bundles.expected_output(bundles.random_frames(1)[0], 1)
        assert np.allclose(from_tensors(response.result.outputs, bundles.OUTPUTS)["output"], expected, atol=1e-4)
        assert len(response.result.outputs) == 1
        for request, code in (
            (pb.InferRequest(model="tiny", packet=b"x"), grpc.StatusCode.DATA_LOSS),
            (pb.InferRequest(model="x", packet=packet.to_bytes()), grpc.StatusCode.FAILED_PRECONDITION),
            (pb.InferRequest(model="tiny", packet=packet.to_bytes(), tails=["x"]), grpc.StatusCode.FAILED_PRECONDITION),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Infer(request)
            assert caught.value.code() is code

    async def test_models_are_listed(self, stub, tiny):
        (model,) = (await stub.ListModels(pb.ListModelsRequest())).models
        assert (model.name, model.release, model.levels) == ("tiny", 1, 2)
        assert model.codec_fingerprint.hex() == tiny.manifest.fingerprint
        assert list(model.symbols_shape) == list(bundles.SHAPE)
        assert list(model.tails) == ["main"]

    async def test_an_oversize_message_is_refused_and_the_server_lives(self, stub, context):
        huge = pb.InferRequest(model="tiny", packet=bytes(20 * 1024 * 1024))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Infer(huge)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await stub.ListModels(pb.ListModelsRequest())).models

    @pytest.mark.parametrize("service", ["", "narrowcast.tail.v1.TailService", "tiny"])
    async def test_health(self, server, service):
        async with grpc.aio.insecure_channel(str(server.address)) as channel:
            response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
        assert response.status == health_pb2.HealthCheckResponse.SERVING
