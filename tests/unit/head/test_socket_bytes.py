"""The kernel's count of a connection's bytes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from support.waiting import until

from narrowcast.head.socket_bytes import SocketMeter, SocketWatch

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


def test_connections_that_were_closed_long_ago_are_remembered_by_their_sum_alone(monkeypatch):
    monkeypatch.setattr("narrowcast.head.socket_bytes.MAX_REMEMBERED", 3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        meter = SocketMeter(listener.getsockname()[1])
        for count in range(1, 21):
            with socket.create_connection(listener.getsockname()) as client, listener.accept()[0]:
                client.sendall(bytes(10))
                until(lambda count=count: meter.read() == (10 * count, 0), f"10 bytes of {count} connections counted")
                assert meter.connections() == 1
        assert meter.read() == (200, 0)
        assert meter.connections() == 0
        assert len(meter._seen) == 3


def test_a_connection_that_cannot_be_seen_for_a_while_counts_once(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        meter = SocketMeter(listener.getsockname()[1])
        client.sendall(bytes(10))
        until(lambda: meter.read() == (10, 0), "10 bytes counted")
        with monkeypatch.context() as blind:
            blind.setattr("narrowcast.head.socket_bytes.os.dup", lambda handle: (_ for _ in ()).throw(OSError()))
            assert meter.read() == (10, 0)
        client.sendall(bytes(10))
        until(lambda: meter.read() == (20, 0), "20 bytes counted")


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


def test_one_connection_is_watched_beside_others_to_the_same_server():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as other:
        watch = SocketWatch(*listener.getsockname())
        assert watch.read() is None
        with socket.create_connection(listener.getsockname()) as ours:
            watch.found()
            assert watch.read().received == 0
            other.sendall(bytes(5000))
            ours.sendall(bytes(1000))
            listener.accept()[0].close()  # the other one
            with listener.accept()[0] as server:
                server.sendall(bytes(77))
                until(lambda: watch.read().received == 77, "77 bytes received")
                until(lambda: 1000 <= watch.read().acknowledged < 1100, "1000 bytes taken")
        assert watch.read() is None


def test_which_connection_is_ours_is_not_guessed():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        watch = SocketWatch(*listener.getsockname())
        with socket.create_connection(listener.getsockname()), socket.create_connection(listener.getsockname()):
            watch.found()
            assert watch.read() is None
