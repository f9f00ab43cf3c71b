"""How old packets are, by clocks that jump, or were never set."""

from __future__ import annotations

import time

# Clocks that say less were never set: boards without a battery for theirs boot in the past.
EARLIEST_US = 1_704_067_200_000_000  # 2024-01-01


class Ages:
    """Time as one run of a spool sees it.

    Args:
        max_seconds: packets older than that are too old; None: none is.
    """

    def __init__(self, max_seconds: float | None) -> None:
        self._max_us = None if max_seconds is None else max_seconds * 1e6
        self._opened_us, self._opened = time.time_ns() // 1000, time.monotonic_ns()

    def now_us(self) -> int:
        """Microseconds since 1970; goes on evenly where the system's clock jumps."""
        return self._opened_us + (time.monotonic_ns() - self._opened) // 1000

    def too_old(self, spooled_us: int) -> bool:
        """Whether a packet is that was spooled then, by the clock of that time."""
        if self._max_us is None:
            return False
        now = self.now_us()
        if min(spooled_us, now) < EARLIEST_US:  # one of the clocks was not set: it is as old as this run knows
            spooled_us = max(spooled_us, self._opened_us)
        return now - spooled_us > self._max_us
