"""What was sampled over time, and its energy between any two moments.

Power is integrated by the trapezoid rule between samples; energy counters are interpolated. Neither says anything
across a gap longer than a bound, before the first sample, or after the last: there is then no figure, and the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from narrowcast.devices.conditions import Conditions
from narrowcast.devices.power import Reading

Floats = npt.NDArray[np.float64]

_GAP_S = 1.0
_GAP_PERIODS = 3


def max_gap_s(sample_hz: float) -> float:
    """The longest gap between samples that may be bridged: a second, or three periods of a sensor that is slower.

    A sensor of 0.5 Hz says something every 2 s: with a second alone there would be no figure at all. Three periods let two
    of its samples be late or fail; more is a gap that nobody knows anything of.
    """
    return max(_GAP_S, _GAP_PERIODS / sample_hz)


class Trouble(NamedTuple):
    """A sample that failed; ``reset`` where a counter has lost its place."""

    monotonic_ns: int
    message: str
    reset: bool


@dataclass(frozen=True)
class SamplerCost:
    """What sampling itself took.

    Attributes:
        cpu_s: processor time of the sampler's process, since its first sample.
        wall_s: the time over which it did; 0 for a recorded board, whose time is not ours.
        samples: that it took.
        late: moments for a sample that passed without one.
        dropped: lines that nobody took from it in time.
    """

    cpu_s: float = 0.0
    wall_s: float = 0.0
    samples: int = 0
    late: int = 0
    dropped: int = 0

    @property
    def cpu_percent(self) -> float | None:
        """Of one core; None before there was time to tell."""
        return 100 * self.cpu_s / self.wall_s if self.wall_s > 0 else None


@dataclass
class Trace:
    """Readings, failures and conditions, in the order of time."""

    readings: list[Reading] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    conditions: list[tuple[int, Conditions]] = field(default_factory=list)
    cost: SamplerCost = field(default_factory=SamplerCost)

    def series(self, rails: Sequence[str], *, stall_s: float) -> Series:
        """The sum of ``rails`` as one series, without what a stalled sensor said.

        Raises:
            ValueError: no rails, or some that give power and some that give energy.
        """
        kinds = {rail in reading.joules for reading in self.readings for rail in rails if _has(reading, [rail])}
        if not rails or len(kinds) > 1:
            raise ValueError(f"rails {list(rails)} are no sum: name some, all of power or all of energy")
        whole = [reading for reading in self.readings if _has(reading, rails)]
        energy = kinds == {True}
        values = [sum((r.joules if energy else r.milliwatts)[rail] for rail in rails) for r in whole]
        kept, stalls = _without_stalls(whole, stall_s)
        times = np.array([whole[k].monotonic_ns / 1e9 for k in kept])
        sums = np.array([values[k] for k in kept])
        resets = [t.monotonic_ns / 1e9 for t in self.troubles if t.reset]
        return Series(
            times, sums if energy else sums / 1000, energy=energy, resets=resets if energy else [], stalls=stalls
        )


@dataclass(frozen=True)
class Integral:
    """Energy between two moments.

    Attributes:
        joules: None where it is not known.
        seconds: between the moments.
        samples: within them.
        largest_gap_s: between neighbouring samples that matter for it.
        why_not: where ``joules`` is None.
    """

    joules: float | None
    seconds: float
    samples: int
    largest_gap_s: float | None
    why_not: str | None = None

    @property
    def watts(self) -> float | None:
        """The mean."""
        return None if self.joules is None or self.seconds <= 0 else self.joules / self.seconds


class Series:
    """Power in watts, or a counter's joules, at times in seconds of the monotonic clock.

    Attributes:
        times: strictly rising.
        values: watts, or joules where ``energy``.
        stalls: stretches (begin, end, seconds) in which the sensor said the very same; what lies inside is left out.
    """

    def __init__(
        self,
        times: Floats,
        values: Floats,
        *,
        energy: bool = False,
        resets: Iterable[float] = (),
        stalls: Sequence[tuple[float, float]] = (),
    ) -> None:
        order = np.argsort(times, kind="stable")
        times, values = np.asarray(times, np.float64)[order], np.asarray(values, np.float64)[order]
        fresh = np.diff(times, prepend=-np.inf) > 0  # two samples of one moment: the first
        self.times, self.values = times[fresh], values[fresh]
        self.energy, self.stalls = energy, list(stalls)
        self._resets = sorted(resets)
        steps = np.diff(self.times) * (self.values[1:] + self.values[:-1]) / 2
        self._cumulated = self.values if energy else np.concatenate([[0.0], np.cumsum(steps)])[: len(self.times)]

    def energy_until(self, moments: Floats) -> Floats:
        """Joules from some common beginning to each of the ``moments``, which lie between the first sample and the last."""
        if self.energy:
            return np.interp(moments, self.times, self._cumulated)
        at = np.clip(np.searchsorted(self.times, moments, side="right") - 1, 0, len(self.times) - 1)
        rest = moments - self.times[at]
        power = np.interp(moments, self.times, self.values)
        return np.asarray(self._cumulated[at] + rest * (self.values[at] + power) / 2, np.float64)

    def integrate(self, start: float, end: float, *, max_gap_s: float, min_samples: int = 2) -> Integral:
        """Energy from ``start`` to ``end``, seconds of the same clock."""
        inside = int(np.count_nonzero((self.times >= start) & (self.times <= end)))
        gap = self._largest_gap(start, end)
        why = self._why_not(start, end, inside, gap, max_gap_s, min_samples)
        if why:
            return Integral(None, end - start, inside, gap, why)
        first, last = self.energy_until(np.array([start, end]))
        return Integral(float(last - first), end - start, inside, gap)

    def _largest_gap(self, start: float, end: float) -> float | None:
        """Between neighbours that lie in the stretch or around its ends."""
        first = max(0, int(np.searchsorted(self.times, start, side="right")) - 1)
        last = int(np.searchsorted(self.times, end, side="left")) + 1
        near = self.times[first:last]
        return float(np.diff(near).max()) if len(near) > 1 else None

    def _why_not(
        self, start: float, end: float, inside: int, gap: float | None, max_gap_s: float, least: int
    ) -> str | None:
        if end <= start:
            return "the window is empty"
        if inside < least:
            return (
                f"{inside} samples lie in the window of {end - start:.1f} s, and {least} are wanted: measure for longer"
            )
        if self.times[0] > start or self.times[-1] < end:
            return "the samples do not reach over the whole window: start the sampler before it and stop it after it"
        if any(start <= moment <= end for moment in self._resets):
            return "an energy counter lost its place in the window"
        if gap is not None and gap > max_gap_s:
            stalled = any(a < end and b > start for a, b in self.stalls)
            what = "the sensor stalled (it said the very same)" if stalled else "there are no samples"
            return f"{what} for {gap:.1f} s of the window; at most {max_gap_s:.1f} s may be bridged"
        return None


def _has(reading: Reading, rails: Sequence[str]) -> bool:
    return all(rail in reading.milliwatts or rail in reading.joules for rail in rails)


def _without_stalls(readings: Sequence[Reading], stall_s: float) -> tuple[list[int], list[tuple[float, float]]]:
    """Indices of what counts, and the stretches of ``stall_s`` or more without a change. A stretch keeps its ends.

    All rails count, not only those of the sum: one alone may well rest on a coarse sensor's step for a while.
    """
    kept: list[int] = []
    stalls: list[tuple[float, float]] = []
    begin = 0
    for k in range(1, len(readings) + 1):
        if k < len(readings) and readings[k][1:] == readings[begin][1:]:
            continue
        first, last = readings[begin].monotonic_ns / 1e9, readings[k - 1].monotonic_ns / 1e9
        if last - first >= stall_s:
            kept += [begin, k - 1]
            stalls.append((first, last))
        else:
            kept += range(begin, k)
        begin = k
    return kept, stalls
