"""Curves of accuracy over bytes: what is on their front, what a figure costs there, and how far two of them are apart.

A curve is kept as logarithms of bytes over the figure reached, as Bjontegaard's comparison wants it; the figure may be
accuracy, agreement with the teacher, or anything else of which more is better. ``docs/evaluation.md`` has the definitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Bytes over what they reach, linear in the logarithm of the bytes between its points.

    Attributes:
        reached: float64 ``[K]``, strictly ascending: accuracy or agreement.
        log_bytes: float64 ``[K]``, ascending: natural logarithms of mean bytes a frame.
    """

    reached: Floats
    log_bytes: Floats

    def __len__(self) -> int:
        return len(self.reached)

    def log_bytes_at(self, wanted: Floats) -> Floats:
        """The logarithms of the fewest bytes that reach each of ``wanted`` ``[M]``; infinite above the curve.

        Below the curve it is that of its first point: nothing smaller was tried.
        """
        if not len(self):
            return np.full(wanted.shape, np.inf)
        return np.interp(wanted, self.reached, self.log_bytes, right=np.inf)

    def bytes_at(self, wanted: float) -> float | None:
        """The fewest bytes a frame that reach ``wanted``; None where the curve does not."""
        found = float(np.exp(self.log_bytes_at(np.array([wanted]))[0]))
        return found if np.isfinite(found) else None


def pareto(mean_bytes: npt.ArrayLike, reached: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """The points that no other point beats: none has as few bytes and reaches as much, and is better in one of the two.

    Args:
        mean_bytes: ``[K]``.
        reached: ``[K]``.

    Returns:
        Indices int64, by ascending bytes. Of equal points the first is kept.
    """
    sizes, figures = np.asarray(mean_bytes, np.float64), np.asarray(reached, np.float64)
    order = np.lexsort((-figures, sizes))
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(figures[order])[:-1]])
    return order[figures[order] > best_before].astype(np.int64)


def front(mean_bytes: npt.ArrayLike, reached: npt.ArrayLike) -> Curve:
    """The curve through the points that no other point beats (:func:`pareto`); bytes above 0."""
    sizes, figures = np.asarray(mean_bytes, np.float64), np.asarray(reached, np.float64)
    kept = pareto(sizes, figures)
    return Curve(figures[kept], np.log(sizes[kept]))


def cheapest(curves: Sequence[Curve]) -> Curve:
    """The best of several curves: at every figure that is on one of them, the fewest bytes that any of them takes there.

    Nowhere does it take more bytes than any of the curves: between two neighbouring figures each of them is a straight line,
    and the chord under the least of several lines lies below all of them.
    """
    knots = np.unique(np.concatenate([curve.reached for curve in curves])) if curves else np.empty(0)
    if not len(knots):
        return Curve(knots, knots)
    return Curve(knots, np.min([curve.log_bytes_at(knots) for curve in curves], axis=0))


@dataclass(frozen=True)
class Distance:
    """How far a curve is from another.

    Attributes:
        bd_rate: the mean difference in bytes at an equal figure, as a part: -0.75 is three quarters less.
        low: the lowest figure that both curves reach.
        high: the highest.
    """

    bd_rate: float
    low: float
    high: float


def bd_rate(curve: Curve, reference: Curve) -> Distance | None:
    """The Bjontegaard delta rate of ``curve`` against ``reference``.

    The mean, over the figures between the first and the last that both curves have, of the difference of the logarithms of
    their bytes, as a part of the reference's bytes (G. Bjontegaard, "Calculation of average PSNR differences between
    RD-curves", ITU-T VCEG-M33, 2001). Where that paper fits one cubic through four points, the curves here are piecewise
    linear, and the integral is exact: a cubic swings between points that are measured on a few hundred images.

    Returns:
        None where the curves share no range of figures; a single point has none.
    """
    if not len(curve) or not len(reference):
        return None
    low = float(max(curve.reached[0], reference.reached[0]))
    high = float(min(curve.reached[-1], reference.reached[-1]))
    if low >= high:
        return None
    knots = np.unique(np.concatenate([curve.reached, reference.reached, [low, high]]))
    knots = knots[(knots >= low) & (knots <= high)]
    apart = curve.log_bytes_at(knots) - reference.log_bytes_at(knots)
    mean = float(((apart[1:] + apart[:-1]) / 2 * np.diff(knots)).sum()) / (high - low)
    return Distance(float(np.expm1(mean)), low, high)
