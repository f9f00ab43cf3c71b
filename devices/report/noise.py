"""When one figure is worse than another beyond noise.

Each figure comes with its 95 % interval. Two figures differ beyond noise where their difference is too large for what
both intervals allow; since many figures are compared at once, chance would find some in every comparison, so Holm's
step-down correction (Scand. J. Statist. 6, 1979) holds the probability of *any* false alarm at 5 %. A difference that
is certain and tiny is no regression either: it has to be as large as the least that matters for that kind of figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

ALPHA = 0.05
_Z95 = 1.959964

Outcome = Literal["worse", "better", "same", "cannot tell"]


class Figure(NamedTuple):
    """A value with its 95 % interval; None for the ends where that is not known."""

    value: float
    low: float | None = None
    high: float | None = None

    def sigma(self, *, upwards: bool) -> float | None:
        """What the interval says of the spread, on the side towards the other figure."""
        end = self.high if upwards else self.low
        return None if end is None else abs(end - self.value) / _Z95


@dataclass(frozen=True)
class Rule:
    """What counts for a kind of figure.

    Attributes:
        least: the smallest change that matters: a part of the old value, or an absolute one where ``absolute``.
        more_is_worse: for times, bytes and joules.
        absolute: whether ``least`` is in the figure's own unit.
    """

    least: float
    more_is_worse: bool = True
    absolute: bool = False

    def matters(self, old: float, new: float) -> bool:
        """Whether the change is as large as one that matters."""
        least = self.least if self.absolute else self.least * abs(old)
        return abs(new - old) >= least and new != old

    def worse(self, old: float, new: float) -> bool:
        """Whether it goes the wrong way."""
        return (new > old) == self.more_is_worse


def outcomes(pairs: Sequence[tuple[Figure, Figure, Rule]]) -> list[Outcome]:
    """What became of each figure, from the old run (first) to the new one, all of them judged together."""
    chances = [_chance(old, new) for old, new, _ in pairs]
    rejected = _holm([p for p in chances if p is not None])
    found: list[Outcome] = []
    known = iter(rejected)
    for (old, new, rule), chance in zip(pairs, chances, strict=True):
        beyond = next(known) if chance is not None else False
        if chance is None:
            found.append("same" if old.value == new.value else "cannot tell")
        elif beyond and rule.matters(old.value, new.value):
            found.append("worse" if rule.worse(old.value, new.value) else "better")
        else:
            found.append("same")
    return found


def _chance(old: Figure, new: Figure) -> float | None:
    """The probability of so large a difference by noise alone, two-sided; None where the noise is not known."""
    up = new.value > old.value
    first, second = old.sigma(upwards=up), new.sigma(upwards=not up)
    if first is None or second is None:
        return None
    sigma = math.hypot(first, second)
    if sigma == 0:
        return 1.0 if old.value == new.value else 0.0
    return math.erfc(abs(new.value - old.value) / sigma / math.sqrt(2))


def _holm(chances: Sequence[float]) -> list[bool]:
    """Which of them are too small to be chance, together."""
    order = sorted(range(len(chances)), key=chances.__getitem__)
    rejected = [False] * len(chances)
    for rank, k in enumerate(order):
        if chances[k] > ALPHA / (len(chances) - rank):
            break
        rejected[k] = True
    return rejected
