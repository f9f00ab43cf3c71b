"""Profiles of made-up cameras, as the drift detector is told them (``narrowcast.tail.drift.profile``)."""

from __future__ import annotations

import numpy as np

from narrowcast.tail.drift.profile import MIXES, NAMES

NUMBERS = len(NAMES)
USUAL = np.array([11.0, 0.3, *[0.0] * MIXES])
DEVIATIONS = np.array([0.15, 0.12, *[0.3] * MIXES])
SCENES = np.random.default_rng(70).normal(size=(3, NUMBERS))  # far apart, in deviations within them


def independent(count: int, seed: int, shift=0.0) -> np.ndarray:
    """Profiles of frames that have nothing to do with each other; ``shift`` is in deviations, for all or each number."""
    return USUAL + DEVIATIONS * (np.random.default_rng(seed).normal(size=(count, NUMBERS)) + shift)


def correlated(count: int, seed: int, keep: float, shift: float = 0.0) -> np.ndarray:
    """An autoregressive camera."""
    noise = np.random.default_rng(seed).normal(size=(count, NUMBERS)) * np.sqrt(1 - keep**2)
    values = np.empty_like(noise)
    now = np.zeros(NUMBERS)
    for k, one in enumerate(noise):
        now = keep * now + one
        values[k] = now
    return USUAL + DEVIATIONS * (values + shift)


def patrol(count: int, seed: int, shift=0.0) -> np.ndarray:
    """Jumps between three scenes every 20 frames; within each, a tenth of what is between them."""
    rng = np.random.default_rng(seed)
    jumps = np.where(rng.random(count) < 1 / 20, rng.integers(1, 3, count), 0)
    within = rng.normal(size=(count, NUMBERS)) / 10
    return USUAL + DEVIATIONS * (2 * SCENES[np.cumsum(jumps) % 3] + within + shift)
