"""What can be done with a frame, and what a byte is worth among that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Option(NamedTuple):
    """One way to treat a frame.

    Attributes:
        level: the rate point.
        accuracy: the expected fraction of right answers.
        size: mean bytes of a packet.
    """

    level: int
    accuracy: float
    size: float


class Segment(NamedTuple):
    """Between two options that are worth having: up to ``size`` bytes a frame, one more is worth ``price``."""

    size: float
    price: float


def envelope(options: Sequence[Option], nothing: float = 0.0) -> list[Segment]:
    """The upper concave envelope of accuracy over bytes, from nothing at all (0 bytes, accuracy ``nothing``) on.

    No mixture of the options, for a mean number of bytes a frame, is expected to answer more; options below it are never
    worth their bytes.
    """
    points = [(0.0, nothing)]
    best = nothing
    for option in sorted(options, key=lambda one: one.size):
        if option.accuracy <= best:
            continue
        best = option.accuracy
        point = (option.size, option.accuracy)
        while len(points) > 1 and _slope(points[-2], points[-1]) <= _slope(points[-1], point):
            points.pop()
        points.append(point)
    return [Segment(points[k][0], _slope(points[k - 1], points[k])) for k in range(1, len(points))]


def price_at(segments: Sequence[Segment], size: float) -> float:
    """What one more byte a frame is worth where there are ``size`` of them; 0 where there are more than can be used."""
    return next((one.price for one in segments if size < one.size), 0.0)


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    return (right[1] - left[1]) / max(right[0] - left[0], 1e-9)
