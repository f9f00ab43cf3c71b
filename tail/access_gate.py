"""The gate of a real server: known callers, within their limits."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import grpc

from narrowcast.tail.access import Context, host_of
from narrowcast.tail.access_callers import Caller, Callers
from narrowcast.tail.access_files import Watched
from narrowcast.tail.access_limits import PRIORITIES, ClientLimits, RateLimiter
from narrowcast.tail.errors import AccessError
from narrowcast.tail.frame import Priority
from narrowcast.tail.observe import Observer, Silent
from narrowcast.tail.requests import METHOD_KINDS
from narrowcast.tail.seldom import Seldom
from narrowcast.transport.rpc.channels import MAX_STREAMS

log = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 1.0
_FORGET_EVERY = 60


class _Call(NamedTuple):
    caller: Caller
    task: asyncio.Task[Any] | None


class AccessGate:
    """A :class:`narrowcast.tail.access.Gate`. Must be used on one event loop.

    Args:
        callers: tells who calls.
        limits: what each may.
        max_streams: open at once, of all clients, calls included.
        clock: for rates, seconds.
    """

    def __init__(
        self,
        callers: Callers,
        limits: Watched[ClientLimits],
        *,
        max_streams: int = MAX_STREAMS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._callers = callers
        self._limits = limits
        self._max_streams = max_streams
        self._rates = RateLimiter(clock)
        self._calls: dict[Context, _Call] = {}
        self._ended: dict[Context, grpc.StatusCode] = {}  # by the gate, while their handlers still run
        self._refusals = RefusalLog(clock)
        self._look: Callable[[str | None], None] = lambda client: None
        self._ending: set[asyncio.Task[None]] = set()

    def client(self, context: Context) -> str:
        """See :class:`narrowcast.tail.access.Gate`. The call counts as open until gRPC says that it is over."""
        known = self._calls.get(context)
        if known is not None:
            return known.caller.name
        try:
            caller = self._callers.identify(context)
            self._check_room(caller.name)
        except AccessError as error:
            self._refusals.tell(host_of(context.peer()), str(error))
            raise
        self._calls[context] = _Call(caller, asyncio.current_task())
        context.add_done_callback(self._over)  # type: ignore[arg-type]
        return caller.name

    def _over(self, context: Context) -> None:
        self._calls.pop(context, None)
        self._ended.pop(context, None)

    def when_full(self, look: Callable[[str | None], None]) -> None:
        """See :class:`narrowcast.tail.access.Gate`."""
        self._look = look

    def ended(self, context: Context) -> grpc.StatusCode | None:
        """See :class:`narrowcast.tail.access.Gate`."""
        return self._ended.get(context)

    def check_model(self, client: str, model: str) -> None:
        """See :class:`narrowcast.tail.access.Gate`."""
        models = self._limits.value.of(client).models
        if models is not None and model not in models:
            allowed = ", ".join(models) or "none"
            raise AccessError(
                grpc.StatusCode.PERMISSION_DENIED,
                f"{client} may not use the model {model[:80]!r}; it may use: {allowed}",
            )

    def priority(self, client: str, wanted: Priority) -> Priority:
        """See :class:`narrowcast.tail.access.Gate`."""
        cap = self._limits.value.of(client).priority
        return wanted if cap is None else min(wanted, PRIORITIES[cap])

    def allow_frame(self, client: str, packet_bytes: int, frames: int = 1) -> int:
        """See :class:`narrowcast.tail.access.Gate`."""
        return self._rates.wait_ms(client, self._limits.value.of(client), packet_bytes, frames)

    def _check_room(self, name: str) -> None:
        limits = self._limits.value
        if limits.only_listed and name not in limits.clients:
            raise AccessError(grpc.StatusCode.PERMISSION_DENIED, f"{name} is not among the clients of this server")
        if len(self._calls) >= self._max_streams:
            self._look(None)
            raise AccessError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{self._max_streams} streams are open, the most for this server"
            )
        most = limits.of(name).streams
        if most is not None and sum(call.caller.name == name for call in self._calls.values()) >= most:
            self._look(name)
            raise AccessError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{most} streams of {name} are open, the most that it may have"
            )

    async def watch(self) -> None:
        """Runs as long as the server: takes up changed files, ends the streams of those who may not go on."""
        turns = 0
        while True:
            await asyncio.sleep(LOOK_EVERY_SECONDS)
            turns += 1
            await asyncio.to_thread(self._refresh)
            self.sweep()
            if turns % _FORGET_EVERY == 0:
                self._rates.forget_idle()

    def _refresh(self) -> None:
        self._callers.refresh()
        self._limits.refresh()

    def sweep(self) -> None:
        """Ends the calls of those who are to be served no longer."""
        for context, call in list(self._calls.items()):
            try:
                call.caller.still()
            except AccessError as error:
                log.warning("a stream of %s is ended: %s", call.caller.name, error)
                del self._calls[context]
                self._ended[context] = error.code
                ending = asyncio.create_task(_end(context, call, error))
                self._ending.add(ending)
                ending.add_done_callback(self._ending.discard)


async def _end(context: Context, call: _Call, error: AccessError) -> None:
    """Sends the status, then stops the handler, which could neither read nor write any more."""
    with contextlib.suppress(grpc.aio.AbortError, grpc.aio.UsageError, asyncio.InvalidStateError):
        await context.abort(error.code, str(error))
    if call.task is not None:
        call.task.cancel()


class GateKeeper(grpc.aio.ServerInterceptor):
    """Asks the gate before any method of any service runs: none can forget to. Health checks go through.

    Args:
        gate: who is asked.
    """

    def __init__(self, gate: AccessGate) -> None:
        self._gate = gate
        self._observer: Observer = Silent()

    def report(self, observer: Observer) -> None:
        """From now on refusals are told to ``observer``, too."""
        self._observer = observer

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See gRPC."""
        handler = await continuation(handler_call_details)
        if handler is None or str(handler_call_details.method).startswith("/grpc.health.v1.Health/"):
            return handler
        return self._guarded(handler)

    def _guarded(self, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """The same method, behind the gate."""
        kind, make = METHOD_KINDS[bool(handler.request_streaming), bool(handler.response_streaming)]
        method = getattr(handler, kind)

        async def call(request: Any, context: Context) -> Any:
            await self._admit(context)
            return await method(request, context)

        async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
            await self._admit(context)
            async for response in method(request, context):
                yield response

        return make(
            generate if inspect.isasyncgenfunction(method) else call,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    async def _admit(self, context: Context) -> None:
        try:
            self._gate.client(context)
        except AccessError as error:
            self._observer.refused("", "", error.code.name)
            await context.abort(error.code, str(error))


class RefusalLog:
    """Says who was refused and why, once a minute for each address, so that nobody can fill the disk by calling.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.seldom = Seldom(clock)

    def tell(self, host: str, reason: str) -> None:
        """One refusal."""
        more = self.seldom.take(host)
        if more is not None:
            log.warning("refused %s: %s%s", ascii(host)[1:-1], reason, more)
