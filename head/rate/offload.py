"""Where a frame is answered: by the uncut network here, by symbols at a level, or by sending the image.

Each way that the bundle has the parts for is a :class:`Prospect`: what it is expected to answer rightly in time, and what it
costs. The best value wins; among ways that are as good, the cheapest: by energy where that is known for all of them, else by
time. Another way must be better several times in a row before frames change over, unless the present one has failed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

WayName = Literal["split", "image", "local"]
WAYS: tuple[WayName, ...] = get_args(WayName)
# Ways whose values differ by less are as good as each other: what they cost decides.
AS_GOOD = 0.01
# The present way stays while another one is not better by so much more, or cheaper by this part.
HOLD, CHEAPER = 0.01, 0.15
# So many decisions in a row another way must be the better one; a present way that is this much worse is left at once.
IN_A_ROW = 5
FAILED = 0.25
# While frames are answered here, one is sent every so often, to see how the link is now.
PROBE_SECONDS = 5.0
# The time that the board takes for a frame scatters by this part of it.
SCATTER = 0.15
_GAIN = 0.15


class Prospect(NamedTuple):
    """What one way offers for the next frame.

    Attributes:
        way: its name.
        value: the chance that the answer is in time, times the fraction of right answers.
        seconds: from now to the answer.
        joules: that the board spends on it; None where nobody knows.
    """

    way: WayName
    value: float
    seconds: float
    joules: float | None = None


class Chosen(NamedTuple):
    """A decision.

    Attributes:
        way: to take.
        why: in a word or two: ``only``, ``better``, ``less energy``, ``sooner``, ``stays``, ``probe``.
    """

    way: WayName
    why: str


class BoardTimes:
    """What the board itself takes for a frame, by way: the last ones, smoothed."""

    def __init__(self) -> None:
        self._seconds: dict[WayName, float] = {}

    def took(self, way: WayName, seconds: float) -> None:
        """A frame of this way took so long."""
        before = self._seconds.get(way)
        self._seconds[way] = seconds if before is None else before + _GAIN * (seconds - before)

    def seconds(self, way: WayName) -> float:
        """What the next one is expected to take; 0 where there was none yet, so that it is tried."""
        return self._seconds.get(way, 0.0)

    def chance(self, way: WayName, left: float) -> float:
        """That the board alone is done within ``left`` seconds."""
        expected = self.seconds(way)
        if not expected:
            return float(left > 0)
        return 0.5 * math.erfc(-(left - expected) / (SCATTER * expected) / math.sqrt(2))


class Chooser:
    """Chooses among prospects, frame after frame.

    Attributes:
        chosen: how many frames went each way.
        reasons: why, counted.
        switches: how often a frame went another way than the one before, probes apart.
    """

    def __init__(self) -> None:
        self.chosen: Counter[WayName] = Counter()
        self.reasons: Counter[str] = Counter()
        self.switches = 0
        self._present: WayName | None = None
        self._rival: WayName | None = None
        self._in_a_row = 0
        self._sent_at = -math.inf

    def choose(self, prospects: Sequence[Prospect], now: float, *, may_probe: bool = True) -> Chosen:
        """The way of the next frame.

        Args:
            prospects: at least one.
            now: seconds, by the clock of the other calls.
            may_probe: whether a frame may be sent to see how the link is.
        """
        chosen = self._choose(prospects)
        sendable = [one for one in prospects if one.way != "local"]
        if chosen.way != "local":
            self._sent_at = now
        elif sendable and may_probe and now - self._sent_at >= PROBE_SECONDS:
            self._sent_at = now
            probe = next((one for one in sendable if one.way == "split"), sendable[0])
            chosen = Chosen(probe.way, "probe")
        self.chosen[chosen.way] += 1
        self.reasons[chosen.why] += 1
        return chosen

    def kept_back(self, chosen: Chosen) -> None:
        """The frame that was to be sent that way may not be, and is answered here."""
        self.chosen[chosen.way] -= 1
        self.chosen["local"] += 1
        self.reasons[chosen.why] -= 1
        self.reasons["limits"] += 1

    def _choose(self, prospects: Sequence[Prospect]) -> Chosen:
        best, why = best_of(prospects)
        present = next((one for one in prospects if one.way == self._present), None)
        if present is None or best.way == present.way:
            self._take(best.way)
            return Chosen(best.way, why)
        failed = present.value < best.value - FAILED
        if not failed and not _clearly_better(best, present):
            self._rival, self._in_a_row = None, 0
            return Chosen(present.way, "stays")
        self._in_a_row = self._in_a_row + 1 if best.way == self._rival else 1
        self._rival = best.way
        if not failed and self._in_a_row < IN_A_ROW:
            return Chosen(present.way, "stays")
        self.switches += 1
        self._take(best.way)
        return Chosen(best.way, why)

    def _take(self, way: WayName) -> None:
        self._present, self._rival, self._in_a_row = way, None, 0


def best_of(prospects: Sequence[Prospect]) -> tuple[Prospect, str]:
    """The best way by itself, and by what it is."""
    if len(prospects) == 1:
        return prospects[0], "only"
    most = max(one.value for one in prospects)
    good = [one for one in prospects if one.value >= most - AS_GOOD]
    if len(good) == 1:
        return good[0], "better"
    if all(one.joules is not None for one in good):
        return min(good, key=lambda one: one.joules or 0.0), "less energy"
    return min(good, key=lambda one: one.seconds), "sooner"


def _clearly_better(best: Prospect, present: Prospect) -> bool:
    if best.value > present.value + AS_GOOD + HOLD:
        return True
    if best.joules is not None and present.joules is not None:
        return best.joules < (1 - CHEAPER) * present.joules
    return best.seconds < (1 - CHEAPER) * present.seconds
