"""The bootstrap on distributions whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest

from narrowcast.compiler import bootstrap
from narrowcast.compiler.bootstrap import Resampler, interval


def test_the_resampled_means_spread_as_the_standard_error():
    """300 images of which 60 % are right: the standard error is sqrt(0.6 * 0.4 / 300)."""
    means = Resampler(300).means(np.arange(300) < 180)
    assert means.shape == (bootstrap.RESAMPLES,)
    assert means.mean() == pytest.approx(0.6, abs=0.003)
    assert means.std() == pytest.approx((0.6 * 0.4 / 300) ** 0.5, rel=0.06)


def test_the_interval_is_where_the_percentiles_are():
    assert interval(np.arange(1001) / 1000) == pytest.approx((0.025, 0.975))
    assert interval(np.arange(1001) / 1000, confidence=0.5) == pytest.approx((0.25, 0.75))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """200 experiments of 80 normal values each: about 95 % of the intervals hold the mean (0)."""
    random = np.random.default_rng(3)
    values = random.normal(size=(200, 80))
    resampled = Resampler(80, resamples=400).means(values)
    covered = sum(low <= 0 <= high for low, high in (interval(column) for column in resampled.T))
    assert 180 <= covered <= 198


def test_the_same_images_are_drawn_for_every_figure_and_call():
    """So that the difference of two ways which differ on one image alone is known much better than either."""
    right = np.random.default_rng(0).random(400) < 0.7
    other = right.copy()
    other[0] = ~other[0]
    resampler = Resampler(400)
    together = resampler.means(np.stack([right, other]))
    assert np.array_equal(resampler.means(right), together[:, 0])
    low, high = interval(together[:, 1] - together[:, 0])
    assert high - low <= 4 / 400
    low, high = interval(together[:, 0])
    assert high - low > 20 / 400


def test_another_seed_draws_other_images():
    values = np.arange(50.0)
    assert not np.array_equal(Resampler(50, seed=1).means(values), Resampler(50, seed=2).means(values))


def test_many_images_are_drawn_in_blocks(monkeypatch):
    """Blocks of 3 of the 10 resamples: every one is a mean over as many images as there are."""
    monkeypatch.setattr(bootstrap, "_BLOCK_ENTRIES", 3 * 40)
    ones = Resampler(40, resamples=10).means(np.ones((2, 40)))
    assert ones.shape == (10, 2)
    assert np.allclose(ones, 1)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_all_images_are_equal_the_interval_is_a_point(value):
    assert interval(Resampler(30).means(np.full(30, value))) == (value, value)


def test_one_image():
    assert interval(Resampler(1).means(np.array([0.25]))) == (0.25, 0.25)
