"""A link of IP packets, which can be lost: a tun device here, one in a network namespace, and a shaper between them.

The client connects to an address in the namespace (of 198.18.0.0/15, which RFC 2544 keeps for tests of networks), so its own
TCP meets the link. Behind it, in the namespace, a process takes the connections and joins them to the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import sys
import time

from narrowcast.devices.errors import LinkUnavailableError
from narrowcast.devices.links import tun
from narrowcast.devices.links.orders import Job, Started, break_off, obey, send_at_once, tell
from narrowcast.devices.links.shaper import Way

# Packets that are read from a device before those that are due are delivered.
BATCH = 32
IPV4 = 4
PUMP_BYTES = 65_536
PORT = 7433


class Shaper:
    """Carries packets between two tun devices."""

    def __init__(self, job: Job, near: int, far: int, pump: int) -> None:
        self.up: Way[bytes] = Way(job.ways[0], can_lose=True, seed=job.seed)
        self.down: Way[bytes] = Way(job.ways[1], can_lose=True, seed=None if job.seed is None else job.seed + 1)
        self.connections = 0
        self._near, self._far, self._pump = near, far, pump

    def wake(self) -> None:
        """Nothing waits: :meth:`run` looks at the ways anyhow."""

    def reset(self) -> None:
        """Breaks all connections at their far end."""
        os.kill(self._pump, signal.SIGUSR1)

    def run(self, orders: int) -> None:
        """Until the parent ends it, or the process behind the link has ended."""
        began, parent, pending = time.monotonic(), os.getppid(), b""
        while os.getppid() == parent and os.waitpid(self._pump, os.WNOHANG)[0] == 0:
            times = [at for at in (self.up.next_at(), self.down.next_at()) if at is not None]
            left = max(0.0, min(times) - time.monotonic()) if times else 1.0
            ready, _, _ = select.select([self._near, self._far, orders], [], [], min(left, 1.0))
            if self._near in ready:
                self._read(self._near, self.up)
            if self._far in ready:
                self._read(self._far, self.down)
            self._write(self._far, self.up)
            self._write(self._near, self.down)
            if orders in ready:
                data = os.read(orders, 65_536)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    obey(self, line, began)

    def _read(self, device: int, way: Way[bytes]) -> None:
        with contextlib.suppress(BlockingIOError):
            for _ in range(BATCH):
                packet = os.read(device, 65_536)
                if packet[0] >> 4 == IPV4:  # the kernel's own IPv6 talk is no part of it
                    self.connections += way is self.up and _opens(packet)
                    way.offer(time.monotonic(), packet, len(packet))

    @staticmethod
    def _write(device: int, way: Way[bytes]) -> None:
        for packet in way.take(time.monotonic()):
            with contextlib.suppress(OSError):  # the kernel has no room: the packet is lost, as it would be on a wire
                os.write(device, packet)


def _opens(packet: bytes) -> bool:
    """Whether a packet opens a TCP connection (SYN without ACK); one that is sent again counts again."""
    at = (packet[0] & 15) * 4
    return packet[9] == socket.IPPROTO_TCP and len(packet) > at + 13 and packet[at + 13] & 0x12 == 0x02


def run(job: Job) -> None:
    """Shapes until the parent ends it.

    Raises:
        LinkUnavailableError: this system or this user cannot.
    """
    if sys.platform != "linux":
        raise LinkUnavailableError(f"packets want Linux's tun devices and network namespaces; this is {sys.platform}")
    here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    near, name = tun.open_tun("nclink%d")
    number = int(name.removeprefix("nclink"))  # unique here, and so are the addresses
    if number >= 64 * 256:
        raise LinkUnavailableError(f"{number} links are emulated already")
    subnet = f"198.18.{number >> 6}.{(number & 63) * 4}".rsplit(".", 1)
    ends = [f"{subnet[0]}.{int(subnet[1]) + k}" for k in (1, 2)]
    tun.bring_up(name, ends[0], ends[1])
    tun.new_namespace()
    far, far_name = tun.open_tun("nclink%d")
    tun.bring_up(far_name, ends[1], ends[0])
    listening = socket.create_server((ends[1], PORT))
    tun.enter_namespace(here)  # the listening socket stays there; connections to the server are made from here
    worker = os.getpid()
    pump = os.fork()
    if not pump:
        tun.die_with_parent(signal.SIGKILL)
        if os.getppid() == worker:
            os.close(near)
            os.close(far)
            asyncio.run(_pump(listening, job.to))
        os._exit(0)
    listening.close()
    tell(Started(ends[1], PORT))
    Shaper(job, near, far, pump).run(sys.stdin.fileno())


async def _pump(listening: socket.socket, to: tuple[str, int]) -> None:
    """Joins each connection that comes over the link to one to the server."""
    writers: set[asyncio.StreamWriter] = set()

    async def one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(PUMP_BYTES):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = {writer}
        writers.add(writer)
        try:
            send_at_once(writer)
            there_reader, there = await asyncio.open_connection(*to)
            mine.add(there)
            writers.add(there)
            await asyncio.gather(one_way(reader, there), one_way(there_reader, writer))
            for one in mine:
                one.close()  # what was written last is still on its way
        except OSError:  # whichever end is gone, the other one is told
            for one in mine:
                one.transport.abort()
        finally:
            writers.difference_update(mine)

    def abort() -> None:
        for writer in list(writers):
            break_off(writer)

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, abort)
    server = await asyncio.start_server(join, sock=listening)
    await server.serve_forever()
