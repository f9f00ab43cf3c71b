"""A connection that is not needed any more is closed at once: not when Python next looks for rings of objects."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from pathlib import Path

import grpc
import pytest
from support import bundles
from support.scripted import EndedError, echo, scripted
from support.waiting import eventually, until

from narrowcast.head.client import AsyncClient, Client
from narrowcast.head.errors import LinkError
from narrowcast.head.socket_bytes import SocketMeter
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceServicer, add_TailServiceServicer_to_server

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's /proc")
FRAME = bundles.random_frames(1)[0]


@pytest.fixture
def bundle(tmp_path):
    return bundles.open_made(bundles.make().write(tmp_path / "tiny.ncb"), "device")


@pytest.fixture(autouse=True)
def _no_collection():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def connections(address: str) -> int:
    """Of this process, to a server."""
    return SocketMeter(int(address.rpartition(":")[2])).connections()


async def test_a_client_that_is_closed_leaves_no_connection(bundle):
    async with scripted(echo) as server:
        async with AsyncClient(bundle, server.address) as client:
            await client.infer(FRAME)
            assert connections(server.address) == 1
        await eventually(lambda: connections(server.address) == 0, "the connection is closed")


async def test_streams_that_broke_or_drained_leave_no_connection(bundle):
    async def ends(talk):
        """The first two break, the next two drain, the fifth stays."""
        talk.answer(await talk.frame())
        if talk.number < 2:
            await talk.frame()
            raise EndedError(grpc.StatusCode.UNAVAILABLE)
        if talk.number < 4:
            talk.say(drain={"grace_ms": 50, "come_back": True})
        await echo(talk)

    async with scripted(ends) as server, AsyncClient(bundle, server.address) as client:
        while len(server.streams) < 5:
            await client.infer(FRAME)
        await eventually(lambda: connections(server.address) == 1, "that in use is the only one")


async def test_servers_that_refuse_leave_no_connection(bundle):
    server = grpc.aio.server()  # without any service
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(bundle, f"127.0.0.1:{port}") as client:
        with pytest.raises(LinkError):
            await client.infer(FRAME)
        await eventually(lambda: connections(f"127.0.0.1:{port}") == 0, "the connection is closed")
    await server.stop(None)


async def test_a_stream_that_does_not_open_leaves_no_connection(bundle, monkeypatch):
    monkeypatch.setattr("narrowcast.head.link.OPEN_SECONDS", 0.05)

    class Silent(TailServiceServicer):
        async def Stream(self, requests, context):
            await asyncio.Event().wait()
            yield

    server = grpc.aio.server()
    add_TailServiceServicer_to_server(Silent(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    troubles = []
    async with AsyncClient(bundle, address, on_outage="drop", on_trouble=troubles.append) as client:
        waiting = asyncio.create_task(client.infer(FRAME))
        await eventually(lambda: troubles, "it is noticed")
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
    await eventually(lambda: connections(address) == 0, "the connection is closed")
    await server.stop(None)


async def test_a_client_for_ordinary_code_that_is_closed_leaves_no_connection(bundle):
    async with scripted(echo) as server:

        def work():
            with Client(bundle, server.address) as client:
                client.infer(FRAME)
            until(lambda: connections(server.address) == 0, "the connection is closed")

        await asyncio.to_thread(work)
