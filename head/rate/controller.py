"""Chooses each frame's level: what is expected to be right in time, less what its bytes are worth to later frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from narrowcast.head.rate.estimate import LinkEstimate
from narrowcast.head.rate.options import Option, Segment, envelope, price_at

# So much of the link is planned for; and a backlog is to be gone after so many frames.
UTILIZATION = 0.97
DRAIN_FRAMES = 1.0
# Less of it where the link stalls now and then: time for the frames behind a stall to catch up, so many times what it took.
STALL_COST = 2.0
# Part of the time to spare that frames may wait behind others on the way, so that the link is never without work.
QUEUE_SHARE = 0.15
# Less of it, the less is known of the pace: by the exponential of the pace's relative deviation, times this.
CAUTION = 4.0
# Another level must be expected to be better by so much, or the last one stays.
HYSTERESIS = 0.018
# But never more than this part of what the nearest other level would add or take.
HYSTERESIS_SHARE = 0.4
# What is that unlikely to be in time is not sent.
LEAST_CHANCE = 0.7
# Neither explanation of a late answer is ever ruled out.
LEAST_SHARE = 0.1
# While nothing is under way and no frame has a chance, one is sent all the same, every so often, to see how the link is now.
PROBE_SECONDS = 0.5
# Without a deadline, answers are wanted soon all the same.
NOMINAL_SECONDS = 1.0
# A link that is overdue is expected to stay so for as long again, times this.
OVERDUE_FACTOR = 1.0
# Quantiles of the standard normal distribution, equally likely: for what is not known of the pace.
_QUANTILES = (-1.28, -0.52, 0.0, 0.52, 1.28)
_SIZE_GAIN, _INTERVAL_GAIN = 0.1, 0.1

Reason = Literal["late", "budget", "data-cap", "too-large"]


class Decision(NamedTuple):
    """What to do with a frame.

    Attributes:
        level: the rate point; None where it is dropped.
        chance: of its answer being in time.
        reason: why it is dropped; None where it is not. ``late``: no answer would be in time. ``budget``,
            ``data-cap``: their bytes are used up. ``too-large``: no level's packet is within the limit.
    """

    level: int | None
    chance: float
    reason: Reason | None = None


class Outlook(NamedTuple):
    """What becomes of a packet.

    Attributes:
        chance: that its answer is in time.
        seconds: to its answer.
    """

    chance: float
    seconds: float


class _Flight(NamedTuple):
    at: float
    size: int


class Guess(NamedTuple):
    """One way that the link may be: seconds until it is free, and seconds a byte.

    Attributes:
        overdue: seconds that the oldest frame's answer is late by then.
        slower_pace: that would explain it.
        weight: how likely it is.
    """

    ahead: float
    pace: float
    overdue: float
    slower_pace: float
    weight: float = 1.0


class RateController:
    """For one link. Not safe to be called from several threads at once.

    Args:
        options: the levels, with their accuracy and mean bytes.
        deadline_seconds: from the capture of a frame to its answer; None for none, where no frame is dropped for being late.
        nothing: the accuracy of what answers the frames that are not sent: the local exit's, or 0.
        overhead_bytes: that each packet takes on the socket besides its own.

    Attributes:
        estimate: of the link.
        switches: how often a frame had another level than the one before it.
    """

    def __init__(
        self,
        options: Sequence[Option],
        deadline_seconds: float | None,
        *,
        nothing: float = 0.0,
        overhead_bytes: float = 0.0,
    ) -> None:
        self.estimate = LinkEstimate()
        self.switches = 0
        self._options = sorted(options, key=lambda one: one.size)
        self._inertia = _inertia(self._options)
        self._deadline_seconds = deadline_seconds
        self._nothing = nothing
        self._overhead_bytes = overhead_bytes
        self._scale = 1.0  # this camera's packets, relative to those that the figures are of
        self._interval: float | None = None
        self._decided_at = -math.inf
        self._sent_at = -math.inf
        self._level: int | None = None
        self._flights: dict[int, _Flight] = {}

    def size_of(self, option: Option) -> float:
        """What a packet is expected to take on the socket, in bytes."""
        return option.size * self._scale + self._overhead_bytes

    def decide(
        self,
        now: float,
        elapsed: float = 0.0,
        deadline_seconds: float | None = None,
        spend_per_second: float | None = None,
        besides_bytes: float = 0.0,
        fill: float = 0.5,
    ) -> Decision:
        """What to do with a frame.

        Args:
            now: the time, in seconds, of the clock that the other calls use as well.
            elapsed: since its capture, and what its encoding will take, in seconds.
            deadline_seconds: of this frame; the controller's if None.
            spend_per_second: bytes, where a budget allows no more on average: they are then worth what they are on a link of
                that rate.
            besides_bytes: what a frame takes of that budget besides its packet: framing, and its result.
            fill: of the budget's bucket, 0..1: bytes are dearer as it empties, and cheaper as it fills.
        """
        self.came(now)
        limit = self._deadline_seconds if deadline_seconds is None else deadline_seconds
        left = (NOMINAL_SECONDS if limit is None else limit) - elapsed
        guesses = self._guesses(now)
        wanted = QUEUE_SHARE * max(0.0, left - self.estimate.forecast(0).seconds)
        wanted *= math.exp(-CAUTION * self.estimate.pace_deviation)
        price = sum(
            guess.weight * self._price(guess.ahead - wanted, guess.pace, spend_per_second, besides_bytes, fill)
            for guess in guesses
        )
        best: tuple[float, Option, float] | None = None
        for option in self._options:
            size = self.size_of(option)
            chance = sum(guess.weight * self._chance(size, guess, left) for guess in guesses)
            gain = (
                chance * (option.accuracy - self._nothing)
                - price * size
                + self._inertia.get(option.level, 0.0) * (option.level == self._level)
            )
            if best is None or gain > best[0]:
                best = (gain, option, chance)
        assert best is not None
        _, option, chance = best
        if chance < LEAST_CHANCE and limit is not None:
            if self._flights or now - self._sent_at < PROBE_SECONDS:
                return Decision(None, chance, "late")
            option = self._options[0]
        self.switches += self._level is not None and option.level != self._level
        self._level = option.level
        return Decision(option.level, chance)

    def outlook(self, size: float, left: float, now: float) -> Outlook:
        """What becomes of a packet of so many bytes that is sent now, with ``left`` seconds to its answer."""
        guesses = self._guesses(now)
        chance = sum(guess.weight * self._chance(size, guess, left) for guess in guesses)
        seconds = sum(
            guess.weight
            * (self.estimate.forecast(size, guess.ahead).seconds + (guess.pace - self.estimate.pace) * size)
            for guess in guesses
        )
        return Outlook(chance, seconds)

    def likely(self, left: float, now: float) -> Option:
        """The level, with this camera's bytes, that answers most of those frames that are sent now."""
        options = [one._replace(size=self.size_of(one)) for one in self._options]
        return max(options, key=lambda one: self.outlook(one.size, left, now).chance * one.accuracy)

    def sent(self, frame_id: int, size: int, now: float) -> None:
        """A packet of so many bytes was handed to the link."""
        self._sent_at = now
        self._flights.pop(frame_id, None)
        self._flights[frame_id] = _Flight(now, size)

    def encoded(self, level: int, size: int) -> None:
        """A frame of a level turned out to take so many bytes."""
        expected = next((one.size for one in self._options if one.level == level), None)
        if expected:
            self._scale += _SIZE_GAIN * (min(max(size / expected, 0.1), 10.0) - self._scale)

    def answered(self, frame_id: int, now: float, server_seconds: float) -> None:
        """The server's answer, in time or not."""
        flight = self._flights.pop(frame_id, None)
        if flight is not None:
            size = round(flight.size + self._overhead_bytes)
            self.estimate.answered(flight.at, now, size, server_seconds)

    def lost(self, frame_id: int) -> None:
        """A frame is no longer under way: its stream has broken, or it was never sent."""
        self._flights.pop(frame_id, None)

    @property
    def in_flight_bytes(self) -> int:
        """Of packets without an answer."""
        return sum(flight.size for flight in self._flights.values())

    def came(self, now: float) -> None:
        """A frame came: of one that is dropped without being decided on, which takes its share of the time, too."""
        passed = now - self._decided_at
        self._decided_at = now
        if passed > 2.0:  # a rest, not a rate
            return
        self._interval = (
            passed if self._interval is None else self._interval + _INTERVAL_GAIN * (passed - self._interval)
        )

    def _guesses(self, now: float) -> list[Guess]:
        """How the link may be now: as estimated; where an answer is or was late, it has stalled, or is slower now."""
        known = self.estimate
        steady = self._guess(now, known.pace)
        slower = known.suspected_pace
        if steady.overdue > 0:
            slower = max(slower, steady.slower_pace)
        if slower <= known.pace:
            return [steady]
        share = min(max(known.stall_share, LEAST_SHARE), 1 - LEAST_SHARE)
        return [steady._replace(weight=share), self._guess(now, slower)._replace(weight=1 - share)]

    def _guess(self, now: float, pace: float) -> Guess:
        """When the link is free if it has this pace."""
        known, overdue, slower = self.estimate, 0.0, pace
        free_at = known.last_at
        for number, flight in enumerate(self._flights.values()):
            size = flight.size + self._overhead_bytes
            begun = max(free_at, flight.at)
            free_at = begun + pace * size
            if number:
                continue
            # Answers come back `base` later, so the link's present is only seen then.
            seen = now - known.base_seconds - known.server_seconds - 2 * known.noise_seconds
            if seen > free_at:
                overdue, slower = seen - free_at, (seen - begun) / size
                free_at = now + OVERDUE_FACTOR * overdue
        return Guess(max(0.0, free_at - now), pace, overdue, slower)

    def _chance(self, size: float, guess: Guess, left: float) -> float:
        forecast = self.estimate.forecast(size, guess.ahead)
        slower = (guess.pace - self.estimate.pace) * size
        margin = (left - forecast.seconds - slower) / max(forecast.deviation, 1e-6)
        return 0.5 * math.erfc(-margin / math.sqrt(2))

    def _price(
        self, ahead: float, pace: float, spend_per_second: float | None, besides_bytes: float, fill: float
    ) -> float:
        """What a byte is worth to the frames to come: by the budget that the link leaves each of them."""
        if self._interval is None:
            return 0.0
        segments = envelope([one._replace(size=self.size_of(one)) for one in self._options], self._nothing)
        spread = min(self.estimate.pace_deviation, 1.0)
        share = UTILIZATION * (1 - STALL_COST * self.estimate.stalled_part)
        seconds = share * self._interval - ahead / DRAIN_FRAMES
        prices = [price_at(segments, seconds / (pace * math.exp(spread * z))) for z in _QUANTILES]
        if spend_per_second is not None:
            spendable = spend_per_second * self._interval - besides_bytes
            dear = budget_price(segments, spendable, fill)
            prices = [max(price, dear) for price in prices]
        return sum(prices) / len(prices)


def budget_price(segments: Sequence[Segment], spendable: float, fill: float) -> float:
    """What one more byte a frame is worth where a budget brings each ``spendable`` and its bucket is so full, 0..1.

    At the price of their segment the two levels on either side of that are worth the same, and whichever runs would stay
    until the bucket is empty. With its fill in the price they take turns, in the mixture that the budget pays for.
    """
    return price_at(segments, spendable * min(1.0, 2 * fill)) * (1.5 - fill)


def _inertia(options: Sequence[Option]) -> dict[int, float]:
    """By how much another level must be expected to be better than each."""
    return {
        one.level: min(
            [
                HYSTERESIS,
                *(HYSTERESIS_SHARE * abs(one.accuracy - other.accuracy) for other in options if other is not one),
            ]
        )
        for one in options
    }
