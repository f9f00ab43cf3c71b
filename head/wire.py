"""The call that a stream runs on, over a connection of its own; and tasks that leave nothing behind that would keep it.

gRPC closes a connection when the last reference to its call is gone. An exception refers to the frames that it came through,
and a frame to the tasks that it waits for: where one of those holds the exception, that is a ring, which stays until Python
looks for rings. Nothing here, and nothing that uses it, leaves one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from typing import Any

import grpc

from narrowcast.head.endpoints import Endpoint
from narrowcast.head.health import Health, check
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.channels import CLIENT_OPTIONS
from narrowcast.transport.rpc.credentials import ClientTls, open_channel
from narrowcast.transport.rpc.tail_pb2_grpc import TailServiceStub


class Wire:
    """Made on an event loop, and used there.

    Args:
        endpoint: where to.
        tls: certificates, and a token where there is one; None for plain TCP.

    Attributes:
        sent_at: when the last message was, by ``time.monotonic()``.

    Raises:
        TransportError: the TLS files cannot be used (any more).
    """

    def __init__(self, endpoint: Endpoint, tls: ClientTls | None) -> None:
        options: list[tuple[str, Any]] = list(CLIENT_OPTIONS)
        if tls is not None and tls.server_name is None and endpoint.name != endpoint.address.host:
            # The certificate names the host, the connection its address.
            options.append(("grpc.ssl_target_name_override", endpoint.name))
        self._channel = open_channel(endpoint.address, tls, options)
        self._call = TailServiceStub(self._channel).Stream()
        self.sent_at = time.monotonic()

    async def open(self, opening: pb.Open) -> pb.StreamResponse | None:
        """Sends the first message; what the server says to it, None where it ends the stream."""
        await self._call.write(pb.StreamRequest(open=opening))
        return await self.read()

    async def write(self, request: pb.StreamRequest) -> None:
        """Sends; waits for ever where the call is over: whoever reads it is told why."""
        try:
            await self._call.write(request)
        except asyncio.InvalidStateError:
            await asyncio.Event().wait()
        self.sent_at = time.monotonic()

    async def read(self) -> pb.StreamResponse | None:
        """The next message; None at the end."""
        response = await self._call.read()
        return None if response is grpc.aio.EOF else response

    async def done_writing(self) -> None:
        """Nothing more is sent."""
        await self._call.done_writing()

    async def health(self, service: str) -> Health | None:
        """See :func:`narrowcast.head.health.check`."""
        return await check(self._channel, service)

    async def close(self) -> None:
        """Ends the call and the connection."""
        self._call.cancel()
        await self._channel.close()


async def first_of(*running: Coroutine[Any, Any, None]) -> None:
    """Runs all until one of them ends, which ends the others; its error is raised."""
    tasks = [asyncio.create_task(one) for one in running]
    del running
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        while done:
            done.pop().result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        let_go(tasks)
        del task, tasks


def let_go(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Takes from tasks that have ended the error that each may hold: nobody asks for it any more."""
    for task in tasks:
        if task.cancelled():
            with suppress(asyncio.CancelledError):
                task.result()
