"""A server with TLS on this loop, and what clients see of it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time

import grpc
import pytest

from narrowcast.cli.serving import security
from narrowcast.head.client import AsyncClient
from narrowcast.head.errors import LinkError
from narrowcast.tail.observe import Silent
from narrowcast.tail.server import TailServer
from narrowcast.tail.store import load_models
from narrowcast.transport.packet import VERSION
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.channels import Address
from narrowcast.transport.rpc.credentials import client_tls, open_channel
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceStub
from support import bundles

FRAME = bundles.random_frames(1)[0]


LOOPBACK = Address("127.0.0.1", 0)


class Refusals(Silent):
    """An observer of who is turned away."""

    def __init__(self):
        self.codes = []

    def refused(self, client, model, code):
        self.codes.append(code)


@contextlib.asynccontextmanager
async def serving(tiny_folder, *options, observer=None, listen=LOOPBACK):
    """A server on this loop, set up by the command line's own options."""
    parser = argparse.ArgumentParser()
    security.add_arguments(parser)
    args = parser.parse_args([str(option) for option in options])
    models = load_models(tiny_folder, trusted=[bundles.trusted_key()])
    server = TailServer(models, listen, access=security.build_access(args), observer=observer)
    address = await server.start()
    try:
        yield address
    finally:
        await server.stop(0)


async def answer(session, address, tls, **options):
    """One frame's result through the edge client."""
    options = {"give_up_seconds": 1.0, **options}
    async with AsyncClient(session, address, tls=tls, **options) as client:
        return await client.infer(FRAME)


async def opened(session, address, tls):
    """A raw stream, open: (channel, call, what the server said)."""
    channel = open_channel(address, client_tls(tls))
    call = TailServiceStub(channel).Stream()
    fingerprint = session.codec.fingerprint
    await call.write(
        pb.StreamRequest(
            open=pb.Open(
                model="tiny", codec_fingerprint=fingerprint, packet_version=VERSION, stream_id=bytes(16), window=4
            )
        )
    )
    return channel, call, (await call.read()).opened


async def called(session, address, tls):
    """By which name the server knows us."""
    channel, call, said = await opened(session, address, tls)
    call.cancel()
    await channel.close()
    return said.client


async def eventually(attempt, what, seconds=10.0):
    """Waits until ``await attempt()`` is true."""
    deadline = time.monotonic() + seconds
    while not await attempt():
        assert time.monotonic() < deadline, f"after {seconds} s still not: {what}"
        await asyncio.sleep(0.05)


async def refused(session, address, tls):
    """Whether the server, or TLS, turns us away."""
    try:
        await called(session, address, tls)
    except grpc.aio.AioRpcError as error:
        return error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)
    return False


async def trouble(session, address, tls):
    """The error that a user sees, in full."""
    with pytest.raises(LinkError) as caught:
        await answer(session, address, tls, give_up_seconds=0.3)
    return str(caught.value)
