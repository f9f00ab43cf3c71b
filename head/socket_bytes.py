"""What the link really costs: bytes on the socket, headers and framing and resends included, as the kernel counts them.

gRPC does not show its sockets; on Linux the process finds its own under ``/proc/self/fd``, and ``TCP_INFO`` (tcp(7)) has
the kernel's counters since the connection began. Elsewhere, or where ``/proc`` is hidden, there is no figure.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from pathlib import Path
from typing import NamedTuple

# struct tcp_info, linux/tcp.h: tcpi_bytes_received at 128 and tcpi_bytes_sent at 200 (kernel 4.19), both u64
_BYTES_RECEIVED, _BYTES_SENT = 128, 200
_INFO_BYTES = 232


class SocketBytes(NamedTuple):
    """TCP payload bytes: TLS, HTTP/2 and gRPC framing included, IP and TCP headers not."""

    sent: int
    received: int


class SocketMeter:
    """Counts the bytes of this process's TCP connections to one port, over reconnects (all clients of one server together).

    Connections are told apart by their socket's inode; each is remembered with its last counters, so :meth:`read` must be
    called once before a connection closes for its bytes to count.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._seen: dict[int, SocketBytes] = {}

    def read(self) -> SocketBytes | None:
        """The bytes so far; None where the kernel cannot be asked."""
        try:
            handles = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
        except OSError:
            return None
        for handle in handles:
            if (found := _inspect(handle, self._port)) is not None:
                inode, count = found
                self._seen[inode] = count
        if not self._seen:
            return None
        return SocketBytes(sum(c.sent for c in self._seen.values()), sum(c.received for c in self._seen.values()))


def _inspect(handle: int, port: int) -> tuple[int, SocketBytes] | None:
    """Inode and counters if the handle is a TCP connection to ``port``."""
    try:
        found = os.fstat(handle)
        if not stat.S_ISSOCK(found.st_mode):
            return None
        with socket.socket(fileno=os.dup(handle)) as connection:
            if connection.type != socket.SOCK_STREAM or connection.family not in (socket.AF_INET, socket.AF_INET6):
                return None
            if connection.getpeername()[1] != port:
                return None
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    except OSError:  # closed meanwhile, or not connected
        return None
    if len(info) < _BYTES_SENT + 8:
        return None
    (received,), (sent,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED), struct.unpack_from("=Q", info, _BYTES_SENT)
    return found.st_ino, SocketBytes(sent, received)
