"""The standard health service (``grpc.health.v1``), per model.

``grpcio-health-checking`` brings the messages. Its asyncio servicer is not used: when one of several watchers of a name
leaves, it forgets the others, and its setter waits for watchers that do not read.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from narrowcast.tail.access import Context

SERVING: int = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: int = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN: int = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
MAX_WATCHERS = 1000
MAX_NAME_CHARACTERS = 300


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the library has no types
    """Answers ``Check`` and ``Watch``. Must be used on one event loop.

    By the protocol's own rules: an unknown name is NOT_FOUND to the one, and SERVICE_UNKNOWN to the other, which goes on and
    tells when that changes.
    """

    def __init__(self) -> None:
        self._states: dict[str, int] = {"": NOT_SERVING}
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._watching = 0
        self._draining = False

    def set(self, name: str, state: int | None) -> None:
        """What a service or model is from now on; None forgets it. Does nothing once :meth:`drain` was called."""
        if not self._draining:
            self._set(name, state)

    def state(self, name: str) -> int | None:
        """What was set last."""
        return self._states.get(name)

    def names(self) -> list[str]:
        """Of all that is known."""
        return sorted(self._states)

    def drain(self) -> None:
        """Everything is NOT_SERVING from now on, for good; those who watch are told, and their calls end."""
        self._draining = True
        for name in list(self._states):
            self._set(name, NOT_SERVING)
        for watchers in self._watchers.values():  # those of names that are unknown, too
            for changed in watchers:
                changed.set()

    async def Check(self, request: Any, context: Context) -> Any:
        """See the protocol."""
        state = self._states.get(request.service)
        if state is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no service or model of that name here")
        return health_pb2.HealthCheckResponse(status=state)

    async def Watch(self, request: Any, context: Context) -> None:
        """See the protocol."""
        if self._watching >= MAX_WATCHERS or len(request.service) > MAX_NAME_CHARACTERS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MAX_WATCHERS} calls watch already, or the name has more than {MAX_NAME_CHARACTERS} characters",
            )
        name, changed, told = request.service, asyncio.Event(), None
        self._watchers[name].add(changed)
        self._watching += 1
        try:
            while True:
                changed.clear()
                state = self._states.get(name, SERVICE_UNKNOWN)
                if state != told:
                    await context.write(health_pb2.HealthCheckResponse(status=state))
                    told = state  # which may have changed again while it was written
                elif self._draining:  # else the server would wait for those who watch it
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
                else:
                    await changed.wait()
        finally:
            self._watching -= 1
            self._watchers[name].discard(changed)
            if not self._watchers[name]:
                del self._watchers[name]

    def _set(self, name: str, state: int | None) -> None:
        if state is None:
            self._states.pop(name, None)
        else:
            self._states[name] = state
        for changed in self._watchers.get(name, ()):
            changed.set()
