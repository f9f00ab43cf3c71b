"""What the server's process uses, as Linux tells."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import msgspec

_PROC = Path("/proc/self")


class ProcessUse(msgspec.Struct, frozen=True):
    """Figures of this process; None where the system does not tell.

    Attributes:
        resident_bytes: memory that it holds now.
        cpu_seconds: user and system time since its start.
        open_fds: open file descriptors.
    """

    resident_bytes: int | None
    cpu_seconds: float
    open_fds: int | None


def process_use() -> ProcessUse:
    """As it is now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    resident = fds = None
    try:
        resident = int((_PROC / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        fds = len(os.listdir(_PROC / "fd"))  # noqa: PTH208  (names alone, no path objects)
    except OSError:
        pass
    return ProcessUse(resident, round(used.ru_utime + used.ru_stime, 3), fds)
