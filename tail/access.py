"""Who may use the server, and by which name it knows them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from narrowcast.tail.errors import ListenError
from narrowcast.tail.frame import Priority
from narrowcast.tail.observe import Observer
from narrowcast.transport.rpc.channels import MAX_STREAMS, Address

Context = grpc.aio.ServicerContext[Any, Any]


class Gate(Protocol):
    """Asked at every stream and call, and for every frame."""

    def client(self, context: Context) -> str:
        """The name of whoever calls. May be asked again for the same call.

        Raises:
            AccessError: the caller is not to be served.
        """

    def when_full(self, look: Callable[[str | None], None]) -> None:
        """Has ``look`` called where there is no room for a stream: with the client that has too many, else with None."""

    def ended(self, context: Context) -> grpc.StatusCode | None:
        """The status with which the gate itself has ended a call that is still open; None where it has not."""

    def check_model(self, client: str, model: str) -> None:
        """Returns if a client may use a model, there or not.

        Raises:
            AccessError: it may not.
        """

    def priority(self, client: str, wanted: Priority) -> Priority:
        """The priority that a client gets: what it wants, or less."""

    def allow_frame(self, client: str, packet_bytes: int, frames: int = 1) -> int:
        """Whether a client may send a frame now: 0, or milliseconds until it is worth trying again (its rate is used up).

        Args:
            client: its name.
            packet_bytes: of all frames together.
            frames: that come together, or not at all.
        """


class OpenGate:
    """A :class:`Gate` that lets everybody in, under the address that they come from."""

    def client(self, context: Context) -> str:
        """See :class:`Gate`."""
        return host_of(context.peer())

    def when_full(self, look: Callable[[str | None], None]) -> None:
        """See :class:`Gate`. There always is room."""

    def ended(self, context: Context) -> grpc.StatusCode | None:
        """See :class:`Gate`."""
        return None

    def check_model(self, client: str, model: str) -> None:
        """See :class:`Gate`."""

    def priority(self, client: str, wanted: Priority) -> Priority:
        """See :class:`Gate`."""
        return wanted

    def allow_frame(self, client: str, packet_bytes: int, frames: int = 1) -> int:
        """See :class:`Gate`."""
        return 0


async def _nothing_to_watch() -> None:
    await asyncio.Event().wait()


@dataclass(frozen=True)
class Access:
    """How a server is reached, and by whom. The default is neither encrypted nor authenticated.

    Attributes:
        gate: asked for every call and frame.
        credentials: TLS; None for none.
        authenticates: whether callers must show a certificate or token.
        interceptors: of the gRPC server: every service goes through them, whoever wrote it.
        report: told of the server's observer, which refusals at the interceptors go to.
        max_streams: that the gate lets be open at once: the server takes connections for more.
        watch: runs as long as the server: takes up changed files, and ends the streams of those who may not go on.
    """

    gate: Gate = field(default_factory=OpenGate)
    credentials: grpc.ServerCredentials | None = None
    authenticates: bool = False
    interceptors: Sequence[grpc.aio.ServerInterceptor] = ()
    report: Callable[[Observer], None] = lambda observer: None
    max_streams: int = MAX_STREAMS
    watch: Callable[[], Coroutine[Any, Any, None]] = _nothing_to_watch

    def add_port(self, server: grpc.aio.Server, address: Address) -> int:
        """Lets a server listen there; gives the real port. Raises RuntimeError as gRPC does."""
        if self.credentials is None:
            return server.add_insecure_port(str(address))
        return server.add_secure_port(str(address), self.credentials)

    def check_listen(self, address: Address, *, insecure: bool) -> None:
        """See :func:`check_listen`."""
        check_listen(
            address, encrypted=self.credentials is not None, authenticates=self.authenticates, insecure=insecure
        )


def check_listen(
    address: Address,
    *,
    encrypted: bool,
    authenticates: bool,
    insecure: bool,
    what: str = "--listen",
    tls: str = "--tls",
) -> None:
    """Returns if a server may listen there: on this machine always, beyond it encrypted and with known callers, or if told.

    Args:
        address: where.
        encrypted: the traffic is.
        authenticates: callers must show who they are.
        insecure: the operator has said that it does not matter.
        what: the option that names the address.
        tls: the option that would protect it.

    Raises:
        ListenError: it may not.
    """
    if address.is_loopback or insecure or (encrypted and authenticates):
        return
    lacking = "anyone could use it" if encrypted else "the traffic would be neither encrypted nor authenticated"
    raise ListenError(
        f"{address} can be reached from other machines, and {lacking}; serve with {tls} DIR (narrowcast keys issue makes "
        f"one), listen on this machine only ({what} 127.0.0.1), or pass --insecure on a network that you trust"
    )


def host_of(peer: str) -> str:
    """A peer of gRPC's, ``ipv4:192.0.2.7:5000`` and ``ipv6:%5B::1%5D:5000`` without their ports."""
    kind, _, rest = peer.partition(":")
    if kind == "ipv4":
        return rest.rpartition(":")[0]
    if kind == "ipv6":
        return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    return peer or "unknown"
