"""Where a server's time goes: what its event loop and its batchers' threads are at, looked at every 2 ms.

A timer's signal interrupts the event loop's thread, and its handler sees the stack of each thread. Everything below one of
narrowcast's functions counts for that function's file, the library's code that it calls included; but a line that reads
from a stream or writes to it counts for gRPC. Loop time that is not below narrowcast is gRPC's and asyncio's own. gRPC's
threads are not seen; they are in the CPU time of the process.
"""

from __future__ import annotations

import linecache
import re
import signal
import sys
import threading
import time
from collections import Counter
from types import FrameType

INTERVAL_SECONDS = 0.002
WAITING, GRPC, OTHER = "waiting", "gRPC and asyncio", "other"
# The first that fits a file's path.
_AREAS = {
    "decode": r"transport/(codec|coder|tables|zstd)",
    "networks": r"tail/backends/|tail/loading|tail/store|tail_servers",
    "packets": r"transport/packet",
    "answers": r"tail/answering|transport/rpc/tensors|transport/tasks",
    "batcher": r"tail/(batcher|fair_queue|frame)\b",
    "streams": r"tail/|transport/",
}
_OURS = re.compile(r"/(?:narrowcast|bench)/.*\.py$|/(?:tail|transport)/[^/]+\.py$")
_STREAM_CALL = re.compile(r"\bawait [\w.]*\b(read|write)\(")


class Sampler:
    """Samples the process that it is made in; made and started on the main thread, which runs the event loop.

    Samples say where, the threads' CPU clocks how long: a thread that had to wait for a core was not busy meanwhile.
    """

    def __init__(self) -> None:
        self._seen: dict[str, Counter[str]] = {"loop": Counter(), "thread": Counter()}
        self._began: dict[str, float] = {"loop": 0.0, "thread": 0.0}
        self._taking = False

    def start(self) -> None:
        """From now on."""
        self._began = _cpu_seconds()
        signal.signal(signal.SIGALRM, self._take)
        signal.setitimer(signal.ITIMER_REAL, INTERVAL_SECONDS, INTERVAL_SECONDS)

    def stop(self) -> dict[str, dict[str, float]]:
        """CPU seconds for each kind of thread and area; ``thread`` is the sum over batchers' threads."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        found = {}
        for kind, now in _cpu_seconds().items():
            busy = {area: count for area, count in self._seen[kind].items() if area != WAITING}
            all_of = sum(busy.values())
            found[kind] = {area: (now - self._began[kind]) * count / all_of for area, count in busy.items()}
        return found

    def _take(self, _: int, interrupted: FrameType | None) -> None:
        if self._taking:  # on a busy machine the next signal comes before the last one is done with
            return
        self._taking = True
        if interrupted is not None:
            self._seen["loop"][_area(interrupted)] += 1
        stacks = sys._current_frames()  # noqa: SLF001
        for thread in _batchers():
            if thread.ident in stacks:
                self._seen["thread"][_area(stacks[thread.ident])] += 1
        self._taking = False


def _batchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("tail-") and thread.ident]


def _cpu_seconds() -> dict[str, float]:
    clocks = [time.pthread_getcpuclockid(thread.ident) for thread in _batchers() if thread.ident]
    return {"loop": time.thread_time(), "thread": sum(map(time.clock_gettime, clocks))}


def _area(innermost: FrameType) -> str:
    name = innermost.f_code.co_filename
    if name.endswith(("selectors.py", "threading.py")) and innermost.f_code.co_name in ("select", "wait"):
        return WAITING
    frame: FrameType | None = innermost
    while frame is not None:
        name = frame.f_code.co_filename
        if _OURS.search(name) and "site-packages" not in name and frame.f_code.co_name not in ("main", "<module>"):
            if _STREAM_CALL.search(linecache.getline(name, frame.f_lineno or 0)):
                return GRPC
            return next((area for area, files in _AREAS.items() if re.search(files, name)), OTHER)
        frame = frame.f_back
    return GRPC
