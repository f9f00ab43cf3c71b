"""95 % intervals from batch means (Law & Kelton, *Simulation Modeling and Analysis*): of figures whose neighbours are alike.

One observation a batch, each batch much longer than the ties between neighbours; their spread follows Student's t. Where
neighbouring batches are still tied, they are merged.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MIN_BATCHES = 8
TIED = 0.3  # correlation of neighbouring batches from which on they are merged
# Student's t, 97.5 %, by degrees of freedom
_T = dict(
    zip(
        range(7, 20),
        (2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093),
        strict=True,
    )
)


def half_interval(values: Floats) -> float:
    """Half the 95 % interval of the mean of at least :data:`MIN_BATCHES` observations.

    Beyond 20 of them, t is that of 20: a little too wide.
    """
    count = len(values)
    return float(_T[min(count - 1, max(_T))] * values.std(ddof=1) / np.sqrt(count))


def tie(values: Floats) -> float:
    """Correlation of each with the next; 0 where nothing varies."""
    rest = values - values.mean()
    total = float(rest @ rest)
    return float(rest[1:] @ rest[:-1]) / total if total > 0 else 0.0


def merged_half(values: Floats) -> float | None:
    """Half the interval of the mean, neighbours merged in pairs while they are tied; None for too few observations."""
    if len(values) < MIN_BATCHES:
        return None
    while tie(values) >= TIED and len(values) // 2 >= MIN_BATCHES:
        even = len(values) // 2 * 2
        values = values[len(values) - even :].reshape(-1, 2).mean(1)
    return half_interval(values)
