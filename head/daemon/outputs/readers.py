"""Records as JSON lines to whoever connects to a Unix socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from narrowcast.head.daemon.unix import listen_unix
from narrowcast.transport.sinks import Record
from narrowcast.transport.sinks.records import SCHEMA

log = logging.getLogger(__name__)
# What may wait for one reader, in bytes. One that reads no more misses lines, and is told how many.
MAX_WAITING_BYTES = 1024 * 1024


class _Reader(asyncio.Protocol):
    """One connection. What it sends is not listened to."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._transport: asyncio.WriteTransport | None = None
        self.missed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        if not self._readers.add(self):
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._readers.remove(self)

    def eof_received(self) -> bool:
        """It has nothing to say, and may go on reading."""
        return True

    def tell(self, data: bytes, records: int) -> None:
        """Whole lines, or none of them."""
        assert self._transport is not None
        if self._transport.get_write_buffer_size() + len(data) > MAX_WAITING_BYTES:
            self.missed += records
            self._readers.missed += records
            return
        if self.missed:
            gap = {"schema": SCHEMA, "type": "missed", "records": self.missed}
            self._transport.write(msgspec.json.encode(gap) + b"\n")
            self.missed = 0
        self._transport.write(data)

    def end(self) -> None:
        """Closes it when what waits is read, which is not waited for."""
        if self._transport is not None:
            self._transport.close()


class Readers:
    """A :class:`~narrowcast.transport.sinks.outbox.Sink` that is always there: who is not connected misses what is told.

    Args:
        path: of the socket.
        limit: of readers at once; more are shown out.
        mode: the socket's permissions.

    Attributes:
        missed: records that readers were too slow for, of all readers.
    """

    def __init__(self, path: Path, limit: int, mode: int) -> None:
        self.name = f"unix:{path}"
        self.missed = 0
        self._path, self._limit, self._mode = path, limit, mode
        self._readers: set[_Reader] = set()
        self._server: asyncio.AbstractServer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Listens, on the running loop.

        Raises:
            ListenError: it cannot.
        """
        self._loop = asyncio.get_running_loop()
        listening = listen_unix(self._path, self._mode)
        self._server = await self._loop.create_unix_server(lambda: _Reader(self), sock=listening)

    def change(self, limit: int, mode: int) -> None:
        """Other settings, for who connects from now on."""
        self._limit, self._mode = limit, mode
        with suppress(OSError):  # somebody has taken the socket away: nobody can connect then
            self._path.chmod(mode)

    def __len__(self) -> int:
        return len(self._readers)

    def add(self, reader: _Reader) -> bool:
        """A reader comes; False where there are too many."""
        if len(self._readers) >= self._limit:
            log.warning("%s has %d readers already: one more is refused", self.name, len(self._readers))
            return False
        self._readers.add(reader)
        return True

    def remove(self, reader: _Reader) -> None:
        """A reader goes."""
        self._readers.discard(reader)

    def deliver(self, records: Sequence[Record]) -> None:
        """Hands them to the loop, on which nobody is waited for."""
        if self._loop is None or not self._readers:
            return
        data = b"".join(record.to_json() + b"\n" for record in records)
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._tell, data, len(records))

    def _tell(self, data: bytes, records: int) -> None:
        for reader in tuple(self._readers):
            reader.tell(data, records)

    async def stop(self) -> None:
        """Shows all readers out."""
        if self._server is not None:
            self._server.close()
            for reader in tuple(self._readers):
                reader.end()
            with suppress(FileNotFoundError):
                self._path.unlink()

    def close(self) -> None:
        """See :class:`~narrowcast.transport.sinks.outbox.Sink`."""
