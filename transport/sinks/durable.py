"""An outbox on disk: what is not delivered yet outlives the process. SQLite keeps it."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
import time
from collections import deque
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
# While the disk does not take them, records wait in memory: so many bytes of them, and for so long until the next try.
MOST_HELD_BYTES = 16 * MIB
AGAIN_SECONDS = 0.05
# At the end, for what waits in memory.
LAST_SECONDS = 2.0
# What a disk says that is full or broken, and may be mended while this process runs.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
_OVERHEAD_BYTES = 32  # SQLite's, for a row


class _Row(msgspec.Struct, frozen=True, array_like=True):
    """A record on disk, with its row's number."""

    number: int
    record: bytes


class DurableOutbox(Outbox[_Row]):
    """As :class:`Outbox`, with the queue in a file: records survive this process and are delivered by the next one.

    A record that was :meth:`keep`-t is delivered at least once. A power loss may take those of the last second. While the
    disk does not take records (it is full, or another program has locked the file), they wait in memory, and :meth:`keep`
    waits for nothing; see :attr:`taken` and :attr:`settled`.

    Args:
        sink: where to.
        file: of its own, made where it is not there. One that is damaged is put aside, and said so.
        max_bytes: of records that may wait; where there are more, the oldest sixteenth is dropped, and counted. The file
            never shrinks, and beside it lies a log of what is written in a second or two.
        batch: records per delivery, at most.
        linger_s: how long a lone record waits for company.

    Attributes:
        taken: how many records :meth:`keep` has taken.
        settled: how many of those, in their order, are on disk, or were dropped.

    Raises:
        ConfigError: the file cannot be made by this user.
    """

    def __init__(
        self, sink: Sink, file: Path, *, max_bytes: int = 64 * 1024 * 1024, batch: int = 100, linger_s: float = 0.2
    ) -> None:
        self.file = file
        # One for what is put in, which waits for no lock; the other one is the thread's, and forces pages to the disk.
        self._disk: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection
        self._fresh: deque[bytes] = deque()  # in memory still
        self._fresh_bytes = 0
        self._behind = threading.Event()  # there is something in memory, probably
        self.taken = self.settled = 0
        self._number, self._waiting, self._kept_bytes, self._limit = 1, 0, 0, max_bytes
        self._told: str | None = None  # why the file could not be read, last time
        self._told_unwritten: str | None = None  # and why not written
        self._rows: list[_Row] = []  # the batch that is being delivered
        self._done = 0  # rows up to it need not be delivered any more
        self._gone = 0  # rows up to it were dropped, those that were being delivered excepted
        self._ended = threading.Event()
        super().__init__(sink, self._read, batch=batch, linger_s=linger_s)
        try:
            self._open()
        except ConfigError:
            super().close(0.0)
            raise
        self._syncing = threading.Thread(target=self._sync, name=f"sync-{file.name}", daemon=True)
        self._syncing.start()

    def _open(self) -> None:
        """Opens the file, or leaves that for later where the disk is at fault.

        Raises:
            ConfigError: another try is no use.
        """
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            disk = self._opened()
            try:
                reader = self._connected()
                count, size, last = disk.execute(
                    "SELECT COUNT(*), COALESCE(SUM(LENGTH(record)), 0), COALESCE(MAX(number), 0) FROM waiting"
                ).fetchone()
                disk.execute("PRAGMA busy_timeout = 0")
            except BaseException:
                disk.close()
                raise
        except (OSError, sqlite3.Error) as error:
            if not self._may_be_mended(error):
                raise ConfigError(f"undelivered records cannot be kept in {self.file}: {error}") from error
            self._cannot_write(error)
            return
        with self._changed:
            self._disk, self._reader, self._number = disk, reader, int(last) + 1
            self._waiting, self._kept_bytes = int(count), int(size) + _OVERHEAD_BYTES * int(count)
            self._changed.notify_all()

    def _may_be_mended(self, error: OSError | sqlite3.Error) -> bool:
        if isinstance(error, OSError):
            return error.errno in _OF_THE_DISK
        folder, file = self.file.parent, self.file
        return os.access(folder, os.W_OK | os.X_OK) and (not file.exists() or os.access(file, os.R_OK | os.W_OK))

    def _cannot_write(self, error: Exception) -> None:
        if self._told_unwritten != str(error):  # it is tried again, perhaps for weeks
            log.warning("%s cannot be written: %s; records wait in memory", self.file, error)
        self._told_unwritten = str(error)

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
        """Takes a record to be put on disk, at once where nobody has locked it, and delivered; False after the end."""
        data = msgspec.msgpack.encode(record)
        with self._changed:
            if self._closing:
                self._dropped += 1
                return False
            self.taken += 1
            self._fresh.append(data)
            self._fresh_bytes += len(data) + _OVERHEAD_BYTES
            if len(self._fresh) == 1:  # else it is not its turn
                self._write()
            while self._fresh_bytes > min(MOST_HELD_BYTES, self._limit) and len(self._fresh) > 1:
                self._fresh_bytes -= len(self._fresh.popleft()) + _OVERHEAD_BYTES
                self.settled += 1
                self._drop(1, self.file.name)
            if self._fresh:
                self._behind.set()
        return True

    def _write(self) -> bool:
        """Puts on disk what is in memory, without a wait for anybody; whether all of it is there. Under the lock."""
        if self._disk is None:
            return not self._fresh
        try:
            while self._fresh:
                data = self._fresh[0]
                size = len(data) + _OVERHEAD_BYTES
                if self._kept_bytes + size > self._limit:
                    self._make_room(self._disk, size)
                self._disk.execute("INSERT INTO waiting VALUES (?, ?)", (self._number, data))
                self._fresh.popleft()
                self._fresh_bytes -= size
                self._number += 1
                self._waiting += 1
                self.settled += 1
                self._kept_bytes += size
                self._changed.notify_all()
        except sqlite3.Error as error:
            if not _is_locked(error):  # by our own threads, for a moment; by others it is said when records are dropped
                self._cannot_write(error)
            return False
        self._told_unwritten = None
        return True

    def _drop(self, count: int, name: str) -> None:
        before, self._dropped = self._dropped, self._dropped + count
        if before.bit_length() != self._dropped.bit_length():
            log.warning("%s is too slow: %d records dropped so far", name, self._dropped)

    def _make_room(self, disk: sqlite3.Connection, size: int) -> None:
        """Drops the oldest that are not being delivered, a sixteenth of all at once: each time costs a page or two."""
        last = self._busy()
        found = disk.execute("SELECT number, LENGTH(record) FROM waiting WHERE number > ? ORDER BY number", (last,))
        dropped = freed = 0
        for number, length in found:
            dropped, freed, last = dropped + 1, freed + length + _OVERHEAD_BYTES, number
            if self._kept_bytes - freed + size <= self._limit * 15 // 16:
                break
        found.close()
        disk.execute("DELETE FROM waiting WHERE number > ? AND number <= ?", (self._busy(), last))
        self._kept_bytes -= freed
        self._waiting -= dropped
        self._gone = last
        self._drop(dropped, self.sink.name)

    def _busy(self) -> int:
        """The last row that is being delivered, or was."""
        return self._rows[-1].number if self._rows else self._done

    @property
    def counts(self) -> SinkCounts:
        """See :class:`Outbox`; ``waiting`` are on disk, or about to be."""
        with self._changed:
            waiting = self._waiting + len(self._fresh)
            return SinkCounts(self._delivered, self._dropped, self._rejected, self._retries, waiting)

    def change_limit(self, max_bytes: int) -> None:
        """Of records that may wait, from the next one on."""
        with self._changed:
            self._limit = max_bytes

    @property
    def unwritable(self) -> bool:
        """Whether the disk takes no record now; a file that is locked for a while is another matter."""
        return self._told_unwritten is not None

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
            found = self._next()  # may wait for whoever has locked the file: not under the lock
            with self._changed:
                if rows := [row for row in found if row.number > self._gone]:
                    self._rows = rows  # none are under way: whatever becomes of these, they are on disk
                    return rows
                if found:
                    continue
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
        """Writes what could not be written at once, and forces what was written to the disk: delivering may wait for long.

        The write-ahead log is used from its beginning again where all of it is on the disk when something new is written.
        Where records come too fast for that, writing waits for the last part of it, now and then.
        """
        disk: sqlite3.Connection | None = None
        while not self._ended.is_set():
            self._write_late(time.monotonic() + SYNC_SECONDS)
            with suppress(sqlite3.Error, OSError):
                if self._disk is not None:
                    disk = disk or self._connected()
                    disk.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                    if Path(f"{self.file}-wal").stat().st_size > MOST_AHEAD_BYTES:
                        disk.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        if disk is not None:
            disk.close()

    def _write_late(self, until: float) -> None:
        """Writes what is in memory whenever there is something, until then."""
        pause = AGAIN_SECONDS
        while not self._ended.is_set() and (left := until - time.monotonic()) > 0:
            if self._disk is None:
                try:
                    self._open()
                except ConfigError as error:
                    self._cannot_write(error)
            elif self._behind.wait(left):
                self._behind.clear()
            with self._changed:
                written = self._write() and self._disk is not None
            if written:
                pause = AGAIN_SECONDS
            else:
                self._behind.set()
                self._ended.wait(pause)
                pause = min(2 * pause, SYNC_SECONDS)

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

    def _left(self, items: list[_Row]) -> None:
        """They stay on disk."""

    def close(self, seconds: float = 5.0) -> SinkCounts:
        """Delivers what waits, for at most so long; the rest is kept for the next process."""
        with self._changed:
            self._changed.wait_for(lambda: not self._fresh, LAST_SECONDS)
        counts = super().close(seconds)
        self._ended.set()
        self._behind.set()
        self._syncing.join(5.0)
        with self._changed:
            if lost := len(self._fresh):
                self._fresh.clear()
                self._dropped += lost
                self.settled += lost
                log.error("%s could not be written: %d records are lost", self.file, lost)
                counts = self.counts
        if self._disk is not None and not self._thread.is_alive():
            with suppress(sqlite3.Error):
                self._reader.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._reader.close()
            self._disk.close()
        return counts


def _is_locked(error: sqlite3.Error) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def _set_up(disk: sqlite3.Connection) -> sqlite3.Connection:
    disk.execute("PRAGMA synchronous = NORMAL")
    disk.execute("PRAGMA wal_autocheckpoint = 0")
    disk.execute(f"PRAGMA journal_size_limit = {MIB}")
    return disk
