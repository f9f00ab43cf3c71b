"""An outbox on disk: what is not delivered yet outlives the process. SQLite keeps it."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from narrowcast.transport.errors import ConfigError
from narrowcast.transport.sinks.outbox import Outbox, Sink, SinkCounts
from narrowcast.transport.sinks.records import Record

log = logging.getLogger(__name__)

# How often what was written is forced to the disk: what a power loss may take.
SYNC_SECONDS = 1.0
MIB = 1024 * 1024
MOST_AHEAD_BYTES = 4 * MIB
_OVERHEAD_BYTES = 32  # SQLite's, for a row


class _Row(msgspec.Struct, frozen=True, array_like=True):
    """A record on disk, with its row's number."""

    number: int
    record: bytes


class DurableOutbox(Outbox[_Row]):
    """As :class:`Outbox`, with the queue in a file: records survive this process and are delivered by the next one.

    A record that was :meth:`keep`-t is delivered at least once. A power loss may take those of the last second.

    Args:
        sink: where to.
        file: of its own, made where it is not there. One that is damaged is put aside, and said so.
        max_bytes: of records that may wait; where there are more, the oldest sixteenth is dropped, and counted. The file
            never shrinks, and beside it lies a log of what is written in a second or two.
        batch: records per delivery, at most.
        linger_s: how long a lone record waits for company.

    Raises:
        ConfigError: the file cannot be made.
    """

    def __init__(
        self, sink: Sink, file: Path, *, max_bytes: int = 64 * 1024 * 1024, batch: int = 100, linger_s: float = 0.2
    ) -> None:
        self.file = file
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # One for what is put in, which must not wait while the other one, the thread's, forces pages to the disk.
            self._disk = self._opened()
            self._reader = self._connected()
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"undelivered records cannot be kept in {file}: {error}") from error
        count, size, last = self._disk.execute(
            "SELECT COUNT(*), COALESCE(SUM(LENGTH(record)), 0), COALESCE(MAX(number), 0) FROM waiting"
        ).fetchone()
        self._number = int(last) + 1
        self._waiting, self._kept_bytes, self._limit = int(count), int(size) + _OVERHEAD_BYTES * int(count), max_bytes
        self._told: str | None = None  # why the file could not be read, last time
        self._rows: list[_Row] = []  # the batch that is being delivered
        self._done = 0  # rows up to it need not be delivered any more
        self._ended = threading.Event()
        self._syncing = threading.Thread(target=self._sync, name=f"sync-{file.name}", daemon=True)
        self._syncing.start()
        super().__init__(sink, self._read, batch=batch, linger_s=linger_s)

    def _connected(self) -> sqlite3.Connection:
        return _set_up(sqlite3.connect(self.file, timeout=2.0, check_same_thread=False, isolation_level=None))

    def _opened(self) -> sqlite3.Connection:
        for again in (False, True):
            disk = sqlite3.connect(self.file, timeout=2.0, check_same_thread=False, isolation_level=None)
            try:
                _set_up(disk)
                disk.execute("PRAGMA journal_mode = WAL")
                disk.execute("CREATE TABLE IF NOT EXISTS waiting (number INTEGER PRIMARY KEY, record BLOB NOT NULL)")
                if disk.execute("PRAGMA quick_check").fetchone() != ("ok",):
                    raise sqlite3.DatabaseError("its pages do not fit each other")
            except sqlite3.DatabaseError as error:
                disk.close()
                if again or isinstance(error, sqlite3.OperationalError):
                    raise
                aside = self.file.with_suffix(".damaged")
                log.error("undelivered records in %s are damaged (%s): put aside as %s", self.file, error, aside.name)
                self.file.replace(aside)
                for suffix in ("-wal", "-shm"):
                    Path(f"{self.file}{suffix}").unlink(missing_ok=True)
                continue
            return disk
        raise AssertionError("unreachable")

    def keep(self, record: Record) -> bool:
        """Puts a record on disk, to be delivered; whether the disk has taken it."""
        data = msgspec.msgpack.encode(record)
        with self._changed:
            if self._closing:
                self._dropped += 1
                return False
            try:
                if self._kept_bytes + len(data) + _OVERHEAD_BYTES > self._limit:
                    self._make_room(len(data) + _OVERHEAD_BYTES)
                self._disk.execute("INSERT INTO waiting VALUES (?, ?)", (self._number, data))
            except sqlite3.Error as error:
                self._dropped += 1
                if self._dropped & (self._dropped - 1) == 0:
                    log.warning("%s cannot be written: %s; %d records dropped so far", self.file, error, self._dropped)
                return False
            self._number += 1
            self._waiting += 1
            self._kept_bytes += len(data) + _OVERHEAD_BYTES
            self._changed.notify()
        return True

    def _make_room(self, size: int) -> None:
        """Drops the oldest that are not being delivered, a sixteenth of all at once: each time costs a page or two."""
        last = self._busy()
        found = self._disk.execute(
            "SELECT number, LENGTH(record) FROM waiting WHERE number > ? ORDER BY number", (last,)
        )
        dropped = freed = 0
        for number, length in found:
            dropped, freed, last = dropped + 1, freed + length + _OVERHEAD_BYTES, number
            if self._kept_bytes - freed + size <= self._limit * 15 // 16:
                break
        found.close()
        self._disk.execute("DELETE FROM waiting WHERE number > ? AND number <= ?", (self._busy(), last))
        self._kept_bytes -= freed
        self._waiting -= dropped
        before, self._dropped = self._dropped, self._dropped + dropped
        if before.bit_length() != self._dropped.bit_length():
            log.warning("%s is too slow: %d records dropped so far", self.sink.name, self._dropped)

    def _busy(self) -> int:
        """The last row that is being delivered, or was."""
        return self._rows[-1].number if self._rows else self._done

    @property
    def counts(self) -> SinkCounts:
        """See :class:`Outbox`; ``waiting`` are on disk."""
        with self._changed:
            return SinkCounts(self._delivered, self._dropped, self._rejected, self._retries, self._waiting)

    @property
    def waiting_bytes(self) -> int:
        """Of all that are on disk."""
        return self._kept_bytes

    def _take(self) -> list[_Row] | None:
        while True:
            with self._changed:
                if self._give_up.is_set() or (self._closing and not self._waiting):
                    return None
                if not self._waiting:
                    self._changed.wait()
                    continue
                until = time.monotonic() + self._linger_s
                while self._waiting < self._batch and not self._closing and (left := until - time.monotonic()) > 0:
                    self._changed.wait(left)
                if rows := self._next():
                    self._rows, self._under_way = rows, len(rows)
                    return rows
            self._give_up.wait(1.0)  # the disk gives nothing

    def _next(self) -> list[_Row]:
        try:
            found = self._reader.execute(
                "SELECT number, record FROM waiting WHERE number > ? ORDER BY number LIMIT ?", (self._done, self._batch)
            )
            rows = [_Row(*row) for row in found]
        except sqlite3.Error as error:
            if self._told != str(error):  # it is tried again every second, perhaps for weeks
                log.warning("%s cannot be read: %s", self.file, error)
            self._told = str(error)
            return []
        self._told = None
        return rows

    def _sync(self) -> None:
        """Forces what was written to the disk, on a thread of its own: delivering may wait for long.

        The write-ahead log is used from its beginning again where all of it is on the disk when something new is written.
        Where records come too fast for that, writing waits for the last part of it, now and then.
        """
        disk, ahead = self._connected(), Path(f"{self.file}-wal")
        while not self._ended.wait(SYNC_SECONDS):
            with suppress(sqlite3.Error, OSError):
                disk.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                if ahead.stat().st_size > MOST_AHEAD_BYTES:
                    disk.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        disk.close()

    def _read(self, row: _Row) -> Record | None:
        return msgspec.msgpack.decode(row.record, type=Record)

    def _settled(self) -> None:
        with self._changed:
            self._waiting -= len(self._rows)
            self._kept_bytes -= sum(len(row.record) + _OVERHEAD_BYTES for row in self._rows)
            self._done, self._rows = self._rows[-1].number, []
        with suppress(
            sqlite3.Error
        ):  # a full disk: they go with a later batch, or are delivered once more by the next process
            self._reader.execute("DELETE FROM waiting WHERE number <= ?", (self._done,))

    def _left(self, count: int) -> None:
        """They stay on disk."""

    def close(self, seconds: float = 5.0) -> SinkCounts:
        """Delivers what waits, for at most so long; the rest is kept for the next process."""
        counts = super().close(seconds)
        self._ended.set()
        self._syncing.join(5.0)
        if not self._thread.is_alive():
            with suppress(sqlite3.Error):
                self._reader.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._reader.close()
            self._disk.close()
        return counts


def _set_up(disk: sqlite3.Connection) -> sqlite3.Connection:
    disk.execute("PRAGMA synchronous = NORMAL")
    disk.execute("PRAGMA wal_autocheckpoint = 0")
    disk.execute(f"PRAGMA journal_size_limit = {MIB}")
    return disk
