"""The bound that rate control is measured against, and the simulation around it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import rate
import rate_rivals as rivals
from rate_links import KBIT, VARYING, Link, scenario

from narrowcast.head.rate.options import Option

OPTIONS = [Option(level, a, b) for level, (a, b) in enumerate(zip(rate.ACCURACY, rate.BYTES, strict=True))]
CAMERA = rate.Camera(10, 0.3, OPTIONS, rate.fitted_sizes(100))


def test_the_link_carries_what_its_rates_say():
    link = Link(np.repeat([1000.0, 0.0, 500.0], 100))  # a second each
    assert link.finish(0.0, 500) == pytest.approx(0.5)
    assert link.finish(0.5, 500) == pytest.approx(1.0)
    assert link.finish(0.5, 501) == pytest.approx(2.002)
    assert link.finish(1.5, 250) == pytest.approx(2.5)
    assert link.finish(3.0, 10 * KBIT) == pytest.approx(4.0)  # 10 kbit/s after its end, at least
    assert link.carried(0.5, 2.5) == pytest.approx(750)


@pytest.mark.parametrize("name", ["walk", "outages"])
@pytest.mark.parametrize("seed", [1, 2])
def test_no_choice_of_levels_passes_the_bound(name, seed):
    """All 625 ways to treat four frames, on a narrow link."""
    case, picks = scenario(name, seed, 4, 0.004), np.arange(4)
    case = case._replace(link=Link(case.link.rates * 0.7))
    bound, best = rate.limit(case, CAMERA, picks), 0.0
    for levels in product([None, 0, 1, 2, 3], repeat=4):
        chosen = iter(levels)

        class Given(rivals.Rule):
            def level(self, frame, now, elapsed, chosen=chosen):
                return next(chosen)

        best = max(best, rate.simulate(Given(OPTIONS, 0.3, 10), case, CAMERA, picks).right)
    assert best <= bound + 1e-9
    assert bound <= best + 0.25 * 0.88  # no more than a frame of four above what can be reached


@pytest.mark.parametrize("name", [*VARYING, "constant 160"])
def test_ours_is_below_the_bound_and_above_one_level(name):
    picks = np.random.default_rng(3).integers(0, 100, 250)
    case = scenario(name, 300, 250, 0.004)
    ours = rate.simulate(rivals.Ours(OPTIONS, 0.3, 10), case, CAMERA, picks).right
    assert ours <= rate.limit(case, CAMERA, picks)
    assert ours > rate.simulate(rivals.Fixed(OPTIONS, 0.3, 10, 3), case, CAMERA, picks).right
