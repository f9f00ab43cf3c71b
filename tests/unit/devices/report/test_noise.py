"""What is worse beyond noise, and what is not."""

from __future__ import annotations

import numpy as np
import pytest

from narrowcast.devices.report.noise import Figure, Rule, outcomes

TIMES, SHARES = Rule(0.05), Rule(0.005, more_is_worse=False, absolute=True)


def around(value: float, half: float) -> Figure:
    return Figure(value, value - half, value + half)


@pytest.mark.parametrize(
    ("old", "new", "rule", "outcome"),
    [
        (around(100, 2), around(120, 2), TIMES, "worse"),
        (around(120, 2), around(100, 2), TIMES, "better"),
        (around(100, 2), around(101, 2), TIMES, "same"),
        (around(100, 20), around(120, 20), TIMES, "same"),  # as large a change, within the noise
        (around(100, 0.1), around(103, 0.1), TIMES, "same"),  # certain, and too small to matter
        (around(0.9, 0.01), around(0.8, 0.01), SHARES, "worse"),
        (around(0.8, 0.01), around(0.9, 0.01), SHARES, "better"),
        (Figure(100), Figure(120), TIMES, "cannot tell"),
        (Figure(100), around(120, 1), TIMES, "cannot tell"),
        (Figure(100), Figure(100), TIMES, "same"),
        (around(100, 0), around(106, 0), TIMES, "worse"),  # without noise
        (around(0, 0), around(0, 0), TIMES, "same"),
        (around(0, 0), around(1, 0), TIMES, "worse"),
        (around(-1, 0.1), around(1, 0.1), TIMES, "worse"),  # net energy may lie around 0
        (Figure(100, 99.9, 130), around(104, 0.1), Rule(0.01), "same"),  # the end towards the other one counts
        (Figure(100, 70, 100.1), around(104, 0.1), Rule(0.01), "worse"),
    ],
)
def test_one_figure(old, new, rule, outcome):
    assert outcomes([(old, new, rule)]) == [outcome]


def test_what_is_notable_alone_is_not_among_many():
    """One of sixty figures lies at the edge of its interval by chance in nearly every comparison."""
    edge = (around(100, 2), around(105.9, 3.5), Rule(0.01))  # p = 0.004
    assert outcomes([edge]) == ["worse"]
    assert set(outcomes([edge, *[(around(1, 0.1), around(1, 0.1), TIMES)] * 60])) == {"same"}


def test_two_runs_of_the_same_seldom_differ():
    """At most about 5 % of whole comparisons may raise a false alarm, whatever the number of figures."""
    random = np.random.default_rng(1)
    rule = Rule(0.0)
    alarms = 0
    for _ in range(300):
        values = random.normal(100, 1, (2, 40))
        pairs = [(around(a, 1.96), around(b, 1.96), rule) for a, b in values.T]
        alarms += any(outcome != "same" for outcome in outcomes(pairs))
    assert alarms <= 300 * 0.08


def test_a_real_change_is_found_among_many():
    same = [(around(100, 2), around(100.5, 2), TIMES)] * 60
    assert outcomes([*same, (around(100, 2), around(112, 2), TIMES)])[-1] == "worse"
