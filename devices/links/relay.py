"""A thin link without root: a TCP relay that passes bytes on at a rate, after a delay, with jitter.

What it does not do is listed in :data:`UNMODELLED`: it ends TCP and begins it again, so it can neither lose packets nor see
their headers. A queue that is full makes the sender wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import socket
import sys
import time
from typing import NamedTuple

from narrowcast.devices.links.orders import Job, Started, break_off, obey, send_at_once, tell
from narrowcast.devices.links.shaper import Way

UNMODELLED = (
    "a relay loses no packets (nor sends any again)",
    "its rate counts bytes of TCP, without headers of IP and TCP",
    "what its queue has no room for waits with the sender",
)
# A piece is what the link sends in so long, within these bounds.
PIECE_SECONDS = 0.005
LEAST_PIECE, MOST_PIECE = 64, 16_384
# The kernel's own buffers on the way are kept short: it is the queue that is emulated.
KERNEL_BUFFER_BYTES = 8192


class _Piece(NamedTuple):
    """Bytes for one end of a connection; none: the other end has said all that it has to say."""

    to: asyncio.StreamWriter
    data: bytes


class Relay:
    """Joins each connection to one to the server; both ways of all of them share the link."""

    def __init__(self, job: Job) -> None:
        self.up: Way[_Piece] = Way(job.ways[0], can_lose=False, seed=job.seed)
        self.down: Way[_Piece] = Way(job.ways[1], can_lose=False, seed=None if job.seed is None else job.seed + 1)
        self.connections = 0
        self._to = job.to
        self._moved = asyncio.Event()
        self._writers: dict[asyncio.StreamWriter, asyncio.StreamWriter | None] = {}  # with the other end of each
        self._ended: set[asyncio.StreamWriter] = set()  # have been told that nothing more comes
        self._tasks: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """The ways have changed: whoever waits for one looks again."""
        self._moved.set()

    def reset(self) -> None:
        """Breaks all connections; what is on the way is gone."""
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            break_off(writer)
        self._writers.clear()
        self._ended.clear()
        for way in (self.up, self.down):
            way.clear()

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        self._writers[writer] = None
        try:
            send_at_once(writer)
            there_reader, there = await asyncio.open_connection(*self._to, limit=KERNEL_BUFFER_BYTES)
        except OSError:
            self._gone(writer)
            return
        self._writers |= {writer: there, there: writer}
        writer.transport.set_write_buffer_limits(KERNEL_BUFFER_BYTES)
        there.transport.set_write_buffer_limits(KERNEL_BUFFER_BYTES)
        # A handshake takes a round trip before the first byte may leave.
        handshake = (self.up.settings.delay_ms + self.down.settings.delay_ms) / 1000
        passing = (
            self._pass(self.up, reader, there, writer, handshake),
            self._pass(self.down, there_reader, writer, there),
        )
        both = [asyncio.create_task(one) for one in passing]
        self._tasks.update(both)
        await asyncio.wait(both)
        self._tasks.difference_update(both)

    async def _pass(
        self,
        way: Way[_Piece],
        reader: asyncio.StreamReader,
        to: asyncio.StreamWriter,
        source: asyncio.StreamWriter,
        wait_seconds: float = 0.0,
    ) -> None:
        """One direction of a connection; no more is read than the queue has room for."""
        await asyncio.sleep(wait_seconds)
        data = b"?"
        try:
            while data:
                size = round(way.settings.bits_per_second / 8 * PIECE_SECONDS)
                size = min(max(size, LEAST_PIECE), MOST_PIECE)
                while way.room_bytes < size:
                    self._moved.clear()
                    await self._moved.wait()
                await to.drain()
                data = await reader.read(size)
                way.offer(time.monotonic(), _Piece(to, data), len(data))
                self.wake()
        except OSError:  # one of the two ends is gone, without a word
            self._gone(to)
            self._gone(source)

    def _gone(self, writer: asyncio.StreamWriter) -> None:
        self._writers.pop(writer, None)
        self._ended.discard(writer)
        break_off(writer)

    async def deliver(self) -> None:
        """Hands over what has arrived, for ever."""
        while True:
            now = time.monotonic()
            pieces = self.up.take(now) + self.down.take(now)
            for piece in pieces:
                self._hand_over(piece)
            if pieces:
                self._moved.set()
                await asyncio.sleep(0)
            self._moved.clear()
            times = [at for at in (self.up.next_at(), self.down.next_at()) if at is not None]
            left = min(times) - time.monotonic() if times else None
            with contextlib.suppress(asyncio.TimeoutError):
                if left is None or left > 0:
                    await asyncio.wait_for(self._moved.wait(), left)

    def _hand_over(self, piece: _Piece) -> None:
        gone = piece.to.transport.is_closing()
        if piece.data:
            if not gone:
                piece.to.write(piece.data)
            return
        if not gone and piece.to.can_write_eof():
            with contextlib.suppress(OSError):  # it has gone by itself
                piece.to.write_eof()
        self._end(piece.to)

    def _end(self, writer: asyncio.StreamWriter) -> None:
        """One end has all that the other one said. Once both have, the connection is over: asyncio leaves it open."""
        self._ended.add(writer)
        other = self._writers.get(writer)
        if other is not None and other in self._ended:
            for one in (writer, other):
                self._writers.pop(one, None)
                self._ended.discard(one)
                one.close()


async def _serve(job: Job) -> None:
    relay, began, parent = Relay(job), time.monotonic(), os.getppid()
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER_BYTES)
    server = await asyncio.start_server(relay.join, sock=listening, limit=KERNEL_BUFFER_BYTES)
    host, port = listening.getsockname()[:2]
    tell(Started(host, port))
    delivering = asyncio.create_task(relay.deliver())
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    reading = asyncio.create_task(orders.readline())
    while os.getppid() == parent and not delivering.done():
        await asyncio.wait([reading, delivering], timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            if not (line := reading.result()):
                break
            obey(relay, line, began)
            reading = asyncio.create_task(orders.readline())
    server.close()
    relay.reset()
    delivering.cancel()
    await asyncio.gather(delivering, return_exceptions=True)


def run(job: Job) -> None:
    """Relays until the parent ends it."""
    # select() waits to the microsecond; epoll, asyncio's own choice, to the next whole millisecond.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    try:
        loop.run_until_complete(_serve(job))
    finally:
        loop.close()
