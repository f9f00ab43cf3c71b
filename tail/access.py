"""Who may use the server, and by which name it knows them."""

from __future__ import annotations

from typing import Any, Protocol

import grpc

Context = grpc.aio.ServicerContext[Any, Any]


class Gate(Protocol):
    """Asked at every stream and call, and for every frame."""

    def client(self, context: Context) -> str:
        """The name of whoever calls.

        Raises:
            AccessError: the caller is not to be served.
        """

    def allow_frame(self, client: str, packet_bytes: int) -> int:
        """Whether a client may send a frame now: 0, or milliseconds until it is worth trying again (its rate is used up)."""


class OpenGate:
    """A :class:`Gate` that lets everybody in, under the address that they come from."""

    def client(self, context: Context) -> str:
        """See :class:`Gate`."""
        return _host(context.peer())

    def allow_frame(self, client: str, packet_bytes: int) -> int:
        """See :class:`Gate`."""
        return 0


def _host(peer: str) -> str:
    """``ipv4:192.0.2.7:5000`` and ``ipv6:%5B::1%5D:5000`` without their ports."""
    kind, _, rest = peer.partition(":")
    if kind == "ipv4":
        return rest.rpartition(":")[0]
    if kind == "ipv6":
        return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    return peer or "unknown"
