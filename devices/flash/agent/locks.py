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
LOOKS_SECONDS = 10.0  # nobody looks for so long: then it is held
FLASHED = "flashed"


class Lock:
    """A lock file; the kernel lets go of it when its process dies, however that happens.

    Args:
        path: of the file; it holds who has it.
        by: who takes it, for the others.
        what: is done to the board meanwhile, for the others: ``flashed``, ``profiled``.
    """

    def __init__(self, path: Path, by: str, what: str = FLASHED) -> None:
        self._path = path
        self._by = by
        self._what = what
        self._handle: int | None = None

    def take(self) -> None:
        """Takes it.

        Raises:
            AgentError: ``BusyError``: somebody else has it.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + LOOKS_SECONDS
        while not _try(handle, fcntl.LOCK_EX):
            # Who only looks whether it is taken does not stand in the way for long.
            if not _try(handle, fcntl.LOCK_SH) or time.monotonic() > deadline:
                os.close(handle)
                who, what = holder(self._path) or "somebody", purpose(self._path)
                raise AgentError("BusyError", f"the board is being {what} by {who}; wait until that has ended")
            fcntl.flock(handle, fcntl.LOCK_UN)
            time.sleep(LOOK_SECONDS)
        entry = {"by": self._by, "what": self._what, "pid": os.getpid(), "since": round(time.time())}
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
    what = purpose(path)
    return f"{entry.get('by')} ({'' if what == FLASHED else f'{what} '}since {since}, process {entry.get('pid')})"


def purpose(path: Path) -> str:
    """What is done to the board by who has a lock."""
    entry: Any = read_json(path)
    return str(entry.get("what") or FLASHED) if isinstance(entry, dict) else FLASHED


def _try(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
