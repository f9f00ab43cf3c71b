"""Context tables with weights that were drawn, for the coder's tests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st

from narrowcast.compiler.tables import fit_tables
from narrowcast.transport.coder.native import load
from narrowcast.transport.contexts import MAX_BIAS, ContextTables

HAS_C = load() is not None
KERNELS = ["python", pytest.param("c", marks=pytest.mark.skipif(not HAS_C, reason="the C kernel was not built"))]


def bank(classes: int, alphabet: int, lanes: int = 2, seed: int = 0, precision: int = 12):
    random = np.random.default_rng(seed)
    density = random.uniform(0, 1, (1, classes * 4, alphabet)) ** random.integers(0, 20) + 1e-30
    return fit_tables(density / density.sum(2, keepdims=True), None, lanes=lanes, precision=precision)


def make(levels=2, channels=3, alphabet=40, zero=11, classes=5, lanes=2, seed=0, precision=12) -> ContextTables:
    """Tables with weights that were drawn, extreme ones among them."""
    random = np.random.default_rng(seed)
    size = [300, 4000, 32767][seed % 3]
    places = (levels, channels)
    return ContextTables(
        zero,
        random.integers(-size, size + 1, (*places, 4)).astype(np.int16),
        random.integers(-MAX_BIAS, MAX_BIAS + 1, places).astype(np.int32),
        random.integers(-size, size + 1, (*places, 7)).astype(np.int16),
        random.integers(-MAX_BIAS // 64, MAX_BIAS // 4, places).astype(np.int32),
        np.sort(random.choice(1023, classes - 1, replace=False)).astype(np.uint16),
        bank(classes, alphabet, lanes, seed, precision),
    )


@st.composite
def any_tables(draw):
    alphabet = draw(st.integers(1, 256))
    return make(
        levels=draw(st.integers(1, 3)), channels=draw(st.integers(1, 4)), alphabet=alphabet,
        zero=draw(st.integers(0, alphabet - 1)), classes=draw(st.integers(1, 12)),
        lanes=draw(st.sampled_from([1, 2, 4])), seed=draw(st.integers(0, 2**32)), precision=draw(st.integers(10, 12)),
    )  # fmt: skip
