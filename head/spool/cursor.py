"""Up to which record a spool is acknowledged: two copies on two sectors, written in turn, so that one is always whole."""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path

MARK = b"NCAK"
SECTOR_BYTES = 512
_SLOT = struct.Struct("<4sQ")
_CHECKSUM = struct.Struct("<I")
SLOT_BYTES = _SLOT.size + _CHECKSUM.size


def slot(position: int) -> bytes:
    """One copy."""
    head = _SLOT.pack(MARK, position)
    return head + _CHECKSUM.pack(zlib.crc32(head))


def read_slot(data: bytes) -> int | None:
    """Its position; None where it is damaged or was never written."""
    if len(data) < SLOT_BYTES or data[:4] != MARK:
        return None
    _, position = _SLOT.unpack_from(data)
    return int(position) if data[:SLOT_BYTES] == slot(position) else None


class Cursor:
    """The position file. A position that is lost is an older one: records are then replayed once more.

    Args:
        path: the file; made at its full size, so that a full disk does not keep it from being written.

    Attributes:
        position: the number of the first record that is not acknowledged; those before are.

    Raises:
        OSError: it cannot be opened or made.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        data = os.pread(self._file, 2 * SECTOR_BYTES, 0)
        found = [read_slot(data[k * SECTOR_BYTES :]) for k in (0, 1)]
        known = [position for position in found if position is not None]
        self.position = max(known, default=0)
        self._next = 0 if found[0] is None or found[0] < self.position else 1
        self._dirty = False
        if len(data) < 2 * SECTOR_BYTES:
            with suppress(OSError):  # a full disk: the first write may succeed later
                os.pwrite(self._file, bytes(2 * SECTOR_BYTES - len(data)), len(data))
                os.fsync(self._file)

    def write(self, position: int) -> bool:
        """Moves on; False where the disk does not take it, which costs repetitions only."""
        self.position = position
        try:
            os.pwrite(self._file, slot(position), self._next * SECTOR_BYTES)
        except OSError:
            return False
        self._next = 1 - self._next
        self._dirty = True
        return True

    def sync(self) -> None:
        """Puts it on disk, where it has changed.

        Raises:
            OSError: the disk fails.
        """
        if self._dirty:
            self._dirty = False
            os.fdatasync(self._file)

    def close(self) -> None:
        """Lets go of the file."""
        os.close(self._file)
