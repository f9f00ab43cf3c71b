"""What the link carries and how long it takes, from the answers' times alone.

A frame of ``s`` bytes that finds the link idle is answered after ``base + pace * s`` seconds (and the server's own time,
which it tells); one that waits behind others is answered ``pace * s`` after the one before it. Both are observations, linear
in the two unknowns, which a Kalman filter follows (Kalman 1960) with their covariance: a guess that rests on little is known
to.
"""

from __future__ import annotations

import math
from typing import NamedTuple

# The link before anything was measured: 128 kbit/s, 50 ms; and how little that means.
FIRST_PACE = 1 / 16_000
FIRST_BASE_SECONDS = 0.05
FIRST_PACE_DEVIATION = 1.0
# Relative change of the pace within a second, as a standard deviation: radio links change so much.
PACE_DRIFT = 0.35
BASE_DRIFT_SECONDS = 0.004
# The least that an answer's time scatters; the real scatter is measured.
LEAST_NOISE_SECONDS = 0.003
NOISE_GAIN = 0.06
# Further from the forecast than that (deviations), the link has changed: what was known of its pace counts for less.
SURPRISE = 2.5
FASTEST_PACE = 1e-9
# What a first late answer counts for; the second in a row counts in full.
LATE_SHARE = 0.25
STALL_GAIN = 0.2
# Time lost in stalls is remembered for so long.
STALLED_SECONDS = 15.0
MOST_STALLED = 0.3
# Longer ones are outages: there is no planning for those.
LONGEST_STALL_SECONDS = 0.5


class Forecast(NamedTuple):
    """When an answer is to be expected: seconds from sending, and their standard deviation."""

    seconds: float
    deviation: float


class LinkEstimate:
    """Follows one link.

    Attributes:
        base_seconds: of an answer, apart from its bytes and the server's time.
        pace: seconds a byte.
        server_seconds: what the server lately took (smoothed).
        answers: how many there were.
        stall_share: part of the late answers after which the link was as fast as before.
        stalled_part: of the time, lately, in which nothing moved although the link was no slower before and after.
        suspected_pace: that the link has if the last answer was late because it is slower now; 0 where it was not late.
    """

    def __init__(self) -> None:
        self.base_seconds = FIRST_BASE_SECONDS
        self.pace = FIRST_PACE
        self.server_seconds = 0.0
        self.answers = 0
        self._bb = FIRST_BASE_SECONDS**2
        self._bp = 0.0
        self._pp = (FIRST_PACE_DEVIATION * FIRST_PACE) ** 2
        self._noise = 0.01**2
        self._updated_at: float | None = None
        self.stall_share = 0.5
        self.stalled_part = 0.0
        self._lost_seconds = 0.0  # by the last answer being late
        self._steady_pace = 0.0
        self._before = (0.0,) * 6  # all that was known, before a late answer
        self.suspected_pace = 0.0
        self._last_at = -math.inf  # the last answer, without the server's time

    @property
    def bytes_per_second(self) -> float:
        """Goodput."""
        return 1 / self.pace

    @property
    def pace_deviation(self) -> float:
        """Of the pace, relative to it."""
        return math.sqrt(self._pp) / self.pace

    @property
    def last_at(self) -> float:
        """When the link was last known to be done with a frame, as seen from here."""
        return self._last_at - self.base_seconds

    def answered(self, sent_at: float, answered_at: float, size: int, server_seconds: float) -> None:
        """A frame of ``size`` bytes was answered; times are of one clock, in the order of the answers."""
        at = max(sent_at, answered_at - server_seconds)
        weight = 0.15 if self.answers else 1.0
        self.server_seconds += weight * (server_seconds - self.server_seconds)
        self.answers += 1
        self._drift(at)
        queued = sent_at < self.last_at
        before = self._last_at
        self._last_at = max(before, at)
        self._update(max(0.0, at - before) if queued else at - sent_at, 0.0 if queued else 1.0, size)

    def forecast(self, size: float, ahead_seconds: float = 0.0) -> Forecast:
        """Of a frame that is sent now, with so many seconds of others ahead of it."""
        total = size + ahead_seconds / self.pace
        spread = self._bb + 2 * total * self._bp + total * total * self._pp + self._noise
        return Forecast(
            ahead_seconds + self.base_seconds + self.pace * size + self.server_seconds, math.sqrt(max(spread, 0.0))
        )

    @property
    def noise_seconds(self) -> float:
        """How much answers scatter around their forecasts."""
        return math.sqrt(self._noise)

    def _drift(self, at: float) -> None:
        passed = 0.0 if self._updated_at is None else min(5.0, max(0.0, at - self._updated_at))
        self._updated_at = at
        self.stalled_part *= math.exp(-passed / STALLED_SECONDS)
        self._bb += BASE_DRIFT_SECONDS**2 * passed
        self._pp += (PACE_DRIFT * self.pace) ** 2 * passed

    def _judge(self, implied: float) -> None:
        """What the last answer was late by: this one's pace tells. After a stall all is as it was known before."""
        # It was a stall if this answer was as fast as those before, nearer to that than to the slower link.
        stalled = implied * implied < self._steady_pace * self.suspected_pace
        self.stall_share += STALL_GAIN * (stalled - self.stall_share)
        self.suspected_pace = 0.0
        if stalled:
            if self._lost_seconds < LONGEST_STALL_SECONDS:
                self.stalled_part = min(MOST_STALLED, self.stalled_part + self._lost_seconds / STALLED_SECONDS)
            self.base_seconds, self.pace, self._bb, self._bp, self._pp, self._noise = self._before

    def _update(self, seconds: float, base_weight: float, size: int) -> None:
        judged = bool(self.suspected_pace)
        if judged:
            self._judge(max(0.0, seconds - base_weight * self.base_seconds) / size)
        noise = max(self._noise, LEAST_NOISE_SECONDS**2)
        error = seconds - base_weight * self.base_seconds - self.pace * size
        expected = base_weight * (self._bb + 2 * size * self._bp) + size * size * self._pp + noise
        if error > 0 and error * error > SURPRISE**2 * expected and not judged:
            # One late answer may be a stall (a segment that was lost): it says nothing of the bytes behind it.
            self._steady_pace, self.suspected_pace = self.pace, self.pace + error / size
            self._lost_seconds = error
            self._before = (self.base_seconds, self.pace, self._bb, self._bp, self._pp, self._noise)
            error = LATE_SHARE * error
        if error * error > SURPRISE**2 * expected:
            self._pp += max(0.0, error * error / SURPRISE**2 - expected) / (size * size)
            expected = error * error / SURPRISE**2
        to_base = base_weight * self._bb + size * self._bp
        to_pace = base_weight * self._bp + size * self._pp
        self.base_seconds = max(0.0, self.base_seconds + to_base / expected * error)
        self.pace = max(FASTEST_PACE, self.pace / 8, self.pace + to_pace / expected * error)
        self._bb = max(self._bb - to_base * to_base / expected, 1e-10)
        self._bp -= to_base * to_pace / expected
        self._pp = max(self._pp - to_pace * to_pace / expected, (0.01 * self.pace) ** 2)
        limit = math.sqrt(self._bb * self._pp)
        self._bp = min(max(self._bp, -limit), limit)
        self._noise += NOISE_GAIN * (min(error * error, 9 * noise) - self._noise)
        self._noise = max(self._noise, LEAST_NOISE_SECONDS**2)
