"""From values to places in a drawing, and where an axis has its ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_TINY = 1e-12
_NARROW = 3.0
_LARGE = 1e15  # beyond it nothing that is measured lies; a scale stays finite whatever a file says


@dataclass(frozen=True)
class Scale:
    """An axis.

    Attributes:
        low: value at ``start``.
        high: value at ``end``.
        start: place of ``low`` in the drawing.
        end: place of ``high``.
        log: logarithmic.
        label: what it shows, with its unit.
        form: a value as text.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool
    label: str
    form: Callable[[float], str]

    def __call__(self, value: float) -> float:
        """Where a value lies; what lies outside the axis is drawn at its end."""
        value = min(max(value, self.low), self.high)
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self, count: int = 6) -> list[float]:
        """Round values within the axis, about so many."""
        found = _log_ticks(self.low, self.high, count) if self.log else _linear_ticks(self.low, self.high, count)
        return [value for value in found if self.low <= value <= self.high]


def linear(values: Iterable[float], start: float, end: float, label: str, form: Callable[[float], str], *,
           zero: bool = True, room: float = 0.04) -> Scale:  # fmt: skip
    """An axis over all values, with some room; from 0 on unless told otherwise."""
    known = [min(max(v, -_LARGE), _LARGE) if abs(v) > _TINY else 0.0 for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    largest = max(abs(low), abs(high)) or 1.0
    span = max(high - low, 1e-6 * largest) if high > low else largest
    low = low - room * span if low < 0 or not zero else low
    return Scale(low, high + room * span, start, end, log=False, label=label, form=form)


def logarithmic(values: Iterable[float], start: float, end: float, label: str, form: Callable[[float], str], *,
                room: float = 1.15) -> Scale:  # fmt: skip
    """A logarithmic axis over all values above 0."""
    known = [min(max(v, _TINY), _LARGE) for v in values if math.isfinite(v) and v > 0] or [1.0, 10.0]
    low, high = min(known) / room, max(known) * room
    if high < _NARROW * low:  # room for ticks around a single value
        low, high = math.sqrt(low * high / _NARROW), math.sqrt(low * high * _NARROW)
    return Scale(low, high, start, end, log=True, label=label, form=form)


def _linear_ticks(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for marks in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**e for e in range(first, last + 1) for m in marks]
        found = [value for value in found if low <= value <= high]
        if len(found) <= count + 1:
            return found
    every = max(1, round((last - first) / count))
    return [10.0**e for e in range(math.ceil(math.log10(low)), last + 1, every)]
