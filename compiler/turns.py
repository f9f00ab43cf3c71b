"""Compilations that share a work folder: in one run, one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from narrowcast.compiler.progress import SILENT, Progress

LOCK = ".lock"


@contextmanager
def alone_in(folder: Path, progress: Progress = SILENT) -> Iterator[None]:
    """Inside, no other process is; a second one waits, and finds what the first has made.

    Two that trained one run would replace each other's checkpoint, the slower one a finished one by its own. A process
    that dies lets go. Where there are no locks (some network folders, some systems) nobody waits.

    Args:
        folder: of a run; it is made where it is not there.
        progress: told where this one waits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _lock(file, folder, progress)
        yield
    finally:
        os.close(file)


def _lock(file: int, folder: Path, progress: Progress) -> None:
    try:
        import fcntl  # not on every system
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        progress.note(f"another compilation is at {folder}: waiting for it")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # no locks there
        return
