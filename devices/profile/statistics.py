"""Percentiles, histograms and the median's interval; none where there are too few frames, and the reason."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from narrowcast.devices.batch_means import TIED, tie
from narrowcast.devices.profile.figures import Distribution, Estimate, Histogram

Floats = npt.NDArray[np.float64]

BINS_A_DECADE = 20
MIN_BLOCKS = 6  # the least and the greatest of six hold the median with 97 %
LEVEL = 0.95
LEAST_MS = 1e-3  # what is less lies in the first bin, from 0
# At least two frames lie beyond each (the median wants five in all).
LEAST_FRAMES = {50: 5, 90: 20, 95: 40, 99: 200}


def distribution(values: Floats, *, why_not: str | None = None) -> Distribution:
    """How milliseconds are distributed.

    Args:
        values: one per frame.
        why_not: where there are none: the reason.
    """
    count = len(values)
    if not count:
        return Distribution(frames=0, why_not=why_not or "no frame was answered")
    known = {p: float(np.percentile(values, p)) for p, least in LEAST_FRAMES.items() if count >= least}
    missing = [p for p in LEAST_FRAMES if p not in known]
    reason = None
    if missing:
        names = " and ".join(f"p{p} ({LEAST_FRAMES[p]})" for p in missing)
        reason = f"{count} frames are too few for {names}: measure for longer"
    return Distribution(
        frames=count, mean_ms=float(values.mean()), p50_ms=known.get(50), p90_ms=known.get(90), p95_ms=known.get(95),
        p99_ms=known.get(99), histogram=histogram(values), why_not=reason,
    )  # fmt: skip


def histogram(values: Floats) -> Histogram:
    """Counts of milliseconds on the grid that all histograms share."""
    low, high = max(float(values.min()), LEAST_MS), max(float(values.max()), LEAST_MS)
    first = math.floor(BINS_A_DECADE * math.log10(low) + 1e-9)
    last = max(first + 1, math.ceil(BINS_A_DECADE * math.log10(high) + 1e-9))
    edges = 10 ** (np.arange(first, last + 1) / BINS_A_DECADE)
    edges[0] = min(edges[0], low) if values.min() >= LEAST_MS else 0.0
    edges[-1] = max(edges[-1], high)
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return Histogram(edges_ms=[float(edge) for edge in edges], counts=[int(count) for count in counts])


def median_estimate(blocks: Sequence[Floats]) -> tuple[Estimate | None, str | None]:
    """The median over all blocks, with its 95 % interval; and why there is none, or no interval.

    The medians of the blocks, which lie apart in time, are the observations: their spread holds what drifts, as single
    frames' does not. The interval lies between two of them in order, chosen by the binomial distribution (the sign test's
    interval; Conover, *Practical Nonparametric Statistics*): a turn in which another program had the processor may be off
    by any amount without moving it. Blocks that resemble their neighbours are merged in pairs first.

    Args:
        blocks: milliseconds, by block, in the order of time.
    """
    there = [block for block in blocks if len(block)]
    frames = sum(map(len, there))
    if frames < LEAST_FRAMES[50]:
        return None, f"{frames} frames are too few for a median ({LEAST_FRAMES[50]}): measure for longer"
    value = float(np.median(np.concatenate(there)))
    if len(there) < MIN_BLOCKS:
        return Estimate(value=value), f"no interval: it wants {MIN_BLOCKS} blocks, and there are {len(there)}"
    medians = np.array([float(np.median(block)) for block in there])
    while tie(medians) >= TIED and len(medians) // 2 >= MIN_BLOCKS:
        medians = medians[len(medians) % 2 :].reshape(-1, 2).mean(1)
    rank = _rank(len(medians))
    low, high = np.sort(medians)[[rank, -1 - rank]]
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value)), None


def _rank(count: int) -> int:
    """The highest k for which the kth smallest and kth largest of ``count`` hold the median with 95 %, counted from 0."""
    rank, left = 0, 2.0**-count
    while rank + 1 < (count + 1) // 2:
        left += math.comb(count, rank + 1) * 2.0**-count
        if 2 * left > 1 - LEVEL:
            break
        rank += 1
    return rank
