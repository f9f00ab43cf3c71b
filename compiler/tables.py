"""From a learned density to frozen integer tables.

The density's probabilities are mixed with the counts of symbols that the finished (perhaps quantized) encoder really gave,
and rounded to slots so that the expected cost is least: symbols too rare for a slot are escaped, the rest get their slots
by the largest remaining gain.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from narrowcast.transport.tables import Tables

PRECISION = 12
# What the density weighs in counts: it decides where fewer symbols were seen, and fills the gaps between them.
DENSITY_COUNTS = 500.0
# A frame below this many bytes uses fewer lanes: each lane costs about 3 bytes a frame.
BYTES_FOR_LANES = ((4000, 4), (1500, 2), (0, 1))
# Candidates for "too rare for a slot of its own", in slots.
_RARE = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)

Probabilities = npt.NDArray[np.float64]


def fit_tables(
    density: Probabilities | None,
    counts: npt.NDArray[np.int64] | None,
    *,
    precision: int = PRECISION,
    lanes: int = 4,
    density_counts: float = DENSITY_COUNTS,
) -> Tables:
    """Tables for a density, for counts, or for both.

    Args:
        density: float64 ``[levels, channels, alphabet]``, each row summing to 1; None where nothing is known.
        counts: int64 of the same shape: how often the encoder gave each symbol; None where nothing was counted.
        precision: every table has ``2 ** precision`` slots.
        lanes: of the coder (see :class:`Tables`).
        density_counts: what the density weighs, in counts.
    """
    mixed = _mixed(density, counts, density_counts)
    levels, channels, _ = mixed.shape
    frequencies = np.empty(mixed.shape, np.uint16)
    escapes = np.empty((levels, channels), np.uint16)
    for level in range(levels):
        for channel in range(channels):
            frequencies[level, channel], escapes[level, channel] = quantize(mixed[level, channel], precision)
    return Tables(precision, lanes, frequencies, escapes)


def lanes_for(payload_bytes: float) -> int:
    """How many lanes suit frames of this mean size."""
    return next(lanes for least, lanes in BYTES_FOR_LANES if payload_bytes >= least)


def quantize(probability: Probabilities, precision: int) -> tuple[npt.NDArray[np.uint16], int]:
    """One row of probabilities as slots: uint16 ``[alphabet]`` (0: escaped) and the escape's slots."""
    total = 1 << precision
    if len(probability) == 1:
        return np.array([total], np.uint16), 0
    best: tuple[float, npt.NDArray[np.int64], npt.NDArray[np.bool_]] | None = None
    tried = set()
    for rare in _RARE:
        escaped = probability * total < rare
        if int(escaped.sum()) in tried or escaped.all():
            continue
        tried.add(int(escaped.sum()))
        share = np.append(probability[~escaped], probability[escaped].sum())
        slots = _allot(share if escaped.any() else share[:-1], total)
        ranks = np.ceil(np.log2(max(1, int(escaped.sum()))))
        cost = float((share[: len(slots)] * (precision - np.log2(slots))).sum() + share[-1] * ranks)
        if best is None or cost < best[0]:
            best = cost, slots, escaped
    assert best is not None  # with `rare` = 0 nothing is escaped
    _, slots, escaped = best
    frequencies = np.zeros(len(probability), np.uint16)
    frequencies[~escaped] = slots[: int((~escaped).sum())]
    return frequencies, int(slots[-1]) if escaped.any() else 0


def _allot(share: Probabilities, total: int) -> npt.NDArray[np.int64]:
    """Whole slots, at least one each, summing to ``total``, with the least expected cost."""
    slots = np.maximum(1, np.rint(share * total)).astype(np.int64)
    while (excess := int(slots.sum()) - total) != 0:
        step = -1 if excess > 0 else 1
        with np.errstate(divide="ignore", invalid="ignore"):
            change = share * np.abs(np.log2((slots + step) / slots))
        change[slots + step < 1] = np.inf
        slots[np.argmin(change) if step < 0 else np.argmax(change)] += step
    return slots


def _mixed(density: Probabilities | None, counts: npt.NDArray[np.int64] | None, density_counts: float) -> Probabilities:
    if counts is None:
        if density is None:
            raise ValueError("fit_tables needs a density, counts, or both")
        return density
    if density is None:
        density = np.full(counts.shape, 1.0 / counts.shape[2])
    weighted = counts + density_counts * density
    result: Probabilities = weighted / weighted.sum(2, keepdims=True)
    return result
