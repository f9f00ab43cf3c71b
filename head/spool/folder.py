"""A spool's folder: one process has it, and finds there what earlier runs left."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from narrowcast.head.errors import SpoolError, SpoolLockedError
from narrowcast.head.spool.segments import SUFFIX, Segment


def lock_folder(folder: Path) -> int:
    """Makes the folder where it is not there, and takes it for this process.

    Returns:
        the open file that holds the lock: closing it lets go.

    Raises:
        SpoolLockedError: another process has it.
        SpoolError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SpoolError(f"the spool {folder} cannot be opened: {error.strerror or error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise SpoolLockedError(
            f"the spool {folder} is in use by another process: each one needs a folder of its own"
        ) from error
    return lock


def find_segments(folder: Path, position: int) -> tuple[list[Segment], int]:
    """What earlier runs left, in order; segments of which all before ``position`` is acknowledged are deleted.

    Returns:
        the segments, and the bytes that were cut off damaged ones.

    Raises:
        SpoolFormatError: a newer release wrote one.
        OSError: one cannot be read.
    """
    paths = sorted(path for path in folder.glob(f"*{SUFFIX}") if _is_number(path.stem))
    segments: list[Segment] = []
    cut_bytes = 0
    behind: Segment | None = None
    for path in reversed(paths):
        # A segment's records are from before the next one was begun.
        newest_us = None if behind is None else behind.created_us
        segment, cut = Segment.found(path, None if behind is None else behind.first, newest_us)
        cut_bytes += cut
        if segment.end <= max(segment.first, position):
            segment.remove()
            continue
        segments.insert(0, segment)
        behind = segment
    return segments, cut_bytes


def _is_number(stem: str) -> bool:
    return len(stem) == 16 and all(digit in "0123456789abcdef" for digit in stem)
