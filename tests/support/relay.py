"""A thin link: a TCP relay on this machine that passes on so many bytes a second, and can be cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

SLICE_SECONDS = 0.01
# What was held up for so long is passed on at once; more is lost time, as on a link that stands still.
MOST_LATE_SECONDS = 0.25
# The kernel's buffers on the way are kept short: on a thin link it is the sender that waits.
BUFFER_BYTES = 4096


class Relay:
    """Joins each connection to one to the server. Counts the bytes that it passes on.

    Attributes:
        bytes_per_second: may be changed at any time.
    """

    def __init__(self, host: str, port: int, bytes_per_second: float) -> None:
        self._to = (host, port)
        self.bytes_per_second = bytes_per_second
        self._running: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._joined: list[tuple[asyncio.StreamWriter, asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.connections = 0
        self.up_bytes = 0
        self.address = ""

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            there_reader, there_writer = await asyncio.open_connection(*self._to)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, there_writer}
        self._joined.append((writer, there_reader, there_writer))
        ways = (self._pass(reader, there_writer, up=True), self._pass(there_reader, writer, up=False))
        for task in map(asyncio.create_task, ways):
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            loop = asyncio.get_running_loop()
            due = loop.time()
            while data := await reader.read(max(1, round(self.bytes_per_second * SLICE_SECONDS))):
                # By the clock: where this process wakes up late, the link is not thinner for it.
                due = max(due, loop.time() - MOST_LATE_SECONDS) + len(data) / self.bytes_per_second
                await asyncio.sleep(max(0.0, due - loop.time()))
                self.up_bytes += up * len(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    def vanish(self) -> None:
        """The clients lose their power, and start anew: the server learns of it when it writes, and not before."""
        for task in list(self._running):
            task.cancel()
        for writer, there_reader, there_writer in self._joined:
            writer.transport.abort()
            task = asyncio.create_task(_answer_with_a_reset(there_reader, there_writer))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        self._joined.clear()

    def cut(self) -> None:
        """Ends what runs, with what is on its way; both sides see the connection break."""
        for task in list(self._running):
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


async def _answer_with_a_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As the kernel of a machine does that knows of no such connection."""
    with contextlib.suppress(OSError):
        await reader.read(1)
    writer.transport.abort()


@contextlib.asynccontextmanager
async def thin(address: str, bytes_per_second: float) -> AsyncIterator[Relay]:
    """A thin link to a server for the length of the block."""
    host, _, port = address.rpartition(":")
    relay = Relay(host, int(port), bytes_per_second)
    server = await asyncio.start_server(relay.join, "127.0.0.1", 0, limit=BUFFER_BYTES)
    relay.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield relay
    finally:
        server.close()
        relay.cut()
