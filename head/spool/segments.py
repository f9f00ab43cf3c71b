"""A spool's files: appended to, read from the front, cut where they are torn."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from narrowcast.head.errors import SpoolFormatError
from narrowcast.head.spool.records import (
    RECORD_HEADER_BYTES,
    SEGMENT_HEADER_BYTES,
    VERSION,
    Record,
    SegmentHeader,
    read_record,
    read_segment_header,
    record_bytes,
    scan,
)

SUFFIX = ".spool"


class Segment:
    """One file.

    Attributes:
        path: where it lies.
        first: the number of its first record, also its name.
        end: one more than the number of its last record.
        size_bytes: up to the end of its last undamaged record; what lies behind is overwritten or cut.
        newest_us: when its last record was spooled, at the latest.
        created_us: when it was begun, at the latest.
    """

    def __init__(self, path: Path, first: int, end: int, size_bytes: int, newest_us: int, created_us: int) -> None:
        self.path, self.first, self.end = path, first, end
        self.size_bytes, self.newest_us, self.created_us = size_bytes, newest_us, created_us

    @classmethod
    def create(cls, folder: Path, first: int, now_us: int) -> WritableSegment:
        """A new one.

        Raises:
            OSError: the disk takes none.
        """
        path = folder / f"{first:016x}{SUFFIX}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all(file, SegmentHeader(VERSION, first, now_us).to_bytes(), 0)
            sync_folder(folder)
        except OSError:
            os.close(file)
            with suppress(OSError):
                path.unlink()
            raise
        return WritableSegment(path, first, first, SEGMENT_HEADER_BYTES, now_us, file)

    @classmethod
    def found(cls, path: Path, end: int | None, newest_us: int | None) -> tuple[Segment, int]:
        """One that an earlier run left.

        Args:
            path: the file.
            end: the first number of the segment behind it, which was begun when this one was whole; None for the last
                one, which is read to its end, cut behind its last undamaged record, and put on disk.
            newest_us: when the segment behind it was begun; None for the last one.

        Returns:
            the segment, and the bytes that were cut.

        Raises:
            SpoolFormatError: a newer release wrote it.
            OSError: it cannot be read.
        """
        first = int(path.stem, 16)
        with path.open("rb") as file:
            begin = file.read(SEGMENT_HEADER_BYTES)
            header = read_segment_header(begin)
            if header is not None and header.version != VERSION:
                raise SpoolFormatError(
                    f"{path} is of version {header.version} of the spool; this release reads version {VERSION}: let the "
                    "release that wrote it replay it, or take another folder"
                )
            if end is not None and newest_us is not None:
                created_us = newest_us if header is None else header.created_us
                return cls(path, first, end, path.stat().st_size, newest_us, created_us), 0
            data = begin + file.read()
        last, last_end, last_us = first - 1, min(SEGMENT_HEADER_BYTES, len(data)), header.created_us if header else 0
        for _, record_end, record in scan(data, min(SEGMENT_HEADER_BYTES, len(data)), first):
            last, last_end, last_us = record.number, record_end, record.spooled_us
        with suppress(OSError), path.open("r+b") as file:
            if last_end < len(data):
                file.truncate(last_end)
            # Whoever wrote it may have been killed before it was on disk, and nobody writes it any more.
            os.fsync(file.fileno())
        created_us = last_us if header is None else header.created_us
        return cls(path, first, last + 1, last_end, last_us, created_us), len(data) - last_end

    def remove(self) -> None:
        """Deletes the file."""
        with suppress(OSError):
            self.path.unlink()


class WritableSegment(Segment):
    """The one that is appended to."""

    def __init__(self, path: Path, first: int, end: int, size_bytes: int, newest_us: int, file: int) -> None:
        super().__init__(path, first, end, size_bytes, newest_us, newest_us)
        self._file = file
        self.dirty = True

    def append(self, record: Record, data: bytes, *, sync: bool) -> None:
        """Writes a record behind the last one, and puts it on disk where ``sync`` says so.

        Raises:
            OSError: the disk does not take it; the segment is as it was.
        """
        try:
            write_all(self._file, data, self.size_bytes)
            if sync:
                os.fdatasync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self.size_bytes)
            raise
        self.size_bytes += len(data)
        self.end, self.newest_us, self.dirty = record.number + 1, record.spooled_us, not sync

    def sync(self) -> None:
        """Puts all of it on disk.

        Raises:
            OSError: the disk fails.
        """
        if self.dirty:
            self.dirty = False
            os.fdatasync(self._file)

    def close(self) -> None:
        """No more records."""
        os.close(self._file)

    def remove(self) -> None:
        """Deletes the file."""
        self.close()
        super().remove()


class SegmentReader:
    """Reads one segment's records from its front, also while it is appended to."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._file = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
        self._offset = SEGMENT_HEADER_BYTES
        self._least = segment.first

    def next(self) -> Record | None:
        """The next undamaged record; None where there is none (yet).

        Raises:
            OSError: it cannot be read.
        """
        limit = self.segment.size_bytes
        if self._offset >= limit:
            return None
        size = record_bytes(os.pread(self._file, RECORD_HEADER_BYTES, self._offset))
        if size is not None and self._offset + size <= limit:
            record = read_record(os.pread(self._file, size, self._offset))
            if record is not None and self._least <= record.number < self.segment.end:
                self._offset, self._least = self._offset + size, record.number + 1
                return record
        rest = os.pread(self._file, limit - self._offset, self._offset)
        for _, end, record in scan(rest, 0, self._least):
            if record.number >= self.segment.end:
                break
            self._offset, self._least = self._offset + end, record.number + 1
            return record
        self._offset = limit
        return None

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._file)


def write_all(file: int, data: bytes, offset: int) -> None:
    """Writes all of ``data``: a disk that fills up takes a part of it first.

    Raises:
        OSError: the disk does not take it.
    """
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def sync_folder(folder: Path) -> None:
    """Puts the names of a folder's files on disk.

    Raises:
        OSError: the disk fails.
    """
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
