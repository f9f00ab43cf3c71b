"""What the link really costs: bytes on the socket, headers and framing and resends included, as the kernel counts them.

gRPC does not show its sockets; on Linux the process finds its own under ``/proc/self/fd``, and ``TCP_INFO`` (tcp(7)) has
the kernel's counters since the connection began. Elsewhere, or where ``/proc`` is hidden, there is no figure.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from narrowcast.head.liveness import Moved

# struct tcp_info, linux/tcp.h: tcpi_bytes_acked at 120, tcpi_bytes_received at 128 and tcpi_bytes_sent at 200 (kernel 4.19),
# all u64
_BYTES_ACKED, _BYTES_RECEIVED, _BYTES_SENT = 120, 128, 200
_INFO_BYTES = 232
# Connections that a meter tells apart, far more than are ever open at once.
MAX_REMEMBERED = 256


class SocketBytes(NamedTuple):
    """TCP payload bytes: TLS, HTTP/2 and gRPC framing included, IP and TCP headers not."""

    sent: int
    received: int


class _Connection(NamedTuple):
    """A TCP connection of this process: its handle, its socket's inode, its peer and its counters."""

    handle: int
    inode: int
    peer: tuple[str, int]
    total: SocketBytes
    acknowledged: int


class SocketMeter:
    """Counts the bytes of this process's TCP connections to some ports, over reconnects (all clients together).

    Connections are told apart by their socket's inode; :meth:`read` must be called once before a connection closes for its
    bytes to count. Of those that were closed long ago, the sum alone is remembered.
    """

    def __init__(self, *ports: int) -> None:
        self._ports = set(ports)
        # By inode, those that were there last at the end. One that is missing need not be closed: where there is no handle
        # left to look with, none is seen.
        self._seen: dict[int, SocketBytes] = {}
        self._past = SocketBytes(0, 0)
        self._mutex = threading.Lock()

    def read(self) -> SocketBytes | None:
        """The bytes so far; None where the kernel cannot be asked."""
        with self._mutex:
            for inode, total in self._there().items():
                before = self._seen.pop(inode, total)
                if before.sent > total.sent or before.received > total.received:  # the number is another socket's now
                    self._past = _sum([self._past, before])
                self._seen[inode] = total
            while len(self._seen) > MAX_REMEMBERED:
                self._past = _sum([self._past, self._seen.pop(next(iter(self._seen)))])
            return _sum([self._past, *self._seen.values()]) if self._seen else None

    def connections(self) -> int:
        """How many there are now."""
        return len(self._there())

    def _there(self) -> dict[int, SocketBytes]:
        """By inode."""
        return {found.inode: found.total for found in _connections() if found.peer[1] in self._ports}


def _sum(counts: Sequence[SocketBytes]) -> SocketBytes:
    return SocketBytes(sum(one.sent for one in counts), sum(one.received for one in counts))


class SocketWatch:
    """One connection's counters: that which this process opens to a peer between making this and :meth:`found`."""

    def __init__(self, host: str, port: int) -> None:
        self._peer = (host, port)
        self._before = {one.inode for one in _connections() if one.peer == self._peer}
        self._ours: _Connection | None = None

    def found(self) -> None:
        """The connection is there now. Where several are new, none can be told to be it."""
        fresh = [one for one in _connections() if one.peer == self._peer and one.inode not in self._before]
        self._ours = fresh[0] if len(fresh) == 1 else None

    def read(self) -> Moved | None:
        """What has moved; None where the kernel cannot be asked."""
        ours = None if self._ours is None else _inspect(self._ours.handle)
        if ours is None or self._ours is None or ours.inode != self._ours.inode:
            return None
        return Moved(ours.acknowledged, ours.total.received)


def _connections() -> Iterator[_Connection]:
    try:
        handles = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    except OSError:
        return
    for handle in handles:
        if (found := _inspect(handle)) is not None:
            yield found


def _inspect(handle: int) -> _Connection | None:
    """What the kernel says of a handle that is a TCP connection."""
    try:
        found = os.fstat(handle)
        if not stat.S_ISSOCK(found.st_mode):
            return None
        with socket.socket(fileno=os.dup(handle)) as connection:
            if connection.type != socket.SOCK_STREAM or connection.family not in (socket.AF_INET, socket.AF_INET6):
                return None
            host, port = connection.getpeername()[:2]
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    except OSError:  # closed meanwhile, or not connected
        return None
    if len(info) < _BYTES_SENT + 8:
        return None
    acked, received = struct.unpack_from("=QQ", info, _BYTES_ACKED)
    (sent,) = struct.unpack_from("=Q", info, _BYTES_SENT)
    peer = (host.removeprefix("::ffff:"), port)  # gRPC's sockets may take both families
    return _Connection(handle, found.st_ino, peer, SocketBytes(sent, received), acked)
