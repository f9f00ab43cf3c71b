"""Energy per frame in one call: samples power beside the work, by the same clock, and puts what was measured together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from narrowcast.devices.conditions import Conditions, changes
from narrowcast.devices.machine import Folder
from narrowcast.devices.power.figures import EnergyFigures, energy_figures
from narrowcast.devices.power.sampler import Sampler, SamplerInfo
from narrowcast.devices.power.trace import Trace, max_gap_s
from narrowcast.devices.windows import Clock, Span, WindowPlan, Windows, run_windows

_REACH_S = 3.0


@dataclass(frozen=True)
class WindowConditions:
    """The board's state within one window; None where it does not tell.

    Attributes:
        hottest_c: the highest temperature, by zone.
        clocks_mhz: the lowest and the highest, by clock.
        flags: what slowed the board down; None where nothing tells.
        throttle_events: throttle counters that moved, and by how much.
        power_mode: at its end.
    """

    hottest_c: dict[str, float] = field(default_factory=dict)
    clocks_mhz: dict[str, tuple[float, float]] = field(default_factory=dict)
    flags: list[str] | None = None
    throttle_events: dict[str, int] = field(default_factory=dict)
    power_mode: str | None = None

    @property
    def throttled(self) -> list[str] | None:
        """See :func:`throttled_by`."""
        return throttled_by(self.flags, self.throttle_events)


@dataclass(frozen=True)
class EnergyRun:
    """One measurement.

    Attributes:
        figures: joules per frame; None where the board's total is not measured.
        why_not: then, the reason.
        sensor: what measured, with its rails, its total and what that covers.
        windows: what ran when.
        trace: every sample, with what sampling cost.
        loaded: the board's state in the loaded window.
        warnings: what weakens the figures, throttling among it.
    """

    figures: EnergyFigures | None
    why_not: str | None
    sensor: SamplerInfo
    windows: Windows
    trace: Trace
    loaded: WindowConditions
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without the samples."""
        cost = self.trace.cost
        return {
            "figures": self.figures.as_dict() if self.figures else None,
            "why_not": self.why_not,
            "sensor": asdict(self.sensor),
            "loaded": {**asdict(self.loaded), "throttled": self.loaded.throttled},
            "failed_samples": len(self.trace.troubles),
            "sampler": {**asdict(cost), "cpu_percent": cost.cpu_percent},
            "warnings": self.warnings,
        }


def measure_energy(
    work: Callable[[], object],
    target: str,
    plan: WindowPlan | None = None,
    *,
    root: Path | str = "/",
    meter: str | None = None,
    hz: float | None = None,
) -> EnergyRun:
    """Runs ``work`` (one frame a call) through the windows while power is sampled.

    Args:
        work: does one frame, and returns when it is done.
        target: the board's, by name.
        plan: the windows.
        root: what stands for ``/``; a folder, since time must go on beside the work.
        meter: instead of the board's own sensors.
        hz: samples a second.

    Raises:
        SensorError: there is no sensor, or it cannot be read. What ``work`` raises comes through.
    """
    clock = Folder(Path("/"))
    sampler = Sampler(target, root, meter=meter, hz=hz)
    info = sampler.start()
    try:
        reach(sampler, clock, clock.now_ns())  # samples on both sides of every window
        windows = run_windows(work, plan or WindowPlan(), clock)
        reach(sampler, clock, windows.idle_after.end_ns)
    finally:
        trace = sampler.stop()
    return evaluate(info, windows, trace)


def reach(sampler: Sampler, clock: Clock, moment_ns: int) -> None:
    """Waits for a sample after the moment; not for long, since a window without one says so itself."""
    deadline = clock.now_ns() + round(_REACH_S * 1e9)
    while (sampler.newest_ns or 0) <= moment_ns and clock.now_ns() < deadline:
        clock.sleep(0.01)


def evaluate(info: SamplerInfo, windows: Windows, trace: Trace) -> EnergyRun:
    """Puts the figures of a run together."""
    loaded = conditions_within(trace, windows.loaded)
    if not info.total:
        return EnergyRun(None, info.why_no_total, info, windows, trace, loaded, windows.warnings())
    series = trace.series(info.total, stall_s=info.stall_s)
    figures = energy_figures(series, windows, max_gap_s=max_gap_s(info.sample_hz))
    warnings = list(figures.warnings)
    if loaded.throttled:
        warnings.append(f"the board was slowed down: {', '.join(loaded.throttled)}")
    if trace.troubles:
        warnings.append(f"{len(trace.troubles)} samples failed, the first: {trace.troubles[0].message}")
    return EnergyRun(figures, figures.why_not, info, windows, trace, loaded, warnings)


def conditions_within(trace: Trace, span: Span) -> WindowConditions:
    """The board's state over a window, from the looks inside it and the last one before it."""
    before = [state for at, state in trace.conditions if at < span.start_ns][-1:]
    inside = [state for at, state in trace.conditions if span.start_ns <= at <= span.end_ns]
    seen = inside or before
    if not seen:
        return WindowConditions()
    zones = {zone for state in seen for zone in state.temperatures_c}
    hottest = {zone: max(s.temperatures_c[zone] for s in seen if zone in s.temperatures_c) for zone in sorted(zones)}
    names = {name for state in seen for name in state.clocks_mhz}
    clocks = {name: _range(seen, name) for name in sorted(names)}
    looks = [*before, *inside]
    return WindowConditions(hottest, clocks, _flags(looks), changes(looks[0], looks[-1]), seen[-1].power_mode)


def _range(states: list[Conditions], name: str) -> tuple[float, float]:
    values = [state.clocks_mhz[name] for state in states if name in state.clocks_mhz]
    return min(values), max(values)


def throttled_by(flags: list[str] | None, events: Mapping[str, int]) -> list[str] | None:
    """All that slowed a board down, in words; None where nothing tells."""
    if flags is None:
        return None
    return [*flags, *(f"{name}: {count} time{'' if count == 1 else 's'}" for name, count in events.items())]


def _flags(states: list[Conditions]) -> list[str] | None:
    """What slowed the board down at a look, or between two (a Raspberry Pi remembers); None where nothing tells."""
    told = [state.throttled for state in states if state.throttled is not None]
    if not told and not states[-1].throttle_counts:
        return None
    first, last = states[0].throttled_before, states[-1].throttled_before
    between = [flag for flag in last if flag not in first] if first is not None and last is not None else []
    return list(dict.fromkeys([*(flag for flags in told for flag in flags), *between]))
