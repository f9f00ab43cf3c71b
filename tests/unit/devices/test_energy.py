"""Integrators, windows and energy figures: properties, gaps, stalls, intervals; by a fake clock."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.devices.power import Reading
from narrowcast.devices.power.figures import energy_figures
from narrowcast.devices.power.trace import Series, Trace, Trouble
from narrowcast.devices.windows import Span, WindowPlan, Windows, run_windows

watts = st.floats(0.01, 500)
steps = st.lists(st.floats(0.01, 0.9), min_size=30, max_size=120)


def times_of(gaps: list[float], start: float = 1000.0) -> np.ndarray:
    return start + np.concatenate([[0.0], np.cumsum(gaps)])


def inside(times: np.ndarray, low: float, high: float) -> tuple[float, float]:
    span = times[-1] - times[0]
    return float(times[0] + low * span), float(times[0] + high * span)


cuts = st.tuples(st.floats(0, 0.45), st.floats(0.55, 1))


@settings(max_examples=40, deadline=None)
@given(steps, watts, cuts)
def test_constant_power_is_power_times_time_however_it_is_sampled(gaps, power, cut):
    times = times_of(gaps)
    start, end = inside(times, *cut)
    result = Series(times, np.full(len(times), power)).integrate(start, end, max_gap_s=1.0, min_samples=0)
    assert result.joules == pytest.approx(power * (end - start), rel=1e-9)
    assert result.watts == pytest.approx(power, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(steps, watts, st.floats(-3, 3), cuts)
def test_a_ramp_is_exact_also_between_samples(gaps, power, slope, cut):
    times = times_of(gaps)
    start, end = inside(times, *cut)
    series = Series(times, 1000 + power + slope * (times - times[0]))
    middle = 1000 + power + slope * ((start + end) / 2 - times[0])
    assert series.integrate(start, end, max_gap_s=1.0, min_samples=0).joules == pytest.approx(
        middle * (end - start), rel=1e-9
    )


@settings(max_examples=40, deadline=None)
@given(st.floats(1, 50), st.floats(0, 50), st.integers(2, 12), st.integers(4, 12))
def test_a_sawtooth_over_whole_teeth_is_its_mean(low, height, teeth, per_tooth):
    """Triangles sampled at their corners: exact. (A jump between two samples is known to half a step only.)"""
    k = np.arange(2 * teeth * per_tooth + 1)
    phase = np.abs((k % (2 * per_tooth)) - per_tooth) / per_tooth
    series = Series(k * 0.1, low + height * phase)
    assert series.integrate(0.0, float(k[-1] * 0.1), max_gap_s=1.0, min_samples=0).watts == pytest.approx(
        low + height / 2, rel=1e-9
    )


@settings(max_examples=40, deadline=None)
@given(steps, st.lists(watts, min_size=121, max_size=121), st.floats(0.2, 0.8))
def test_energy_adds_up_over_neighbouring_windows(gaps, powers, part):
    times = times_of(gaps)
    series = Series(times, np.array(powers[: len(times)]))
    middle = inside(times, 0, part)[1]
    whole, first, second = (
        series.integrate(a, b, max_gap_s=1.0, min_samples=0).joules
        for a, b in [(times[0], times[-1]), (times[0], middle), (middle, times[-1])]
    )
    assert whole == pytest.approx(first + second, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(steps, watts, cuts)
def test_a_counter_gives_what_its_power_gives(gaps, power, cut):
    times = times_of(gaps)
    start, end = inside(times, *cut)
    counted = Series(times, power * (times - times[0]), energy=True).integrate(start, end, max_gap_s=1.0, min_samples=0)
    assert counted.joules == pytest.approx(power * (end - start), rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(steps, st.integers(0, 28), st.floats(1.01, 100))
def test_no_figure_across_a_gap_beyond_the_bound(gaps, where, gap):
    gaps = [*gaps[:where], gap, *gaps[where + 1 :]]
    times = times_of(gaps)
    series = Series(times, np.full(len(times), 5.0))
    result = series.integrate(float(times[0]), float(times[-1]), max_gap_s=1.0)
    assert result.joules is None
    assert "no samples" in result.why_not
    assert result.largest_gap_s == pytest.approx(gap)
    before = series.integrate(float(times[0]), float(times[where]), max_gap_s=1.0)
    assert where == 0 or before.why_not is None  # what lies beside the gap is fine


def test_samples_in_any_order_and_twice_count_once():
    series = Series(np.array([2.0, 0.0, 1.0, 1.0]), np.array([1.0, 1.0, 3.0, 99.0]))
    assert series.integrate(0, 2, max_gap_s=1.0).joules == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [(5, 5, "empty"), (-1, 5, "do not reach"), (5, 11, "do not reach"), (5.01, 5.09, "samples lie in the window")],
)
def test_windows_that_the_samples_do_not_cover(start, end, message):
    times = np.arange(101) / 10
    assert message in Series(times, np.ones(101)).integrate(start, end, max_gap_s=1.0).why_not


def test_no_samples_at_all_is_a_reason_and_no_error():
    assert "samples lie" in Series(np.array([]), np.array([])).integrate(0, 1, max_gap_s=1.0).why_not


def traced(values: list[float], *, joules: bool = False, troubles: list[Trouble] | None = None) -> Trace:
    """Ten readings a second."""
    readings = [
        Reading(k * 100_000_000, {} if joules else {"A": v, "B": 1e6}, {"A": v} if joules else {})
        for k, v in enumerate(values)
    ]
    return Trace(readings, troubles or [])


def test_a_series_is_the_rails_that_were_asked_for_and_no_others():
    series = traced([1000.0, 2000.0, 3000.0]).series(["A"], stall_s=10)
    assert series.values.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="no sum"):
        traced([1.0]).series([], stall_s=10)
    both = Trace([Reading(0, {"A": 1.0}, {"B": 1.0})])
    with pytest.raises(ValueError, match="no sum"):
        both.series(["A", "B"], stall_s=10)


def test_a_stalled_sensor_is_a_gap():
    values = [1000.0 + k % 7 for k in range(50)] + [1003.0] * 60 + [1000.0 + k % 7 for k in range(50)]
    series = traced(values).series(["A"], stall_s=5.0)
    assert len(series.stalls) == 1
    assert "stalled" in series.integrate(0, 15.0, max_gap_s=1.0).why_not
    assert series.integrate(0, 4.9, max_gap_s=1.0).why_not is None
    assert traced(values).series(["A"], stall_s=10.0).stalls == []
    moving = [Reading(r.monotonic_ns, {**r.milliwatts, "B": float(k)}) for k, r in enumerate(traced(values).readings)]
    assert Trace(moving).series(["A"], stall_s=5.0).stalls == []  # another rail shows that the sensor lives


def test_a_counter_that_stands_still_is_a_gap_and_one_that_lost_its_place_no_figure():
    values = [float(k) for k in range(30)] + [30.0] * 30 + [31.0 + k for k in range(30)]
    assert "stalled" in traced(values, joules=True).series(["A"], stall_s=1.0).integrate(0, 8.9, max_gap_s=1.0).why_not
    lost = traced([float(k) for k in range(90)], joules=True, troubles=[Trouble(4_050_000_000, "set back", True)])
    series = lost.series(["A"], stall_s=1.0)
    assert "lost its place" in series.integrate(0, 8.9, max_gap_s=1.0).why_not
    assert series.integrate(5.0, 8.9, max_gap_s=1.0).joules == pytest.approx(39)


class FakeClock:
    """Time goes on only when somebody works or sleeps."""

    def __init__(self) -> None:
        self.ns = 10_000_000_000

    def now_ns(self) -> int:
        return self.ns

    def sleep(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


def windows(plan: WindowPlan, frame_s: float = 0.07) -> Windows:
    clock = FakeClock()
    return run_windows(lambda: clock.sleep(frame_s), plan, clock)


def test_windows_follow_one_another_and_hold_whole_frames():
    run = windows(WindowPlan(idle_s=10, warm_up_s=5, loaded_s=30, settle_s=2))
    assert run.idle_before == Span(10_000_000_000, 20_000_000_000)
    assert run.warm_up.start_ns == run.idle_before.end_ns
    assert run.warm_up.end_ns == run.loaded.start_ns
    assert run.frame_ends_ns[-1] == run.loaded.end_ns
    assert len(run.frame_ends_ns) == 429  # the first whole number of 70 ms frames that is 30 s
    assert run.idle_after.start_ns == run.loaded.end_ns + 2_000_000_000
    assert run.warnings() == []


def test_short_windows_warn_and_wrong_plans_are_refused():
    assert any("30 s or more" in text for text in windows(WindowPlan(loaded_s=5)).warnings())
    assert any("no warm-up" in text for text in windows(WindowPlan(warm_up_s=0)).warnings())
    for wrong in ({"loaded_s": 0.0}, {"idle_s": -1.0}):
        with pytest.raises(ValueError, match="windows are not negative"):
            WindowPlan(**wrong)


def test_work_that_fails_ends_the_run():
    def work() -> None:
        raise RuntimeError("no camera")

    with pytest.raises(RuntimeError, match="no camera"):
        run_windows(work, WindowPlan(), FakeClock())


def noisy(run: Windows, seed: int, *, idle_w: float = 2.0, load_w: float = 6.0, tie: float = 0.8) -> Series:
    """Power of an AR(1) process around the idle or the loaded level: neighbouring samples are alike."""
    random = np.random.default_rng(seed)
    times = np.arange(run.idle_before.start_ns / 1e9 - 0.5, run.idle_after.end_ns / 1e9 + 0.5, 0.1)
    noise = np.zeros(len(times))
    for k in range(1, len(times)):
        noise[k] = tie * noise[k - 1] + random.normal(0, 0.2)
    busy = (times >= run.warm_up.start_ns / 1e9) & (times < run.loaded.end_ns / 1e9 + 0.05)
    return Series(times, np.where(busy, load_w, idle_w) + noise)


RUN = windows(WindowPlan())


def test_gross_and_net_of_idle():
    figures = energy_figures(noisy(RUN, 1), RUN)
    assert figures.gross_joules_per_frame.value == pytest.approx(6.0 * 0.07, rel=0.05)
    assert figures.net_joules_per_frame.value == pytest.approx(4.0 * 0.07, rel=0.1)
    assert figures.net_joules_per_frame.value < figures.gross_joules_per_frame.value
    assert figures.frames == 429
    assert figures.as_dict()["gross_joules_per_frame"].keys() == {"value", "low", "high"}


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """95 % is promised, for samples as alike as these; single samples' spread would hold it half as often."""
    hits = net_hits = 0
    for seed in range(200):
        figures = energy_figures(noisy(RUN, seed), RUN)
        gross, net = figures.gross_joules_per_frame, figures.net_joules_per_frame
        hits += gross.low <= 6.0 * 0.07 <= gross.high
        net_hits += net.low <= 4.0 * 0.07 <= net.high
    assert hits >= 180
    assert net_hits >= 180


