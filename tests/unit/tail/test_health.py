"""The health service, over a real connection, and the models that it follows."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support import bundles

from narrowcast.tail import health
from narrowcast.tail.health import NOT_SERVING, SERVICE_UNKNOWN, SERVING, Health
from narrowcast.tail.opening import EndedError
from narrowcast.tail.server import SERVICE, TailServer
from narrowcast.tail.store import StoreSettings, load_models
from narrowcast.transport.bundle import describe_part
from narrowcast.transport.rpc.channels import Address


@pytest.fixture
async def served():
    """(the health service, a stub that asks it)."""
    servicer, server = Health(), grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield servicer, health_pb2_grpc.HealthStub(channel)
    await server.stop(0)


def about(name: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=name)


async def said(call) -> int:
    return (await asyncio.wait_for(call.read(), 20)).status


async def test_check(served):
    servicer, stub = served
    servicer.set("tiny", SERVING)
    assert (await stub.Check(about("tiny"))).status == SERVING
    servicer.set("tiny", None)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(about("tiny"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_is_told_of_a_model_that_comes_goes_and_comes_back(served):
    servicer, stub = served
    call = stub.Watch(about("tiny"))
    assert await said(call) == SERVICE_UNKNOWN
    for state, told in ((SERVING, SERVING), (NOT_SERVING, NOT_SERVING), (None, SERVICE_UNKNOWN), (SERVING, SERVING)):
        servicer.set("tiny", state)
        assert await said(call) == told


async def test_one_watcher_that_leaves_takes_no_other_with_it(served):
    servicer, stub = served
    first, second = stub.Watch(about("tiny")), stub.Watch(about("tiny"))
    assert await said(first) == await said(second) == SERVICE_UNKNOWN
    first.cancel()
    for _ in range(2000):
        if len(servicer._watchers["tiny"]) == 1:
            break
        await asyncio.sleep(0.01)
    servicer.set("tiny", SERVING)
    assert await said(second) == SERVING
    second.cancel()


async def test_draining_while_a_watcher_is_told_tells_it_the_end_as_well():
    servicer, written = Health(), []
    servicer.set("tiny", SERVING)

    class Slow:
        """A call whose peer takes its time."""

        async def write(self, response):
            written.append(response.status)
            servicer.drain()

        async def abort(self, code, details):
            raise EndedError(code, details)

    with pytest.raises(EndedError, match="shutting down"):
        await asyncio.wait_for(servicer.Watch(about("tiny"), Slow()), 20)
    assert written == [SERVING, NOT_SERVING]


async def test_draining_lets_those_go_who_watch_what_nobody_knows(served):
    servicer, stub = served
    call = stub.Watch(about("gone"))
    assert await said(call) == SERVICE_UNKNOWN
    servicer.drain()
    assert await asyncio.wait_for(call.code(), 20) is grpc.StatusCode.UNAVAILABLE


async def test_draining_tells_watchers_and_lets_them_go(served):
    servicer, stub = served
    servicer.set("tiny", SERVING)
    call = stub.Watch(about("tiny"))
    assert await said(call) == SERVING
    servicer.drain()
    assert await said(call) == NOT_SERVING
    assert await asyncio.wait_for(call.code(), 20) is grpc.StatusCode.UNAVAILABLE
    servicer.set("tiny", SERVING)
    assert (await stub.Check(about("tiny"))).status == NOT_SERVING
    assert not servicer._watchers


async def test_watchers_and_names_are_bounded(served, monkeypatch):
    _, stub = served
    monkeypatch.setattr(health, "MAX_WATCHERS", 2)
    calls = [stub.Watch(about(f"model-{k}")) for k in range(2)]
    for call in calls:
        await said(call)
    for request in (about("one-more"), about("x" * 1000)):
        assert await asyncio.wait_for(stub.Watch(request).code(), 20) is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in calls:
        call.cancel()


async def test_the_server_follows_its_models(tiny_folder):
    models = load_models(tiny_folder, trusted=[bundles.trusted_key()])
    server = TailServer(models, Address("127.0.0.1", 0))
    assert not server.ready
    address = await server.start()
    try:
        async with grpc.aio.insecure_channel(str(address)) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watched = stub.Watch(about("tiny"))
            assert await said(watched) == SERVING
            for name in ("", SERVICE):
                assert (await stub.Check(about(name))).status == SERVING
            slot = next(iter(server.table))
            batcher = server.table.retire(slot.name, slot.fingerprint)
            assert await said(watched) == SERVICE_UNKNOWN
            assert (await stub.Check(about(""))).status == NOT_SERVING
            assert not server.ready
            server.table.publish(batcher)
            assert await said(watched) == SERVING
            assert server.ready
    finally:
        await server.stop(1)
    assert server.state == "ended"


async def test_a_model_in_the_folder_that_is_refused_is_not_serving(tmp_path):
    def publish(file: str, made: bundles.Made) -> None:
        made.write(tmp_path / "partial")
        (tmp_path / "partial").rename(tmp_path / file)

    head = bundles.head_model()
    no_tail = describe_part("tail.onnx", head, "tail", ["server"], precision="fp32")
    publish("tiny.ncb", bundles.make())
    publish("other.ncb", bundles.make("other").with_part(no_tail, head))
    settings = StoreSettings(tmp_path, trusted=[bundles.trusted_key()], interval_seconds=0.0)
    server = TailServer(settings, Address("127.0.0.1", 0))
    address = await server.start()
    try:
        async with grpc.aio.insecure_channel(str(address)) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watched = stub.Watch(about("other"))
            assert await said(watched) == NOT_SERVING
            assert (await stub.Check(about(""))).status == SERVING
            publish("other.ncb", bundles.make("other", release=2))
            assert await said(watched) == SERVING
            (tmp_path / "other.ncb").unlink()
            assert await said(watched) == SERVICE_UNKNOWN
    finally:
        await server.stop(1)
