"""Durations, counted in buckets: fine ones for quantiles, of which every fourth bound is one of Prometheus'."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

BOUNDS_SECONDS = (*(float(f"{digit}e{power}") for power in range(-6, 1) for digit in (1, 2, 5)), 10.0)
SHOWN_SECONDS = 1e-5  # /metrics has no bucket below this
_PARTS = 4


def _refined(bounds: Sequence[float]) -> tuple[float, ...]:
    fine = [low * (high / low) ** (part / _PARTS) for low, high in pairwise(bounds) for part in range(_PARTS)]
    return (*fine, bounds[-1])


FINE_SECONDS = _refined(BOUNDS_SECONDS)  # neighbours are at most 26 % apart


class Histogram:
    """Durations of one kind.

    Attributes:
        counts: per fine bucket, those up to its bound and above the one before; the last has no bound.
        total_seconds: their sum.
    """

    __slots__ = ("counts", "total_seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(FINE_SECONDS) + 1)
        self.total_seconds = 0.0

    def add(self, seconds: float) -> None:
        """Counts one."""
        self.counts[bisect_left(FINE_SECONDS, seconds)] += 1
        self.total_seconds += seconds

    def copy(self) -> Histogram:
        """One that no longer changes."""
        made = Histogram()
        made.counts, made.total_seconds = self.counts.copy(), self.total_seconds
        return made

    def cumulative(self) -> list[tuple[str, float]]:
        """Buckets as Prometheus wants them: (``le``, how many are at most that), the last one ``+Inf``."""
        buckets, so_far, start = [], 0, 0
        for k, bound in enumerate(BOUNDS_SECONDS):
            so_far += sum(self.counts[start : k * _PARTS + 1])
            start = k * _PARTS + 1
            if bound >= SHOWN_SECONDS:
                buckets.append((repr(bound), float(so_far)))
        buckets.append(("+Inf", float(so_far + sum(self.counts[start:]))))
        return buckets


def quantile_seconds(counts: Sequence[int], share: float) -> float | None:
    """The duration that ``share`` of the counted ones do not exceed; None where nothing was counted.

    Right to within a fine bucket (26 %), interpolated evenly inside it. Above the last bound, that bound is told.
    """
    total = sum(counts)
    if not total:
        return None
    rank, so_far = share * total, 0
    for k, count in enumerate(counts):
        if count and so_far + count >= rank:
            if k == len(FINE_SECONDS):
                break
            low = FINE_SECONDS[k - 1] if k else 0.0
            return low + (FINE_SECONDS[k] - low) * max(0.0, rank - so_far) / count
        so_far += count
    return FINE_SECONDS[-1]
