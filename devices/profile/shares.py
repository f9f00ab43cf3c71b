"""Intervals of shares. Apart from the other statistics, since reports want them, and do without NumPy."""

from __future__ import annotations

import math

from narrowcast.devices.profile.figures import Agreement, Estimate

_Z95 = 1.959964


def share_interval(share: float, frames: int) -> tuple[float, float] | None:
    """Wilson's 95 % interval of a share of frames (J. Am. Stat. Assoc. 22, 1927)."""
    if frames <= 0 or not 0 <= share <= 1:
        return None
    spread = _Z95**2 / frames
    middle = (share + spread / 2) / (1 + spread)
    half = _Z95 / (1 + spread) * math.sqrt(share * (1 - share) / frames + spread / (4 * frames))
    return max(0.0, middle - half), min(1.0, middle + half)


def share_estimate(found: Agreement) -> Estimate | None:
    """An agreement, with its interval where frames either agree or do not; None where there is none."""
    if found.share is None:
        return None
    interval = share_interval(found.share, found.frames) if found.metric == "top-1" else None
    low, high = interval or (None, None)
    return Estimate(value=found.share, low=low, high=high)
