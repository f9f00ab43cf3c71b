"""Files that are taken up again when they change: certificates, tokens, revocations, limits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from narrowcast.transport.errors import NarrowcastError

log = logging.getLogger(__name__)

T = TypeVar("T")
_Mark = tuple[tuple[int, int, int] | None, ...]


class Watched(Generic[T]):
    """What some files say, as of their last sound state. May be used from any thread.

    A file that is gone, damaged or half written changes nothing, and is told of once: forgetting who is revoked, or having
    no certificate, would be worse than going on.

    Args:
        files: to look at.
        read: reads and checks them.
        what: for the log.
        initial: what counts until the files are there; without it they must be.

    Raises:
        NarrowcastError: whatever ``read`` raises the first time.
    """

    def __init__(self, files: Sequence[Path], read: Callable[[], T], what: str, *, initial: T | None = None) -> None:
        self._files = list(files)
        self._read = read
        self._what = what
        self._lock = threading.Lock()
        self._mark: _Mark = self._look() if initial is None else (None,) * len(self._files)
        self._value = read() if initial is None else initial
        self._told = ""

    @property
    def value(self) -> T:
        """What they said when they were last sound."""
        return self._value

    def refresh(self) -> bool:
        """Looks whether they have changed; whether :attr:`value` is new."""
        with self._lock:
            mark = self._look()
            if mark == self._mark:
                return False
            try:
                self._value = self._read()
            except (NarrowcastError, OSError) as error:
                if str(error) != self._told:  # not remembered: it is read again until it is sound
                    log.error("%s: kept as it was: %s", self._what, error)
                self._told = str(error)
                return False
            self._mark, self._told = mark, ""
        log.info("%s: taken up anew", self._what)
        return True

    def _look(self) -> _Mark:
        return tuple(_mark(file) for file in self._files)


def _mark(file: Path) -> tuple[int, int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
