"""One whole measurement: the sampler's real process beside real work, and what is told about the board meanwhile."""

from __future__ import annotations

import json
import time

import pytest
from support.boards import record_orin

from narrowcast.devices.conditions import Conditions
from narrowcast.devices.errors import SensorError
from narrowcast.devices.measure import conditions_within, evaluate, measure_energy
from narrowcast.devices.power import Reading
from narrowcast.devices.power.sampler import SamplerInfo
from narrowcast.devices.power.trace import Trace, Trouble
from narrowcast.devices.profile.conditions import conditions_over
from narrowcast.devices.windows import Span, WindowPlan, Windows

SENSOR = SamplerInfo("ina3221", ["VDD_IN"], {}, ["VDD_IN"], None, "the module", 10.0, 60.0)
RUN = Windows(
    Span(0, 10 * 10**9),
    Span(10 * 10**9, 12 * 10**9),
    Span(12 * 10**9, 44 * 10**9),
    Span(46 * 10**9, 56 * 10**9),
    [(12 + k) * 10**9 for k in range(1, 33)],
)


def trace(conditions: list[tuple[float, Conditions]], troubles: list[Trouble] | None = None) -> Trace:
    readings = [Reading(k * 10**8, {"VDD_IN": 6000.0 + k % 3}) for k in range(570)]
    return Trace(readings, troubles or [], [(round(at * 1e9), state) for at, state in conditions])


def test_a_run_beside_real_work(tmp_path):
    plan = WindowPlan(idle_s=0.6, warm_up_s=0.1, loaded_s=2.0, settle_s=0.0)
    run = measure_energy(lambda: time.sleep(0.02), "jetson-orin-nano", plan, root=record_orin(tmp_path), hz=100)
    frames = len(run.windows.frame_ends_ns)
    joules = 5072 * 1312 / 1e6 * run.windows.loaded.seconds
    if run.figures.gross_joules_per_frame is None:  # a machine too busy to sample: then the reason, and no figure
        assert "samples" in run.why_not
    else:
        assert run.figures.gross_joules_per_frame.value == pytest.approx(joules / frames)
    assert run.figures.frames == frames > 0
    assert run.sensor.scope == "the module, without the carrier board"
    assert any("s only" in warning for warning in run.warnings)
    told = json.loads(json.dumps(run.as_dict()))
    assert told["sampler"]["cpu_percent"] > 0


def test_without_a_sensor_there_is_no_run(tmp_path):
    with pytest.raises(SensorError, match="no power sensor here"):
        measure_energy(lambda: None, "jetson-orin-nano", root=tmp_path)


def test_without_a_total_there_is_no_figure_and_the_reason():
    info = SamplerInfo(
        "rapl", ["package-0"], {"package-1": "root only"}, [], "no total: package-1 is missing", "", 10.0, 1.0
    )
    run = evaluate(info, RUN, trace([]))
    assert run.figures is None
    assert run.why_not == "no total: package-1 is missing"


def test_throttling_and_failed_samples_are_warnings():
    states = [
        (11.0, Conditions({"cpu": 50.0}, {"cpu-0": 1500.0}, [], [], {"core": 3}, "15W")),
        (20.0, Conditions({"cpu": 81.0}, {"cpu-0": 2400.0}, ["throttled"], [], {"core": 5}, "15W")),
        (30.0, Conditions({"cpu": 79.0}, {"cpu-0": 600.0}, ["throttled"], [], {"core": 5}, "15W")),
        (50.0, Conditions({"cpu": 99.0}, {"cpu-0": 100.0}, ["under-voltage"], [], {"core": 9}, "15W")),
    ]
    run = evaluate(SENSOR, RUN, trace(states, [Trouble(13 * 10**9, "gone", False)]))
    assert run.loaded.hottest_c == {"cpu": 81.0}
    assert run.loaded.clocks_mhz == {"cpu-0": (600.0, 2400.0)}
    assert run.loaded.throttled == ["throttled", "core: 2 times"]
    assert run.loaded.power_mode == "15W"
    assert any("slowed down: throttled, core: 2 times" in warning for warning in run.warnings)
    assert any("1 samples failed, the first: gone" in warning for warning in run.warnings)


def test_what_a_board_remembers_tells_what_no_look_saw():
    """A Raspberry Pi's under-voltage lasts for milliseconds; its firmware keeps that it was."""
    states = [(11.0, Conditions(throttled=[], throttled_before=["throttled"])),
              (20.0, Conditions(throttled=[], throttled_before=["under-voltage", "throttled"]))]  # fmt: skip
    assert conditions_within(trace(states), RUN.loaded).throttled == ["under-voltage"]
    assert conditions_within(trace(states[1:]), RUN.loaded).throttled == []  # it was so before


def test_throttle_events_of_stretches_are_added_up():
    spans = [Span(k * 10 * 10**9, (k * 10 + 5) * 10**9) for k in range(1, 4)]
    states = [
        (k * 10.0 + at, Conditions(throttle_counts={"core": k - (at < 0)})) for k in range(1, 4) for at in (-1, 2)
    ]
    assert conditions_over(trace(states), spans).throttled == ["core: 3 times"]
    assert conditions_over(trace(states), spans[:1]).throttled == ["core: 1 time"]


def test_a_board_that_does_not_tell_is_not_said_to_be_fine():
    assert conditions_within(trace([]), RUN.loaded).throttled is None
    assert conditions_within(trace([(20.0, Conditions())]), RUN.loaded).throttled is None
    assert conditions_within(trace([(20.0, Conditions(throttled=[]))]), RUN.loaded).throttled == []
