"""On which processors this process runs."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from narrowcast.transport.errors import ConfigError


def parse_cpus(text: str) -> set[int]:
    """``0,2-3``: numbers of processors.

    Raises:
        ConfigError: it is none.
    """
    found: set[int] = set()
    for part in text.split(","):
        span = re.fullmatch(r"\s*(\d{1,4})(?:\s*-\s*(\d{1,4}))?\s*", part)
        first, last = (int(span[1]), int(span[2] or span[1])) if span else (1, 0)
        if first > last:
            raise ConfigError(f"processors {text!r}: numbers and ranges, such as 0,2-3")
        found.update(range(first, last + 1))
    return found


def check_cpus(text: str) -> set[int]:
    """As :func:`parse_cpus`, of those that this process may use.

    Raises:
        ConfigError: there is one that it may not.
    """
    wanted, there = parse_cpus(text), os.sched_getaffinity(0)
    if missing := sorted(wanted - there):
        raise ConfigError(f"processor {missing[0]} is not here, or not for this process, which may use {sorted(there)}")
    return wanted


def run_on(text: str) -> int:
    """Keeps all threads of this process, those to come included, on these processors; how many they are.

    Raises:
        ConfigError: see :func:`check_cpus`.
    """
    wanted = check_cpus(text)
    os.sched_setaffinity(0, wanted)
    for thread in Path("/proc/self/task").iterdir():  # libraries have made some already
        with suppress(OSError):  # one that has just ended
            os.sched_setaffinity(int(thread.name), wanted)
    return len(wanted)
