"""Only one flash at a time, and whoever comes second is told by whom the first is."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from narrowcast.devices.flash.agent.errors import AgentError
from narrowcast.devices.flash.agent.files import read_json

LOOK_SECONDS = 0.005
LOOKS_SECONDS = 10.0  # nobody looks for so long: then it is held
OWN_SECONDS = 90.0  # an earlier connection of one's own lets go within this: it may be starting a worker (a minute)
FLASHED = "flashed"


class Lock:
    """A lock file; the kernel lets go of it when its process dies, however that happens.

    Args:
        path: of the file; it holds who has it.
        by: who takes it, for the others.
        what: is done to the board meanwhile, for the others: ``flashed``, ``profiled``.
        run: names what it is taken for, over however many connections: where an earlier one still has it, whose link died
            without a word, that one's process is told to end. Empty: whoever has it keeps it.
    """

    def __init__(self, path: Path, by: str, what: str = FLASHED, run: str = "") -> None:
        self._path = path
        self._by = by
        self._what = what
        self._run = run
        self._handle: int | None = None

    def take(self, wait_seconds: float = 0.0) -> None:
        """Takes it.

        Args:
            wait_seconds: so long somebody else may have it.

        Raises:
            AgentError: ``BusyError``: somebody else has it.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        began, told = time.monotonic(), 0
        while not _try(handle, fcntl.LOCK_EX):
            patience = wait_seconds
            if _try(handle, fcntl.LOCK_SH):  # who only looks whether it is taken does not stand in the way for long
                fcntl.flock(handle, fcntl.LOCK_UN)
                patience = max(patience, LOOKS_SECONDS)
            elif own := self._own():
                patience = max(patience, OWN_SECONDS)
                told = own if own == told else _tell_to_end(own)
            if time.monotonic() - began >= patience:
                os.close(handle)
                who, what = holder(self._path) or "somebody", purpose(self._path)
                raise AgentError("BusyError", f"the board is being {what} by {who}; wait until that has ended")
            time.sleep(LOOK_SECONDS)
        entry = {
            "by": self._by, "what": self._what, "pid": os.getpid(), "since": round(time.time()), "run": self._run,
        }  # fmt: skip
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(entry).encode(), 0)
        self._handle = handle

    def _own(self) -> int:
        """The process that has it for the same run, over an earlier connection; 0 where that is another's, or none."""
        entry: Any = read_json(self._path)
        if not self._run or not isinstance(entry, dict) or entry.get("run") != self._run:
            return 0
        return int(entry["pid"]) if entry["pid"] != os.getpid() else 0

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


def _tell_to_end(process: int) -> int:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGTERM)
    return process


def _try(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
