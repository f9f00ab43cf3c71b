"""Axes: whatever values there are, places are finite, in order, and within the drawing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrowcast.devices.report.scales import linear, logarithmic

anything = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=8)


@given(anything, st.booleans(), st.booleans())
def test_every_value_has_a_place_within_the_drawing(values, log, zero):
    scale = logarithmic(values, 10, 300, "x", str) if log else linear(values, 10, 300, "x", str, zero=zero)
    assert math.isfinite(scale.low)
    assert scale.low < scale.high < math.inf
    for value in values:
        if not math.isnan(value):
            assert 10 <= scale(value) <= 300
    ticks = scale.ticks()
    assert ticks == sorted(ticks)
    assert len(ticks) <= 14
    assert all(scale.low <= tick <= scale.high for tick in ticks)


def test_places_and_ticks():
    scale = linear([0, 100], 0, 200, "x", str, room=0.0)
    assert [scale(v) for v in (0, 50, 100)] == [0, 100, 200]
    assert scale.ticks(5) == [0, 20, 40, 60, 80, 100]
    upside_down = linear([0, 100], 200, 0, "y", str, room=0.0)
    assert upside_down(100) == 0
    log = logarithmic([1, 100], 0, 200, "x", str, room=1.0)
    assert [log(v) for v in (1, 10, 100)] == [0, pytest.approx(100), 200]
    assert len(logarithmic([240], 0, 1, "x", str).ticks()) >= 3  # a single value has ticks around it
    assert logarithmic([1, 1e9], 0, 1, "x", str).ticks(4)[:2] == [1, pytest.approx(1000)]


def test_an_axis_from_zero_has_zero_and_another_one_not():
    assert linear([60, 80], 0, 1, "x", str).low == 0
    assert linear([60, 80], 0, 1, "x", str, zero=False).low > 50
    assert linear([-5, 5], 0, 1, "x", str).low < -5
