"""A gRPC servicer behind something that hands over requests as iterators and takes responses from generators.

Ray Serve does: it has the client's connection, and calls a replica's methods with a stream of requests and a context
that knows the caller. The servicers here are written for ``grpc.aio``; these adapters stand between the two. Nothing here
needs Ray.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar

import grpc

Response = TypeVar("Response")
# Responses that may wait for their taker; the servicer's writes wait behind them.
MAX_WAITING = 16


class AbortError(Exception):
    """A servicer has ended its call with a status; the caller's context has it."""


class CallerContext(Protocol):
    """What is known of a call: a part of ``ray.serve.grpc_util.RayServegRPCContext``."""

    def peer(self) -> str:
        """Where the call comes from."""

    def auth_context(self) -> Any:
        """Of the connection."""

    def invocation_metadata(self) -> Any:
        """What the client has sent along."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """The status to end with."""

    def set_details(self, details: str) -> None:
        """Its message."""

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        """What goes out with it."""


class BridgedContext:
    """As much of ``grpc.aio.ServicerContext`` as servicers here use.

    Args:
        caller: what is known of the call.
        requests: of a stream; none for a unary call.
    """

    def __init__(self, caller: CallerContext, requests: AsyncIterator[Any] | None = None) -> None:
        self._caller = caller
        self._requests = requests
        self._waiting: deque[Any] = deque()
        self._changed: asyncio.Future[None] | None = None  # the taker waits for a response
        self._room: asyncio.Future[None] | None = None  # the servicer waits for the taker

    def peer(self) -> str:
        """Where the call comes from; behind a proxy, the proxy's side of the connection."""
        return self._caller.peer()

    def auth_context(self) -> Any:
        """Of the connection that the call came over."""
        return self._caller.auth_context()

    def invocation_metadata(self) -> Any:
        """What the client has sent along."""
        return self._caller.invocation_metadata()

    def time_remaining(self) -> float | None:
        """None: the client's deadline is not handed over."""
        return None

    def set_trailing_metadata(self, trailing_metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """To go out with the status."""
        self._caller.set_trailing_metadata(list(trailing_metadata))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        """Ends the call.

        Raises:
            AbortError: always.
        """
        if trailing_metadata:
            self.set_trailing_metadata(trailing_metadata)
        self._caller.set_code(code)
        self._caller.set_details(details)
        raise AbortError(f"{code.name}: {details}")

    async def read(self) -> Any:
        """The next request, or ``grpc.aio.EOF``."""
        assert self._requests is not None
        try:
            return await self._requests.__anext__()
        except StopAsyncIteration:
            return grpc.aio.EOF

    async def write(self, response: Any) -> None:
        """Hands over a response; waits while :data:`MAX_WAITING` of them are not taken."""
        while len(self._waiting) >= MAX_WAITING:
            self._room = asyncio.get_running_loop().create_future()
            await self._room
        self._waiting.append(response)
        _wake(self._changed)

    async def responses(self, servicer: Callable[..., Awaitable[None]]) -> AsyncIterator[Any]:
        """What a servicer's streaming method writes, until it ends.

        Raises:
            AbortError: it has ended the call.
        """
        running = asyncio.ensure_future(servicer(None, self))
        running.add_done_callback(lambda _: _wake(self._changed))
        try:
            while True:
                while self._waiting:
                    response = self._waiting.popleft()
                    _wake(self._room)
                    yield response
                if running.done():
                    break
                self._changed = asyncio.get_running_loop().create_future()
                await self._changed
            await running
        finally:  # also where nobody takes responses any more
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
