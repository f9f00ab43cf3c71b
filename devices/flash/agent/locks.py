"""Only one flash at a time, and whoever comes second is told by whom the first is."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from narrowcast.devices.flash.agent.errors import AgentError
from narrowcast.devices.flash.agent.files import read_json

LOOK_SECONDS = 0.005


class Lock:
    """A lock file; the kernel lets go of it when its process dies, however that happens.

    Args:
        path: of the file; it holds who has it.
        by: who takes it, for the others.
    """

    def __init__(self, path: Path, by: str) -> None:
        self._path = path
        self._by = by
        self._handle: int | None = None

    def take(self) -> None:
        """Takes it.

        Raises:
            AgentError: ``BusyError``: somebody else has it.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        while not _try(handle, fcntl.LOCK_EX):
            if not _try(handle, fcntl.LOCK_SH):  # who only looks whether it is taken does not stand in the way for long
                os.close(handle)
                raise AgentError(
                    "BusyError",
                    f"the board is being flashed by {holder(self._path) or 'somebody'}; wait until that has ended",
                )
            fcntl.flock(handle, fcntl.LOCK_UN)
            time.sleep(LOOK_SECONDS)
        entry = {"by": self._by, "pid": os.getpid(), "since": round(time.time())}
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(entry).encode(), 0)
        self._handle = handle

    @property
    def handle(self) -> int:
        """Of the file, once it is taken: a child that gets it holds the lock as well."""
        assert self._handle is not None
        return self._handle

    def release(self) -> None:
        """Lets go of it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def holder(path: Path) -> str:
    """Who has a lock, in words; empty where nobody has."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        if _try(handle, fcntl.LOCK_SH):
            return ""
    finally:
        os.close(handle)
    entry: Any = read_json(path)
    if not isinstance(entry, dict):
        return "somebody"
    since = time.strftime("%H:%M:%S UTC", time.gmtime(entry.get("since") or 0))
    return f"{entry.get('by')} (since {since}, process {entry.get('pid')})"


def _try(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
