"""A spool: packets that no server answers yet, on disk, in order, until each is acknowledged."""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, get_args

from narrowcast.head.errors import SpoolError
from narrowcast.head.spool.ages import Ages
from narrowcast.head.spool.counters import SpoolCounters
from narrowcast.head.spool.cursor import Cursor
from narrowcast.head.spool.folder import find_segments, lock_folder
from narrowcast.head.spool.records import (
    MAX_NOTE_BYTES,
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    Record,
)
from narrowcast.head.spool.segments import Segment, SegmentReader, WritableSegment, sync_folder
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.packet import Packet

Overflow = Literal["oldest", "newest"]
Sync = Literal["always", "interval", "segment"]
MAX_SEGMENT_BYTES = 8 * 1024 * 1024
SEGMENTS = 16
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Want of something that the process, or the machine, will have again: the disk is not at fault.
_SHORT = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
# A bad sector must not hold up for ever what lies behind it.
UNREADABLE_SECONDS = 60.0


class _UnreadableError(Exception):
    """A segment cannot be read at the moment."""


class Spool:
    """Packets in a folder, bounded by bytes and age.

    Safe to use from several threads. No call but the constructor raises for what the disk does.

    Args:
        folder: its own; made where it is not there. One process at a time.
        max_bytes: of all files. A segment is a sixteenth of it, at most 8 MiB.
        max_age_seconds: packets that have been here for longer are dropped; None for no bound.
        overflow: what goes where there is no room, by ``max_bytes`` or on the disk: the ``oldest`` packets (a segment of
            them), or the ``newest``, which is then not taken.
        sync: when packets are put on disk, out of a power loss's reach: ``always``, before :meth:`append` returns;
            ``interval``, at the first call ``sync_seconds`` after the last; ``segment``, when a segment is full. What
            the process has written survives its own end in any case.
        sync_seconds: see there.

    Attributes:
        counters: what became of packets.

    Raises:
        ConfigError: bounds that cannot be.
        SpoolLockedError: another process has the folder.
        SpoolFormatError: a newer release wrote it.
        SpoolError: the folder cannot be made or read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = 256 * 1024 * 1024,
        max_age_seconds: float | None = None,
        overflow: Overflow = "oldest",
        sync: Sync = "interval",
        sync_seconds: float = 1.0,
    ) -> None:
        if max_bytes < 4096 or not (max_age_seconds is None or 0 < max_age_seconds < math.inf) or sync_seconds < 0:
            raise ConfigError(
                f"a spool of {max_bytes} bytes, {max_age_seconds} s, synced every {sync_seconds} s: at least 4096 bytes; "
                "above 0 s, or None for any age; 0 s or more"
            )
        if overflow not in get_args(Overflow) or sync not in get_args(Sync):
            raise ConfigError(
                f"a spool with overflow {overflow!r} and sync {sync!r}: one of {', '.join(get_args(Overflow))}; one of "
                f"{', '.join(get_args(Sync))}"
            )
        self.folder = folder
        self.counters = SpoolCounters()
        self._max_bytes, self._ages = max_bytes, Ages(max_age_seconds)
        self._segment_bytes = min(MAX_SEGMENT_BYTES, max_bytes // SEGMENTS)
        self._overflow, self._sync_when, self._sync_seconds = overflow, sync, sync_seconds
        self._synced = time.monotonic()
        self._mutex = threading.RLock()
        self._closed = False
        self._reader: SegmentReader | None = None
        self._unreadable: tuple[int, float] | None = None  # the first number that is not given, and since when
        self._handed: set[int] = set()
        self._settled: set[int] = set()  # numbers from the cursor on that need not be handed out any more
        self._segments: list[Segment] = []
        self._open()

    def _open(self) -> None:
        self._lock = lock_folder(self.folder)
        try:
            self._cursor = Cursor(self.folder / "acknowledged")
            self._find()
        except OSError as error:
            os.close(self._lock)
            raise SpoolError(f"the spool {self.folder} cannot be read: {error}") from error
        except SpoolError:
            os.close(self._lock)
            raise

    def _find(self) -> None:
        """What earlier runs left."""
        self._segments, self.counters.cut_bytes = find_segments(self.folder, self._cursor.position)
        begin = self._segments[0].first if self._segments else 0
        # Numbers that are acknowledged are not used again, also where their records were lost.
        self._position = max(self._cursor.position, begin)
        self._number = max(self._position, self._segments[-1].end if self._segments else 0)
        self._waiting = sum(segment.end - max(segment.first, self._position) for segment in self._segments)
        self.counters.found = self._waiting

    @property
    def waiting(self) -> int:
        """Packets that are not acknowledged. Does not wait for the disk, nor for another thread that does."""
        return self._waiting

    @property
    def size_bytes(self) -> int:
        """Of all segments. Does not wait, either."""
        return sum(segment.size_bytes for segment in list(self._segments))

    def append(self, packet: Packet, note: bytes = b"") -> str | None:
        """Takes a packet.

        Args:
            packet: standing alone, it carries all that the server needs.
            note: what the client needs to make a result of its answer; at most 65,535 bytes.

        Returns:
            None where it is taken; else why not.

        Raises:
            PacketFieldError: a packet that cannot be.
        """
        data = packet.to_bytes()
        with self._mutex:
            reason = self._append(note, data)
            if reason is None:
                self.counters.spooled += 1
                self._waiting += 1
            else:
                self.counters.refused[reason] += 1
            self._tick()
            return reason

    def _append(self, note: bytes, data: bytes) -> str | None:
        if self._closed:
            return "closed"
        size = RECORD_HEADER_BYTES + len(note) + len(data)
        if len(note) > MAX_NOTE_BYTES or size + SEGMENT_HEADER_BYTES > self._max_bytes:
            return "too large"
        self._expire()
        while self.size_bytes + size + SEGMENT_HEADER_BYTES > self._max_bytes:
            if self._overflow == "newest":
                return "full"
            self._drop(self._segments[0], "full")
        while True:
            record = Record(self._number, self._ages.now_us(), note, data)
            try:
                self._write(record, record.to_bytes())
            except OSError as error:
                full = error.errno in _FULL
                self.counters.errors += not full
                oldest = self._segments[0] if self._segments else None
                if not full or self._overflow == "newest" or oldest is None or oldest.end == oldest.first:
                    return "disk full" if full else "disk error"
                self._drop(oldest, "disk full")
                continue
            self._number += 1
            return None

    def _write(self, record: Record, data: bytes) -> None:
        writer = self._writer
        if writer is not None and writer.end > writer.first and writer.size_bytes + len(data) > self._segment_bytes:
            self._seal(writer)
            writer = None
        if writer is None:
            writer = Segment.create(self.folder, record.number, record.spooled_us)
            self._segments.append(writer)
        writer.append(record, data, sync=self._sync_when == "always")

    @property
    def _writer(self) -> WritableSegment | None:
        last = self._segments[-1] if self._segments else None
        return last if isinstance(last, WritableSegment) else None

    def _seal(self, writer: WritableSegment) -> None:
        """Nothing more is written to a segment; it is on disk before there is another one."""
        try:
            writer.sync()
        except OSError:
            self.counters.errors += 1
        writer.close()
        self._segments[-1] = Segment(
            writer.path, writer.first, writer.end, writer.size_bytes, writer.newest_us, writer.created_us
        )  # fmt: skip
        if self._reader is not None and self._reader.segment is writer:
            self._reader.segment = self._segments[-1]

    def next(self) -> Record | None:
        """The first packet that was not handed out yet; None where there is none. To be acknowledged."""
        with self._mutex:
            if self._closed:
                return None
            self._expire()
            self._tick()
            for segment in list(self._segments):
                if segment.end <= self._position:
                    continue
                try:
                    record = self._next_of(segment)
                except _UnreadableError:
                    return None  # the next call tries again
                if record is not None:
                    self._handed.add(record.number)
                    return record
            return None

    def _next_of(self, segment: Segment) -> Record | None:
        """The next of a segment's; None at its end, where what is missing counts as damaged.

        Raises:
            _UnreadableError: the disk does not give it now.
        """
        while True:
            try:
                if self._reader is None or self._reader.segment is not segment:
                    self._close_reader()
                    self._reader = SegmentReader(segment)
                record = self._reader.next()
            except OSError as error:
                self.counters.errors += 1
                self._close_reader()  # the next one begins at the front, and passes over what was read
                if not self._is_lost(error):
                    raise _UnreadableError from error
                record = None
            else:  # what is read again, up to the place that is not given, says nothing of that place
                if self._unreadable is not None and (record is None or record.number >= self._unreadable[0]):
                    self._unreadable = None
            until = segment.end if record is None else record.number
            while self._position < until:
                self._lose(self._position, "damaged")
                self._position += 1
            if record is None:
                self._advance()
                return None
            if record.number < self._position:
                continue
            self._position = record.number + 1
            if record.number in self._settled:
                continue
            if self._ages.too_old(record.spooled_us):
                self._lose(record.number, "too old")
                self._advance()
                continue
            return record

    def _is_lost(self, error: OSError) -> bool:
        """Whether what cannot be read is given up: it is gone, or the disk has failed to give it for a while."""
        if error.errno in _SHORT:
            return False
        now = time.monotonic()
        if self._unreadable is None or self._unreadable[0] != self._position:
            self._unreadable = (self._position, now)
        return error.errno == errno.ENOENT or now - self._unreadable[1] >= UNREADABLE_SECONDS

    def _lose(self, number: int, reason: str) -> None:
        if number not in self._settled and number >= self._cursor.position:
            self._settled.add(number)
            self._handed.discard(number)
            self.counters.dropped[reason] += 1
            self._waiting -= 1  # last: it is read without the mutex

    def acknowledge(self, record: Record) -> bool:
        """A packet that was handed out has been dealt with.

        Returns:
            whether it was still here; False where it was dropped meanwhile, for want of room or by its age, and is counted
            so, or was acknowledged before.
        """
        with self._mutex:
            if record.number not in self._handed or self._closed:
                return False
            self._handed.discard(record.number)
            self._settled.add(record.number)
            self.counters.acknowledged += 1
            self._waiting -= 1  # last: it is read without the mutex
            self._advance()
            self._tick()
            return True

    def rewind(self) -> None:
        """What was handed out and not acknowledged is handed out again, in order."""
        with self._mutex:
            self._handed.clear()
            self._position = max(self._cursor.position, self._segments[0].first if self._segments else 0)
            self._close_reader()

    def _advance(self) -> None:
        """Moves the cursor behind all that is settled, and removes segments of which nothing is left."""
        position = min(self._handed, default=self._position)
        if position > self._cursor.position:
            self._settled = {number for number in self._settled if number >= position}
            self._cursor.write(position)
        while self._segments and self._segments[0].end <= position:
            segment = self._segments[0]
            if segment is self._writer and segment.size_bytes < self._segment_bytes // 4:
                break  # it is still good for more
            self._remove(segment)

    def _remove(self, segment: Segment) -> None:
        if self._reader is not None and self._reader.segment is segment:
            self._close_reader()
        self._segments.remove(segment)
        segment.remove()

    def _drop(self, segment: Segment, reason: str) -> None:
        """Gives up the oldest segment."""
        for number in range(max(segment.first, self._cursor.position), segment.end):
            self._lose(number, reason)
        self._position = max(self._position, segment.end)
        self._remove(segment)
        self._advance()

    def _expire(self) -> None:
        while self._segments and self._segments[0].end > self._segments[0].first:
            if not self._ages.too_old(self._segments[0].newest_us):
                return
            self._drop(self._segments[0], "too old")

    def tick(self) -> None:
        """What is due: puts packets on disk, drops what is too old. For owners that may be idle for long."""
        with self._mutex:
            if not self._closed:
                self._expire()
                self._tick()

    def _tick(self) -> None:
        if self._closed or self._sync_when == "segment" or time.monotonic() - self._synced < self._sync_seconds:
            return
        self.sync()

    def sync(self) -> None:
        """Puts all on disk now."""
        with self._mutex:
            if self._closed:
                return
            self._synced = time.monotonic()
            try:
                if self._writer is not None:
                    self._writer.sync()
                self._cursor.sync()
            except OSError:
                self.counters.errors += 1

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def close(self) -> None:
        """Puts all on disk and lets go of the folder."""
        with self._mutex:
            if self._closed:
                return
            self.sync()
            self._close_reader()
            if self._writer is not None:
                self._writer.close()
            with suppress(OSError):
                sync_folder(self.folder)
            self._cursor.close()
            os.close(self._lock)
            self._closed = True

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
