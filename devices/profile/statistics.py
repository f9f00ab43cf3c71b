"""Percentiles, histograms and the median's interval; none where there are too few frames, and the reason."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from narrowcast.devices.batch_means import MIN_BATCHES, merged_half
from narrowcast.devices.profile.figures import Distribution, Estimate, Histogram

Floats = npt.NDArray[np.float64]

BINS_A_DECADE = 20
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
    """The median over all blocks, with its interval by batch means; and why there is none, or no interval.

    The medians of the blocks, which lie apart in time, are the observations: their spread holds what drifts.

    Args:
        blocks: milliseconds, by block.
    """
    there = [block for block in blocks if len(block)]
    frames = sum(map(len, there))
    if frames < LEAST_FRAMES[50]:
        return None, f"{frames} frames are too few for a median ({LEAST_FRAMES[50]}): measure for longer"
    value = float(np.median(np.concatenate(there)))
    half = merged_half(np.array([float(np.median(block)) for block in there]))
    if half is None:
        return Estimate(value=value), f"no interval: it wants {MIN_BATCHES} blocks, and there are {len(there)}"
    return Estimate(value=value, low=value - half, high=value + half), None
