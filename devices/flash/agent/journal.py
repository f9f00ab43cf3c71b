"""What a job has done, line by line on disk, so that it goes on after a kill or a power cut."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

END = "end"
# Beside a journal: bytes that are given back where the disk is full, so that a failed flash can still be noted and undone.
BALLAST = "ballast"
BALLAST_BYTES = 256 * 1024


class Journal:
    """One job's.

    Args:
        path: of the file.
        drill: ``kill STEP STATE``, ``halt STEP STATE`` or ``stop STEP STATE``: whoever writes that line for the first time
            dies of it, dies with its guardian, or stays where it is until the power goes.
    """

    def __init__(self, path: Path, drill: str = "") -> None:
        self.path = path
        self._drill = tuple(drill.split())

    def entries(self) -> list[dict[str, Any]]:
        """All whole lines. What a power cut left of the last one does not count."""
        return list(read_entries(self.path))

    def size(self) -> int:
        """In bytes; 0 where there is none yet."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def has(self, step: str, state: str = "done") -> bool:
        """Whether a step came so far."""
        return any(entry["step"] == step and entry["state"] == state for entry in self.entries())

    def ended(self) -> dict[str, Any] | None:
        """The line that ends the job; None while it goes on."""
        return next((entry for entry in self.entries() if entry["step"] == END), None)

    def write(self, step: str, state: str, detail: str = "", **more: Any) -> dict[str, Any]:
        """One more line, on disk when this returns."""
        entry = {"step": step, "state": state, "detail": detail, "at": round(time.time(), 3), **more}
        with self.path.open("ab+") as file:
            _cut_half_line(file)
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._rehearse(step, state)
        return entry

    def _rehearse(self, step: str, state: str) -> None:
        if self._drill[1:] != (step, state):
            return
        if sum((entry["step"], entry["state"]) == (step, state) for entry in self.entries()) > 1:
            return
        if self._drill[0] == "halt":
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGSTOP if self._drill[0] == "stop" else signal.SIGKILL)


def read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a journal; none where there is no file."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError:
        return
    for line in lines:
        try:
            entry = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            entry = None
        if isinstance(entry, dict) and isinstance(entry.get("step"), str) and isinstance(entry.get("state"), str):
            yield entry


def _cut_half_line(file: Any) -> None:
    """A line that a power cut left without its end is taken away."""
    size = file.seek(0, os.SEEK_END)
    tail_bytes = min(size, 1 << 16)
    file.seek(size - tail_bytes)
    tail = file.read(tail_bytes)
    if tail and not tail.endswith(b"\n"):
        file.truncate(size - tail_bytes + tail.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
