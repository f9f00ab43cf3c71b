"""The health service's client half, beside the package that has the other one."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from narrowcast.head.health import Health, _request, _status, check


@pytest.mark.parametrize("service", ["", "tiny", "n" * 127, "n" * 128, "n" * 300, "größe"])
def test_requests_are_as_the_package_writes_them(service):
    assert _request(service) == health_pb2.HealthCheckRequest(service=service).SerializeToString()


@pytest.mark.parametrize("status", list(Health))
def test_statuses_are_read_as_the_package_writes_them(status):
    assert _status(health_pb2.HealthCheckResponse(status=int(status)).SerializeToString()) is status


@pytest.mark.parametrize("data", [b"x", b"\x08", b"\x08\x09", b"\x08\x01\x01", bytes(100)])
def test_anything_else_is_unknown(data):
    assert _status(data) is Health.UNKNOWN


async def test_a_real_server(monkeypatch):
    server, servicer = grpc.aio.server(), health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await servicer.set("tiny", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert await check(channel, "tiny") is Health.NOT_SERVING
        assert await check(channel, "") is Health.SERVING
        assert await check(channel, "other") is Health.SERVICE_UNKNOWN
        await server.stop(None)
        with pytest.raises(grpc.aio.AioRpcError):
            await check(channel, "tiny")


async def test_a_server_without_it():
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert await check(channel, "tiny") is None
    await server.stop(None)
