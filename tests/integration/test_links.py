"""Emulated links: real processes, sockets and devices; what passes is counted by the emulation itself."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
from support.links import wants_packets
from support.waiting import until

from narrowcast.devices.errors import LinkSettingsError, LinkUnavailableError
from narrowcast.devices.links import Emulation, emulate, emulated, relay, tun
from narrowcast.transport.errors import AddressError

each = pytest.mark.parametrize("how", ["relay", pytest.param("packets", marks=wants_packets)])


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that says what it hears; its address."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65_536):
                connection.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


def connect(emulation: Emulation) -> socket.socket:
    host, _, port = emulation.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def there_and_back(connection: socket.socket, data: bytes) -> bytes:
    sending = threading.Thread(target=connection.sendall, args=(data,))
    sending.start()
    got = bytearray()
    while len(got) < len(data):
        piece = connection.recv(65_536)
        assert piece, "the connection ended"
        got += piece
    sending.join()
    return bytes(got)


@each
def test_bytes_pass_whole_at_no_more_than_the_rate(echo, how):
    data = os.urandom(150_000)
    with emulated("4mbit/2mbit,5ms,1ms", echo, how=how) as link:
        assert link.how == how
        with connect(link) as connection:
            assert there_and_back(connection, data) == data
        counts = link.counts()
    assert counts.connections == 1
    for way, rate in ((counts.up, 4e6), (counts.down, 2e6)):
        assert way.delivered_bytes >= len(data)
        assert way.lost == 0
        assert way.delivered_bytes * 8 <= rate * (way.last_s - way.first_s)
    assert bool(link.unmodelled) is (how == "relay")


@each
def test_connections_that_are_over_leave_nothing_behind(echo, how):
    data = os.urandom(40_000)
    with emulated("50mbit,1ms", echo, how=how) as link:
        for _ in range(12):
            with connect(link) as connection:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                got = bytearray()
                while piece := connection.recv(65_536):
                    got += piece
                assert bytes(got) == data
        until(lambda: open_sockets(link) <= 3, "they are closed")  # the listening one, and asyncio's own two
        assert link.counts().connections == 12


def open_sockets(link: Emulation) -> int:
    """Of the processes that emulate it."""
    mine = [link._process.pid]
    children = Path(f"/proc/{mine[0]}/task/{mine[0]}/children")
    mine += [int(child) for child in children.read_text().split()]
    counts = []
    for process in mine:
        files = []
        for file in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(OSError):
                files.append(str(file.readlink()))
        counts.append(sum(name.startswith("socket:") for name in files))
    return max(counts)


@wants_packets
def test_packets_are_lost_and_sent_again(echo):
    data = os.urandom(200_000)
    with emulated("20mbit,2ms,1ms,5%", echo, how="packets", seed=1) as link:
        with connect(link) as connection:
            assert there_and_back(connection, data) == data
        counts = link.counts()
    assert counts.up.lost
    assert counts.down.lost
    assert counts.up.offered_bytes > len(data) * (1 + counts.up.lost / counts.up.offered / 2)


@wants_packets
def test_a_server_that_sends_at_once_is_not_held_up():
    """Its answers leave before the first one can have been acknowledged: what passes them on has no Nagle either."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        emulated("20mbit,300ms", f"127.0.0.1:{listening.getsockname()[1]}", how="packets") as link,
        connect(link) as client,  # TCP learns the round trip: it sends nothing again for longer than that
        listening.accept()[0] as server,
    ):
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(b"hello")
        server.sendall(server.recv(16))
        assert client.recv(16) == b"hello"
        until(lambda: nothing_is_on_the_way(link), "the last acknowledgement arrives")
        link.change("20mbit,30s")
        before, bodies, headers = link.counts().down, (10, 20, 40), 52
        for number, body in enumerate(bodies, 1):
            server.sendall(bytes(body))
            until(lambda number=number: link.counts().down.offered >= before.offered + number, "the answer leaves")
        assert link.counts().down.offered_bytes - before.offered_bytes == sum(bodies) + 3 * headers


def nothing_is_on_the_way(link: Emulation) -> bool:
    counts = link.counts()
    return all(way.offered == way.delivered for way in (counts.up, counts.down))


