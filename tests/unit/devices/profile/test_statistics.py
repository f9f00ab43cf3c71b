"""Percentiles, histograms, the median's interval, and clocks that are not one's own."""

from __future__ import annotations

import numpy as np
import pytest

from narrowcast.devices.profile.offset import DRIFT, Bound, ClockOffset, bound_of
from narrowcast.devices.profile.statistics import distribution, histogram, median_estimate


def test_percentiles_appear_with_enough_frames():
    known = {
        count: {p for p in (50, 90, 95, 99) if getattr(distribution(np.arange(count) + 1.0), f"p{p}_ms") is not None}
        for count in (4, 5, 19, 20, 39, 40, 199, 200)
    }
    assert known == {
        4: set(), 5: {50}, 19: {50}, 20: {50, 90}, 39: {50, 90}, 40: {50, 90, 95}, 199: {50, 90, 95}, 200: {50, 90, 95, 99},
    }  # fmt: skip
    few = distribution(np.arange(30) + 1.0)
    assert few.why_not == "30 frames are too few for p95 (40) and p99 (200): measure for longer"
    whole = distribution(np.arange(200) + 1.0)
    assert (whole.why_not, whole.p50_ms, whole.mean_ms) == (None, 100.5, 100.5)
    assert distribution(np.empty(0)).why_not == "no frame was answered"


@pytest.mark.parametrize(
    "values", [[5.0], [0.0, 0.0], [1e-9, 1e6], [1.0, 10.0, 100.0], list(np.linspace(0.9, 1.1, 999))]
)
def test_histograms_hold_every_value_on_the_common_grid(values):
    found = histogram(np.array(values))
    assert len(found.edges_ms) == len(found.counts) + 1
    assert sum(found.counts) == len(values)
    assert found.edges_ms[0] <= min(values)
    assert max(values) <= found.edges_ms[-1] * (1 + 1e-9)
    grid = 20 * np.log10([edge for edge in found.edges_ms if edge > 0])
    assert np.allclose(grid, np.round(grid), atol=1e-6)


def test_the_medians_interval_holds_the_truth_where_turns_drift():
    """Blocks of one drifting level each, as other programs make them: single frames would promise far too much."""
    random, held, naive = np.random.default_rng(1), 0, 0
    for _ in range(400):
        blocks = [10 + random.normal(0, 0.5) + random.normal(0, 0.2, 100) for _ in range(12)]
        estimate, why = median_estimate(blocks)
        assert why is None
        held += estimate.low <= 10 <= estimate.high
        frames = np.concatenate(blocks)
        naive += abs(np.median(frames) - 10) < 1.96 * 1.25 * frames.std() / np.sqrt(len(frames))
    assert held >= 0.93 * 400
    assert naive < 0.5 * 400


def test_one_disturbed_turn_moves_neither_median_nor_interval_far():
    random = np.random.default_rng(2)
    blocks = [random.normal(10, 0.1, 200) for _ in range(12)]
    blocks[4] = blocks[4] + 1000
    estimate, _ = median_estimate(blocks)
    assert 9.9 < estimate.low <= estimate.value <= estimate.high < 10.1


def test_too_little_for_a_median_or_an_interval():
    assert median_estimate([np.ones(2), np.ones(2)])[1].startswith("4 frames are too few for a median (5)")
    estimate, why = median_estimate([np.ones(10)] * 5)
    assert (estimate.value, estimate.low, why) == (1.0, None, "no interval: it wants 6 blocks, and there are 5")


def exchanges(random, offset, count, up_ms=30.0, down_ms=10.0, at=1000.0):
    """Seconds [N, 4], with ways there and back that take what they take, and some more."""
    sent = at + np.arange(count) * 0.05
    arrived = sent + (up_ms + random.exponential(5, count)) / 1000 + offset
    returned = arrived + 0.002
    return np.stack([sent, arrived, returned, returned - offset + (down_ms + random.exponential(5, count)) / 1000], 1)


@pytest.mark.parametrize("offset", [0.0, 12345.678, -9e6])
def test_the_offset_lies_within_its_bound_however_ways_there_and_back_differ(offset):
    rows = exchanges(np.random.default_rng(3), offset, 200)
    found = ClockOffset([bound_of(rows)]).at(1005.0)
    assert abs(found.seconds - offset) <= found.error
    assert found.error == pytest.approx(0.020, abs=0.003)  # half of 30 + 10 ms: no more can be known


def test_a_quicker_link_to_the_same_server_bounds_it_better():
    random = np.random.default_rng(4)
    slow, quick = (bound_of(exchanges(random, 7.0, 100, *ms)) for ms in ((300.0, 40.0), (0.2, 0.1)))
    found = ClockOffset([slow, quick]).at(1002.0)
    assert abs(found.seconds - 7.0) <= found.error < 0.001


def test_bounds_widen_with_what_clocks_drift_and_far_ones_do_not_count():
    offset = ClockOffset([Bound(1000.0, 7.001, 1000.0, 6.999)])
    assert offset.at(1000.0).error == pytest.approx(0.001)
    assert offset.at(1100.0).error == pytest.approx(0.001 + 100 * DRIFT)
    assert offset.at(1200.0) is None


def test_contradictions_and_silence_give_no_offset():
    assert (
        ClockOffset([Bound(0.0, 1.0, 0.0, 0.9), Bound(0.0, 5.0, 0.0, 4.9)]).at(0.0) is None
    )  # started again meanwhile
    assert ClockOffset([]).at(0.0) is None
    assert bound_of(np.full((3, 4), np.nan)) is None
