"""How both ends set up gRPC: limits, keepalive, addresses."""

from __future__ import annotations

import re
from typing import NamedTuple

from narrowcast.transport.errors import AddressError
from narrowcast.transport.packet import HEADER_BYTES, MAX_PAYLOAD_BYTES

DEFAULT_PORT = 7433
MAX_PACKET_BYTES = MAX_PAYLOAD_BYTES + HEADER_BYTES
MAX_MESSAGE_BYTES = MAX_PACKET_BYTES + 4096
MAX_RESULT_BYTES = 300 * 1024 * 1024
MAX_STREAMS = 4096  # of a server that is not told otherwise
MAX_CONNECTIONS = 2 * MAX_STREAMS

Options = list[tuple[str, int]]

# No keepalive: it pings on any open call, frames under way or not. The link judges by what comes back (head/liveness.py).
CLIENT_OPTIONS: Options = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_RESULT_BYTES),
    # A connection of its own for each link: its bytes can be counted, and a broken one is not handed on.
    ("grpc.use_local_subchannel_pool", 1),
    # narrowcast's own link decides when to connect again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also how long each attempt may take (its name does not say so): TCP and TLS want some round trips, and a thin or lossy
    # link takes seconds for them. Whoever opens a stream has a limit of its own.
    ("grpc.min_reconnect_backoff_ms", 20_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_retries", 0),
]

_CONNECTIONS = "grpc.max_allowed_incoming_connections"
# The server pings nobody but by gRPC's default, once in two hours (and so has TCP_USER_TIMEOUT, 20 s): keepalive counts an
# idle stream as a call. It finds hung clients on the stream itself (docs/protocol.md).
SERVER_OPTIONS: Options = [
    ("grpc.max_send_message_length", MAX_RESULT_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    # Who connects and says nothing is not waited for (gRPC's own limit is two minutes).
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Nor one that has no call open, when it asks for one no more: an idle stream is a call.
    ("grpc.max_connection_idle_ms", 300_000),
    # Whoever they are; one more is closed at once. See server_options().
    (_CONNECTIONS, MAX_CONNECTIONS),
    # Two servers on one port would share its clients between them without a word.
    ("grpc.so_reuseport", 0),
]


def server_options(max_streams: int) -> Options:
    """:data:`SERVER_OPTIONS` for so many streams at once: each may have a connection of its own, and as many others come.

    Fewer streams leave it at :data:`MAX_CONNECTIONS`: who is one too many is told so, which takes a connection.
    """
    most = max(MAX_CONNECTIONS, 2 * max_streams)
    return [*(pair for pair in SERVER_OPTIONS if pair[0] != _CONNECTIONS), (_CONNECTIONS, most)]


class Address(NamedTuple):
    """A server's address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", self.host) is not None


def parse_address(text: str, *, default_port: int = DEFAULT_PORT) -> Address:
    """``HOST:PORT``, ``HOST`` or ``[IPV6]:PORT``.

    Raises:
        AddressError: it is none of these.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9_.-]+))(?::(\d{1,5}))?", text.strip())
    port = int(match[3]) if match and match[3] else default_port
    if match is None or port > 65_535:
        raise AddressError(f"{text!r} is no address; use HOST:PORT, for instance 192.0.2.7:{DEFAULT_PORT}")
    return Address(match[1] or match[2], port)
