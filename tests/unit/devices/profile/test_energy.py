"""Joules of frames by ways that took turns: known powers in known blocks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from narrowcast.devices.power import Reading
from narrowcast.devices.power.sampler import SamplerInfo
from narrowcast.devices.power.trace import Trace, Trouble
from narrowcast.devices.profile.energy import Idle, PowerOver, Turn
from narrowcast.devices.profile.power_now import PowerNow
from narrowcast.devices.windows import Span

INFO = SamplerInfo("meter", ["in"], {}, ["in"], None, "all", 10.0, 30.0)
SECOND = 1_000_000_000
NO_IDLE = Idle(None, None, "idle power was not measured")


def trace(watts, seconds=100.0, hz=10.0, energy=False):
    """``watts(t)`` over time."""
    times = np.arange(0, seconds, 1 / hz)
    values = np.array([watts(t) for t in times])
    if energy:
        joules = np.concatenate([[0.0], np.cumsum(values[:-1] / hz)])
        readings = [Reading(round(t * SECOND), {}, {"in": j}) for t, j in zip(times, joules, strict=True)]
    else:
        readings = [Reading(round(t * SECOND), {"in": 1000 * w}) for t, w in zip(times, values, strict=True)]
    return Trace(readings)


def blocks(starts, seconds=2.0, frames=20):
    return [Turn(Span(round(s * SECOND), round((s + seconds) * SECOND)), frames) for s in starts]


def wavering(value):
    """A constant that a sensor does not say twice the same."""
    return lambda t: value + 0.001 * np.sin(40 * t)


def two_ways(t):
    """5 W in even stretches of 4 s, 8 W in odd ones, 3 W idle at both ends."""
    if not 20 <= t < 84:
        return 3.0 + 0.001 * np.sin(40 * t)
    return (5.0 if int(t - 20) // 4 % 2 == 0 else 8.0) + 0.001 * np.sin(40 * t)


@pytest.mark.parametrize("energy", [False, True])
def test_each_ways_energy_is_that_of_its_own_blocks(energy):
    power = PowerOver(INFO, trace(two_ways, energy=energy))
    idle = power.idle(Span(0, 19 * SECOND), Span(86 * SECOND, 99 * SECOND))
    assert idle.watts == pytest.approx(3.0, abs=0.01)
    for first, watts in ((21.0, 5.0), (25.0, 8.0)):
        found = power.energy(blocks(np.arange(first, 83, 8)), idle)
        gross, net = found.gross_joules_per_frame, found.net_joules_per_frame
        assert gross.value == pytest.approx(watts * 0.1, rel=1e-3)
        assert net.value == pytest.approx((watts - 3) * 0.1, rel=5e-3)
        assert gross.low <= gross.value <= gross.high
        assert net.low < net.value < net.high
        assert (found.mean_watts, found.seconds) == (pytest.approx(watts, rel=1e-3), 16.0)
        assert found.samples == pytest.approx(8 * 21, abs=8)
        assert "16.0 s only" in found.warnings[0]


def test_the_interval_holds_the_truth_where_power_differs_from_turn_to_turn():
    random, held = np.random.default_rng(5), 0
    spans = blocks(np.arange(1, 97, 8), frames=40)
    for _ in range(150):
        levels = 6 + random.normal(0, 0.4, 100)
        power = PowerOver(INFO, trace(lambda t, levels=levels: levels[int(t) // 8] + 0.001 * np.sin(40 * t)))
        gross = power.energy(spans, NO_IDLE).gross_joules_per_frame
        held += gross.low <= 6 * 0.05 <= gross.high
    assert held >= 0.9 * 150


def test_what_is_missing_says_why():
    power = PowerOver(INFO, trace(wavering(5.0)))
    few = power.energy(blocks([10.0, 20.0]), NO_IDLE)
    assert few.gross_joules_per_frame.low is None
    assert few.why_not == "no interval: it wants 8 blocks, and there are 2; no net figure: idle power was not measured"
    assert few.net_joules_per_frame is None
    assert "samples lie in its blocks, and 30 are wanted" in power.energy(blocks([10.0]), NO_IDLE).why_not
    assert "do not reach over" in power.energy(blocks([99.0]), NO_IDLE).why_not
    assert (
        PowerOver(replace(INFO, total=[], why_no_total="a rail is off"), Trace()).energy([], NO_IDLE).why_not
        == "a rail is off"
    )
    silent = PowerOver(INFO, Trace(troubles=[Trouble(0, "the bus is gone", reset=False)]))
    assert silent.energy(blocks([1.0]), NO_IDLE).why_not == "the bus is gone"


def test_a_block_in_which_the_sensor_was_away_is_left_out_with_its_frames():
    whole = trace(wavering(5.0))
    gap = Trace([r for r in whole.readings if not 41 * SECOND < r.monotonic_ns < 43 * SECOND])
    found = PowerOver(INFO, gap).energy(blocks(np.arange(0, 97, 8)), NO_IDLE)
    assert found.gross_joules_per_frame.value == pytest.approx(0.5, rel=1e-3)
    assert found.seconds == 24.0
    assert "1 of 13 blocks are left out: there are no samples for" in found.warnings[0]


@pytest.mark.parametrize(("hz", "bridged_s"), [(10.0, 1.0), (3.0, 1.0), (1.0, 3.0), (0.5, 6.0)])
def test_what_is_bridged_is_a_second_or_three_periods_of_a_slower_sensor(hz, bridged_s):
    """As docs/power.md has it."""
    whole, span = trace(wavering(5.0), hz=hz), Span(20 * SECOND, 60 * SECOND)

    def away(seconds):
        kept = [r for r in whole.readings if not 30 * SECOND < r.monotonic_ns < round((30 + seconds) * SECOND)]
        return PowerOver(replace(INFO, sample_hz=hz), Trace(kept)).integrate(span)

    assert away(bridged_s).joules == pytest.approx(200.0, rel=1e-3)
    assert f"at most {bridged_s:.1f} s may be bridged" in away(bridged_s + 1 / hz).why_not


def test_frames_that_failed_are_no_answers_to_divide_by():
    """A turn of refusals within 2 ms each: it takes its energy, and gives nothing for it."""
    power, turns = PowerOver(INFO, trace(wavering(5.0))), blocks(np.arange(0, 96, 8))
    whole = power.energy(turns, NO_IDLE)
    turns[5] = turns[5]._replace(answered=0, failed=1000)
    refused = power.energy(turns, NO_IDLE)
    assert whole.gross_joules_per_frame.value == pytest.approx(0.5, rel=1e-3)
    assert refused.gross_joules_per_frame.value == pytest.approx(0.5 * 12 / 11, rel=1e-3)
    assert "1000 of 1220 frames were not answered: what they took is in the others' joules" in refused.warnings
    assert not any("not answered" in warning for warning in whole.warnings)
    nothing = power.energy([turn._replace(answered=0, failed=1000) for turn in turns], NO_IDLE)
    assert (nothing.gross_joules_per_frame, nothing.why_not) == (None, "no frame was answered")


def test_idle_power_that_moved_is_told():
    power = PowerOver(INFO, trace(lambda t: (3.0 if t < 50 else 4.0) + 0.001 * np.sin(40 * t)))
    idle = power.idle(Span(0, 19 * SECOND), Span(80 * SECOND, 99 * SECOND))
    assert idle.watts == pytest.approx(3.5, abs=0.01)
    assert idle.half >= 0.5 - 1e-3
    assert "idle power went from 3.00 W to 4.00 W" in idle.warning
    assert power.idle(Span(0, 0), Span(1, 1)).why_not == "idle power was not measured"


def test_whoever_watches_sees_the_power_of_what_counts_energy():
    package, dram = {"package-0": 100.0, "dram": 10.0}, {"package-0": 124.0, "dram": 11.0}
    now = PowerNow(replace(INFO, total=["package-0"]), 5 * SECOND)
    assert now.look(5 * SECOND, None, None).total_watts is None
    assert now.look(6 * SECOND, Reading(6 * SECOND, {}, package), None).total_watts is None  # since when, nobody knows
    found = now.look(9 * SECOND, Reading(8 * SECOND, {"meter": 500.0}, dram), None)
    assert (found.at_s, found.total_watts) == (4.0, 12.0)
    assert found.rails_watts == {"package-0": 12.0, "dram": 0.5, "meter": 0.5}
    assert now.look(10 * SECOND, Reading(8 * SECOND, {}, dram), None).total_watts == 12.0  # no new sample
