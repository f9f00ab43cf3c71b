"""The kernel's count of a connection's bytes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from support.waiting import until

from narrowcast.head.socket_bytes import SocketMeter

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's /proc")


def test_bytes_are_counted_over_reconnects():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        meter, sent, received = SocketMeter(port), 0, 0
        assert meter.read() is None
        for up, down in ((1000, 77), (333, 5000)):
            with socket.create_connection(("127.0.0.1", port)) as client, listener.accept()[0] as server:
                client.sendall(bytes(up))
                server.sendall(bytes(down))
                sent, received = sent + up, received + down
                until(lambda s=sent, r=received: meter.read() == (s, r), f"{sent} up and {received} down counted")
        assert meter.read() == (sent, received)


def test_nothing_is_left_open():
    """Looking at handles duplicates them; every duplicate must be closed, also those that are no TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socketpair()[0]:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(20):
            SocketMeter(listener.getsockname()[1]).read()
        assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_other_ports_do_not_count():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        client.sendall(b"x" * 100)
        assert SocketMeter(listener.getsockname()[1] + 1).read() is None
