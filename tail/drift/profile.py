"""What a decoded frame says about what its camera sees, in a few numbers that cost next to nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

MIXES = 6
# In the order in which they lie in a profile.
NAMES = ("bits", "spread", *(f"mix {k + 1}" for k in range(MIXES)))
# Of a baseline's sums of them: see baseline.py.
RELATIONS = tuple(f"relation {k + 1}" for k in range(len(NAMES)))
STATISTICS = NAMES + RELATIONS


def profiles(symbols: npt.NDArray[np.uint8], payload_bytes: Sequence[int]) -> npt.NDArray[np.float64]:
    """The numbers of each frame.

    ``bits`` is log2 of the payload's bits per symbol. ``spread`` is log2 of the mean, over channels, of the symbols'
    standard deviation within the channel: how much there is to see. A ``mix`` is the channels' mean symbols, added up with
    fixed random signs and divided by the square root of their number: a random projection keeps distances (Achlioptas,
    "Database-friendly random projections", PODS 2001), so scenes that excite other channels differ in some of them, also
    where their packets have the same size.

    Args:
        symbols: uint8 ``[N, C, H, W]``.
        payload_bytes: that they came in, by frame.

    Returns:
        float64 ``[N, len(NAMES)]``.
    """
    count, channels = symbols.shape[:2]
    flat = symbols.reshape(count, channels, -1)
    positions = flat.shape[2]
    sums = flat.sum(2, dtype=np.int64)
    wide = flat.astype(np.float32)
    squares = np.einsum("ncp,ncp->nc", wide, wide).astype(np.float64)
    means = sums / positions
    # In float32 the variance is good to a few thousandths of a symbol step, which is less than its smallest change.
    deviations = np.sqrt(np.maximum(squares / positions - means**2, 0.0))
    spread = np.log2(deviations.mean(1) + 1 / 64)
    bits = np.log2(8 * np.maximum(np.array(payload_bytes, np.float64), 1.0) / (channels * positions))
    return np.concatenate([bits[:, None], spread[:, None], means @ _signs(channels)], 1)


@lru_cache(maxsize=64)
def _signs(channels: int) -> npt.NDArray[np.float64]:
    """``[channels, MIXES]``: plus and minus one over the square root of ``channels``; the same on every machine, always."""
    data = hashlib.shake_256(b"narrowcast drift mixes 1").digest(channels * MIXES)
    signs = np.where(np.frombuffer(data, np.uint8).reshape(channels, MIXES) & 1, 1.0, -1.0)
    scaled: npt.NDArray[np.float64] = signs / np.sqrt(channels)
    return scaled
