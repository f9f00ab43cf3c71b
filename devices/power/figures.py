"""Joules per frame, gross and net of idle, with 95 % confidence intervals; or none, and the reason.

**Intervals** are from batch means (Law & Kelton, *Simulation Modeling and Analysis*, "batch means"): neighbouring power
samples are alike (sensors average, clocks and temperature drift slowly), so the spread of single samples would promise
far too much. The loaded window is cut into 20 batches, each much longer than those ties; a batch's energy and its
frames make one observation of a ratio, whose spread follows Student's t. Where neighbouring batches are still tied,
they are merged. Chosen over a block bootstrap because it needs no random numbers and no block length, and a report can
be computed again to the last digit.

**Net of idle**: the mean power of the idle windows before and after, times the loaded window, is taken off. Its
interval holds the idle power's own uncertainty, at least half of what the two windows differ by.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from narrowcast.devices.batch_means import MIN_BATCHES, TIED, half_interval, tie
from narrowcast.devices.power.trace import Floats, Integral, Series
from narrowcast.devices.windows import Span, Windows

MIN_SAMPLES = 30
MIN_IDLE_SAMPLES = 10
BATCHES = 20
_MIN_BATCH_S = 0.5
_MIN_BATCH_SAMPLES = 3


class Estimate(NamedTuple):
    """A figure and its 95 % confidence interval; None for the ends where that cannot be told."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class EnergyFigures:
    """What frames took.

    Attributes:
        gross_joules_per_frame: all that the rails gave while frames ran.
        net_joules_per_frame: beyond what an idle board takes.
        loaded_watts: mean.
        idle_before_watts: mean.
        idle_after_watts: mean.
        frames: in the loaded window.
        loaded_s: its length.
        samples: in it.
        largest_gap_s: between two of them.
        batches: that the interval is from.
        warnings: what weakens the figures.
        why_not: why there is no gross figure, or no net one.
    """

    gross_joules_per_frame: Estimate | None
    net_joules_per_frame: Estimate | None
    loaded_watts: float | None
    idle_before_watts: float | None
    idle_after_watts: float | None
    frames: int
    loaded_s: float
    samples: int
    largest_gap_s: float | None
    batches: int | None
    warnings: list[str] = field(default_factory=list)
    why_not: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        data = asdict(self)
        for name in ("gross_joules_per_frame", "net_joules_per_frame"):
            data[name] = getattr(self, name) and getattr(self, name)._asdict()
        return data


def energy_figures(series: Series, windows: Windows, *, max_gap_s: float = 1.0) -> EnergyFigures:
    """Energy per frame.

    Args:
        series: of the board's total (``Trace.series(source.total, ...)``).
        windows: what ran when, by the same clock.
        max_gap_s: the longest gap between samples that may be bridged.
    """
    loaded = _integrate(series, windows.loaded, max_gap_s, MIN_SAMPLES)
    before = _integrate(series, windows.idle_before, max_gap_s, MIN_IDLE_SAMPLES)
    after = _integrate(series, windows.idle_after, max_gap_s, MIN_IDLE_SAMPLES)
    frames = len(windows.frame_ends_ns)
    facts = (loaded.watts, before.watts, after.watts, frames, loaded.seconds, loaded.samples, loaded.largest_gap_s)
    warnings = windows.warnings()
    if loaded.joules is None or frames == 0:
        return EnergyFigures(None, None, *facts, None, warnings, loaded.why_not or "no frame was done in the window")
    gross, half, batches = _per_frame(series, windows, loaded.joules)
    if half is None:
        warnings.append(
            f"no confidence interval: the window holds less than {MIN_BATCHES} batches that are long enough"
        )
    if before.watts is None or after.watts is None:
        idle, why = ("before", before.why_not) if before.watts is None else ("after", after.why_not)
        return EnergyFigures(
            _estimate(gross, half), None, *facts, batches, warnings, f"no net figure: idle {idle}: {why}"
        )
    per_frame_s = loaded.seconds / frames
    net = gross - (before.watts + after.watts) / 2 * per_frame_s
    spread = idle_half(series, (windows.idle_before, windows.idle_after), before.watts, after.watts)
    net_half = None if half is None or spread is None else float(np.hypot(half, per_frame_s * spread))
    if abs(before.watts - after.watts) > 0.1 * (before.watts + after.watts) / 2:
        warnings.append(f"idle power went from {before.watts:.2f} W to {after.watts:.2f} W: the board had not settled")
    return EnergyFigures(_estimate(gross, half), _estimate(net, net_half), *facts, batches, warnings)


def _integrate(series: Series, span: Span, max_gap_s: float, least: int) -> Integral:
    return series.integrate(span.start_ns / 1e9, span.end_ns / 1e9, max_gap_s=max_gap_s, min_samples=least)


def _estimate(value: float, half: float | None) -> Estimate:
    return Estimate(value, None, None) if half is None else Estimate(value, value - half, value + half)


def _per_frame(series: Series, windows: Windows, joules: float) -> tuple[float, float | None, int | None]:
    """The ratio of energy to frames; half its interval; from how many batches."""
    frames = len(windows.frame_ends_ns)
    ratio = joules / frames
    ends = np.array([windows.loaded.start_ns, *windows.frame_ends_ns]) / 1e9

    def rest(edges: Floats) -> Floats:
        done = np.diff(np.interp(edges, ends, np.arange(frames + 1)))  # a frame counts for the time that it took
        return np.asarray(np.diff(series.energy_until(edges)) - ratio * done, np.float64)

    half, count = _half(series, windows.loaded, rest)
    return ratio, None if half is None or count is None else half * count / frames, count


def idle_half(series: Series, spans: tuple[Span, Span], before: float, after: float) -> float | None:
    """Half the interval of the idle power, in watts; ``before`` and ``after`` are the means of the two spans."""
    halves = []
    for span in spans:
        half, _ = _half(series, span, lambda edges: np.diff(series.energy_until(edges)) / np.diff(edges))
        if half is None:
            return None
        halves.append(half)
    return max(float(np.linalg.norm(halves)) / 2, abs(before - after) / 2)


def _half(series: Series, span: Span, observe: Callable[[Floats], Floats]) -> tuple[float | None, int | None]:
    """Half the 95 % interval of the mean of what batches give, and how many there are; None for too few."""
    count = _batches(series, span)
    while count is not None:
        values = observe(np.linspace(span.start_ns / 1e9, span.end_ns / 1e9, count + 1))
        if tie(values) < TIED or count // 2 < MIN_BATCHES:
            return half_interval(values), count
        count //= 2
    return None, None


def _batches(series: Series, span: Span) -> int | None:
    """How many batches the span can be cut into; None for too few."""
    samples = int(np.count_nonzero((series.times >= span.start_ns / 1e9) & (series.times <= span.end_ns / 1e9)))
    count = int(min(BATCHES, span.seconds / _MIN_BATCH_S, samples / _MIN_BATCH_SAMPLES))
    return count if count >= MIN_BATCHES else None
