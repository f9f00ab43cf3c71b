"""The offset between two machines' monotonic clocks, and the bound of its error, from the four times of exchanges.

A packet cannot arrive before it was sent, nor an answer before it left. Each exchange so bounds the offset (server less
board) from both sides: it is at most ``arrived - sent`` and at least ``returned - answered`` (NTP's on-wire protocol, RFC
5905, section 8: the middle of the two is its offset, half their distance half the round trip). The quickest packet there
and the quickest answer back bound it best; they need not be of one exchange. Clocks drift apart: bounds from another time
are widened by what quartz may drift until then. How the least way there and the least way back divide the round trip
cannot be known, so the error is never less than half of that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

DRIFT = 100e-6  # of two boards' quartzes, each within 50 parts in a million
REACH_S = 120.0  # how far away in time exchanges are looked for


class Offset(NamedTuple):
    """The server's clock less the board's, in seconds, and the most by which that may be wrong."""

    seconds: float
    error: float


class Bound(NamedTuple):
    """What exchanges of a short while say.

    Attributes:
        high_at: when the quickest packet was sent, by the board's clock.
        high: the offset is at most that.
        low_at: when the quickest answer was there.
        low: the offset is at least that.
    """

    high_at: float
    high: float
    low_at: float
    low: float


def bound_of(exchanges: Floats) -> Bound | None:
    """The best bounds that some exchanges give; None where there are none.

    Args:
        exchanges: seconds ``[N, 4]``, the fields of :class:`narrowcast.head.timing.Exchange`; NaN where there was none.
    """
    there = exchanges[~np.isnan(exchanges).any(1)]
    if not len(there):
        return None
    sent, arrived, returned, answered = there.T
    up, down = int(np.argmin(arrived - sent)), int(np.argmax(returned - answered))
    return Bound(
        float(sent[up]), float((arrived - sent)[up]), float(answered[down]), float((returned - answered)[down])
    )


class ClockOffset:
    """The offset over a run.

    Args:
        bounds: of short stretches of it, on whatever link: the clocks are the same.
    """

    def __init__(self, bounds: Iterable[Bound]) -> None:
        rows = np.array(list(bounds), np.float64).reshape(-1, 4)
        self._high_at, self._high, self._low_at, self._low = rows.T

    def at(self, moment: float) -> Offset | None:
        """At a moment of the board's clock, in seconds; None where exchanges say nothing, or contradict each other.

        They do the latter where the server was started again, or another one answered.
        """
        high = _reached(self._high + DRIFT * np.abs(self._high_at - moment), self._high_at, moment)
        low = _reached(self._low - DRIFT * np.abs(self._low_at - moment), self._low_at, moment)
        if not len(high) or not len(low) or low.max() > high.min():
            return None
        return Offset(float(high.min() + low.max()) / 2, float(high.min() - low.max()) / 2)


def _reached(values: Floats, at: Floats, moment: float) -> Floats:
    return values[np.abs(at - moment) <= REACH_S]
