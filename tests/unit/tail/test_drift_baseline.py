"""What is told of a frame, and what is learned of a camera's frames."""

from __future__ import annotations

import numpy as np
import pytest
from support.camera_profiles import DEVIATIONS, NUMBERS, USUAL, correlated, independent

from narrowcast.tail.drift.baseline import FLOOR, summarize
from narrowcast.tail.drift.profile import profiles

# Profiles


def test_a_profile_is_what_its_docstring_says():
    symbols = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 6)).astype(np.uint8)
    found = profiles(symbols, [15, 30, 0])
    assert found.shape == (3, NUMBERS)
    assert np.allclose(found[:, 0], np.log2([1.0, 2.0, 8 / 120]))
    deviations = symbols.reshape(3, 5, -1).std(2).mean(1)
    assert np.allclose(found[:, 1], np.log2(deviations + 1 / 64), atol=1e-4)
    means = symbols.reshape(3, 5, -1).mean(2)
    one = profiles(np.repeat(np.eye(5, dtype=np.uint8)[:, :, None, None], 2, 2), [1] * 5)[:, 2:]  # a channel at a time
    assert np.allclose(np.abs(one), 1 / np.sqrt(5))
    assert np.allclose(means @ one, found[:, 2:])


def test_profiles_are_the_same_everywhere():
    """They are compared with baselines that another process, or release, has learned."""
    symbols = (np.arange(2 * 3 * 2 * 2) * 7 % 50).astype(np.uint8).reshape(2, 3, 2, 2)
    root = 1 / np.sqrt(3)
    signs = np.sign(profiles(np.eye(3, dtype=np.uint8)[:, :, None, None], [1] * 3)[:, 2:]).astype(int).tolist()
    assert signs == SIGNS
    assert np.allclose(profiles(symbols, [1, 1])[0, 2:], symbols[0].reshape(3, -1).mean(1) @ (np.array(SIGNS) * root))


SIGNS = [[-1, 1, 1, -1, -1, 1], [-1, -1, -1, -1, 1, -1], [-1, 1, -1, -1, -1, -1]]


@pytest.mark.parametrize("value", [0, 255])
def test_a_frame_of_one_colour_has_a_profile(value):
    found = profiles(np.full((1, 64, 14, 14), value, np.uint8), [1])
    assert np.isfinite(found).all()
    assert found[0, 1] == -6


# Baselines


def test_the_long_run_deviation_of_correlated_frames():
    """Of an autoregressive process it is known: sqrt((1 + keep) / (1 - keep)) deviations."""
    learned = summarize(correlated(20_000, 3, 0.9))
    assert np.allclose(learned.deviation[:NUMBERS] / DEVIATIONS, 1, atol=0.15)
    assert np.allclose(learned.long_run / learned.deviation, np.sqrt(19), rtol=0.3)
    loose = summarize(independent(20_000, 3))
    assert np.allclose(loose.long_run[:NUMBERS] / DEVIATIONS, 1, rtol=0.2)
    assert np.allclose(loose.long_run / loose.deviation, 1, rtol=0.2)


def test_a_few_odd_frames_do_not_lead_a_baseline_astray():
    frames = independent(1000, 4)
    honest = summarize(frames)
    frames[::100] += 50 * DEVIATIONS
    odd = summarize(frames)
    assert np.all(np.abs(odd.mean - honest.mean)[:NUMBERS] < 0.15 * DEVIATIONS)
    assert np.all(odd.deviation[:NUMBERS] < 1.6 * honest.deviation[:NUMBERS])


def test_relations_are_uncorrelated_and_the_first_is_what_hardly_changes():
    """Two numbers that rise and fall together: their difference is the first relation."""
    frames = independent(2000, 5)
    frames[:, 1] = frames[:, 0] + 0.01 * np.random.default_rng(1).normal(size=2000)
    learned = summarize(frames)
    assert np.allclose(np.abs(learned.relations).sum(0), 1)
    first = learned.relations[:, 0]
    assert np.allclose(np.abs(first[:2]), 0.5, atol=0.02)
    assert first[0] * first[1] < 0
    both = np.corrcoef((frames @ learned.relations).T)
    assert np.allclose(both, np.eye(NUMBERS), atol=0.1)
    assert learned.deviation[NUMBERS] == pytest.approx(0.005, rel=0.2)


def test_frames_that_never_differ_have_a_baseline_with_a_floor():
    learned = summarize(np.tile(USUAL, (500, 1)))
    assert np.all(learned.deviation >= FLOOR)
    assert np.all(learned.long_run >= FLOOR)
