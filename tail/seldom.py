"""Log lines that something else than the server decides how often to cause."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable


class Seldom:
    """Which of such lines are written: of each kind one a minute, so that nothing can fill the disk. From any thread.

    Args:
        clock: seconds.
    """

    EVERY_SECONDS = 60.0
    MAX_KINDS = 1000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._told: OrderedDict[str, tuple[float, int]] = OrderedDict()  # when, and how many were not told since

    def __len__(self) -> int:
        """Kinds that are remembered."""
        return len(self._told)

    def take(self, kind: str) -> str | None:
        """None: this one is left out. Else it may be written, with this behind it: how many were left out before it."""
        now = self._clock()
        with self._lock:
            at, untold = self._told.pop(kind, (float("-inf"), 0))
            if now - at < self.EVERY_SECONDS:
                self._told[kind] = (at, untold + 1)
                return None
            self._told[kind] = (now, 0)
            if len(self._told) > self.MAX_KINDS:
                self._told.popitem(last=False)
        return f" (and {untold} times before)" if untold else ""