def test_constant_power_has_an_interval_without_width():
    times = np.arange(9.5, 70, 0.1)
    figures = energy_figures(Series(times, np.full(len(times), 5.0)), RUN)
    gross, net = figures.gross_joules_per_frame, figures.net_joules_per_frame
    assert gross.value == pytest.approx(gross.low) == pytest.approx(gross.high) == pytest.approx(5.0 * 0.07)
    assert net.value == pytest.approx(0.0, abs=1e-9)


def test_too_few_samples_give_no_figure_and_the_reason():
    times = np.arange(0, 80, 2.0)
    figures = energy_figures(Series(times, np.full(len(times), 5.0)), RUN, max_gap_s=3.0)
    assert figures.gross_joules_per_frame is None
    assert "15 samples lie in the window" in figures.why_not
    assert "30 are wanted" in figures.why_not


def test_without_idle_there_is_a_gross_figure_and_no_net_one():
    run = windows(WindowPlan(idle_s=0))
    figures = energy_figures(noisy(run, 3), run)
    assert figures.gross_joules_per_frame is not None
    assert figures.net_joules_per_frame is None
    assert "no net figure: idle before: the window is empty" in figures.why_not


def test_a_short_window_has_a_figure_without_an_interval():
    run = windows(WindowPlan(loaded_s=3.2))
    figures = energy_figures(noisy(run, 4), run)
    assert figures.gross_joules_per_frame.low is None
    assert any("no confidence interval" in warning for warning in figures.warnings)


def test_an_idle_power_that_drifts_is_told_and_widens_the_net_interval():
    series = noisy(RUN, 5)
    late = series.times > RUN.loaded.end_ns / 1e9 + 1
    drifted = energy_figures(Series(series.times, series.values + np.where(late, 1.0, 0.0)), RUN)
    still = energy_figures(series, RUN)
    assert any("had not settled" in warning for warning in drifted.warnings)
    width = [f.net_joules_per_frame.high - f.net_joules_per_frame.low for f in (still, drifted)]
    assert width[1] > width[0]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 400), st.floats(0.5, 200))
def test_energy_per_frame_times_frames_is_the_windows_energy(frames, power):
    times = np.arange(0, 50, 0.1)
    ends = [int(5e9 + 35e9 * (k + 1) / frames) for k in range(frames)]
    run = Windows(
        Span(0, 4_000_000_000),
        Span(4_000_000_000, 5_000_000_000),
        Span(5_000_000_000, ends[-1]),
        Span(42_000_000_000, 49_000_000_000),
        ends,
    )
    figures = energy_figures(Series(times, np.full(len(times), power)), run)
    assert figures.gross_joules_per_frame.value * frames == pytest.approx(power * 35.0, rel=1e-6)