@each
def test_a_cut_is_silent_and_a_broken_connection_is_not(echo, how):
    with emulated("20mbit,1ms", echo, how=how) as link, connect(link) as connection:
        assert there_and_back(connection, b"before") == b"before"
        link.cut()
        connection.settimeout(0.2)
        connection.sendall(b"after")
        with pytest.raises(TimeoutError):
            connection.recv(16)
        link.mend()
        connection.settimeout(30)
        assert connection.recv(16) == b"after"
        link.change("1mbit,3ms")
        assert link.link.rtt_ms == 6
        assert there_and_back(connection, b"thin") == b"thin"
        link.reset()
        with pytest.raises(ConnectionResetError):
            connection.recv(16)
        with connect(link) as again:
            assert there_and_back(again, b"again") == b"again"


@each
def test_no_server_is_a_broken_connection(how):
    with emulated("20mbit,1ms", "127.0.0.1:9", how=how) as link:
        with contextlib.suppress(ConnectionResetError), connect(link) as connection:
            assert connection.recv(16) == b""


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def devices(host: str = "") -> set[str]:
    """Numbers, never given twice, of the devices here that carry links; with an address, of the one that it is behind.

    Others emulate links as well, on the same machine at the same time.
    """
    name = "nclink*"
    if host:
        third, fourth = (int(part) for part in host.split(".")[2:])
        name = f"nclink{64 * third + fourth // 4}"
    found = set()
    for file in Path("/sys/class/net").glob(f"{name}/ifindex"):
        with contextlib.suppress(OSError):  # another's, which is gone by now
            found.add(file.read_text())
    return found


@each
def test_whoever_is_killed_nothing_stays(how, tmp_path):
    """The program that wanted the link, and the process that emulates it."""
    program = (
        "import sys, time\nfrom narrowcast.devices.links import emulated\n"
        f"with emulated('lte', '127.0.0.1:9', how={how!r}) as link:\n"
        "    print(link.address, flush=True)\n    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        host, _, port = parent.stdout.readline().strip().rpartition(":")
        workers = children(parent.pid)
        everyone = [*workers, *(one for worker in workers for one in children(worker))]
        assert len(everyone) == (2 if how == "packets" else 1)
        mine = devices(host) if how == "packets" else set()
        parent.kill()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in everyone), "all processes are gone")
    if how == "relay":  # the other address is one of a network that is gone
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)))
    with emulated("lte", "127.0.0.1:9", how=how) as link:
        worker = link._process.pid
        everyone = [worker, *children(worker)]
        mine |= devices(link.address.partition(":")[0]) if how == "packets" else set()
        os.kill(worker, signal.SIGKILL)
        link._process.wait()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in everyone), "all processes are gone")
        with pytest.raises(LinkUnavailableError, match="is gone"):
            link.counts()
    assert len(mine) == (2 if how == "packets" else 0)
    assert not mine & devices()


def test_what_is_wrong_or_missing_is_named(monkeypatch, echo):
    monkeypatch.setattr(tun, "DEVICE", Path("/dev/net/nowhere"))
    with pytest.raises(LinkUnavailableError, match="modprobe tun"):
        tun.open_tun("nclink%d")
    with pytest.raises(LinkSettingsError), emulated("nothing", echo):
        pass
    with pytest.raises(AddressError), emulated("lte", "not an address"):
        pass


@pytest.mark.skipif(os.geteuid() != 0 or not which("setpriv"), reason="giving up rights wants root and setpriv")
def test_without_rights_there_is_a_relay_and_it_says_why(echo, monkeypatch):
    """The worker may not make devices here."""
    popen, without = subprocess.Popen, ["setpriv", "--bounding-set=-net_admin,-sys_admin"]
    monkeypatch.setattr(emulate.subprocess, "Popen", lambda command, **options: popen([*without, *command], **options))
    with emulated("lte", echo) as link:
        assert link.how == "relay"
        assert "packets want a tun device" in link.why_relay
        assert link.unmodelled == relay.UNMODELLED
        with connect(link) as connection:
            assert there_and_back(connection, b"hello") == b"hello"
    with pytest.raises(LinkUnavailableError, match="packets want a tun device"), emulated("lte", echo, how="packets"):
        pass
