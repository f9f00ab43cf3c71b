"""Context tables: the format, what it refuses, and the coder in both kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.contexts import HAS_C, KERNELS, any_tables, bank, make

from narrowcast.compiler.contexts import context_bits, fit_contexts
from narrowcast.compiler.tables import fit_tables
from narrowcast.transport.coder import Coder
from narrowcast.transport.contexts import MAX_BIAS, ContextTables
from narrowcast.transport.errors import PayloadError, SymbolsError, TablesError


@given(any_tables(), st.integers(1, 7), st.integers(1, 9), st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_every_symbol_round_trips_and_both_kernels_give_the_same_bytes(tables, height, width, seed):
    random = np.random.default_rng(seed)
    frames = int(random.integers(1, 3))
    shape = (tables.channels, height, width)
    symbols = random.integers(0, tables.alphabet, (frames, *shape)).astype(np.uint8)
    levels = random.integers(0, tables.levels, frames).tolist()
    coders = [Coder(tables, "python")] + ([Coder(tables, "c")] if HAS_C else [])
    payloads = [coder.encode_batch(symbols, levels) for coder in coders]
    assert all(p == payloads[0] for p in payloads)
    for coder in coders:
        decoded, errors = coder.decode_batch(payloads[0], levels, shape)
        assert errors == [None] * frames
        assert np.array_equal(decoded, symbols)


def latents(frames: int, seed: int = 0) -> np.ndarray:
    """Smooth, sparse planes like a learned latent's: uint8 [2, frames, 4, 12, 13]; level 1 is finer."""
    random = np.random.default_rng(seed)
    rough = random.laplace(0, 1, (frames, 4, 14, 15))
    smooth = sum(rough[..., y : y + 12, x : x + 13] for y in range(3) for x in range(3)) / 3
    busy = random.uniform(0.2, 2.5, (frames, 1, 1, 1)) * np.array([3.0, 2.0, 1.0, 0.4])[:, None, None]
    return np.stack([np.clip(np.rint(smooth * busy * gain + 30), 0, 63) for gain in (1, 3)]).astype(np.uint8)


def test_contexts_save_bytes_over_a_table_per_channel():
    seen, unseen = latents(150), latents(40, seed=1)
    counts = np.stack([[np.bincount(seen[level, :, c].ravel(), minlength=64) for c in range(4)] for level in range(2)])
    plain, contexts = Coder(fit_tables(None, counts, lanes=1)), Coder(fit_contexts(seen, 64, lanes=1))
    for level in range(2):
        before, after = (sum(map(len, coder.encode_batch(unseen[level], [level] * 40))) for coder in (plain, contexts))
        assert after < 0.9 * before


def test_size_is_the_cross_entropy_under_the_tables():
    seen, unseen = latents(100), latents(30, seed=1)
    for lanes in (1, 2, 4):
        tables = fit_contexts(seen, 64, lanes=lanes)
        for level in range(2):
            ideal = context_bits(unseen[level], tables, level) / 8
            size = sum(map(len, Coder(tables).encode_batch(unseen[level], [level] * 30)))
            assert ideal - 30 <= size <= 1.001 * ideal + 30 * 16


def test_fitting_is_the_same_every_time_and_bears_constant_symbols():
    seen = latents(30)
    assert fit_contexts(seen, 64).to_bytes() == fit_contexts(seen.copy(), 64).to_bytes()
    still = np.full((1, 3, 2, 4, 4), 7, np.uint8)
    tables = fit_contexts(still, 16, lanes=1)
    assert len(Coder(tables).encode(still[0, 0], 0)) <= 12
    odd = still[0, 0].copy()
    odd[1, 2, 2] = 15
    assert np.array_equal(Coder(tables).decode(Coder(tables).encode(odd, 0), 0, odd.shape), odd)


@pytest.mark.parametrize("kernel", KERNELS)
@given(st.binary(max_size=120), st.integers(0, 2**32))
@settings(max_examples=80, deadline=None)
def test_any_bytes_give_symbols_or_an_error(kernel, data, seed):
    tables = make(seed=seed, lanes=[1, 2, 4][seed % 3])
    coder = Coder(tables, kernel)
    try:
        symbols = coder.decode(data, 0, (3, 3, 4))
    except PayloadError:
        return
    assert symbols.max() < 40
    assert coder.encode(symbols, 0) == data


def test_damaged_payloads_never_crash_and_all_kernels_agree():
    tables = fit_contexts(latents(20), 64)
    symbols = latents(1, seed=2)[1, 0][:, ::2]
    payload = Coder(tables).encode(symbols, 1)
    random = np.random.default_rng(0)
    bent = [payload[:k] for k in range(0, len(payload), 3)] + [payload + b"\0\0", payload + b"\1"]
    for _ in range(60):
        copy = bytearray(payload)
        copy[random.integers(len(copy))] ^= 1 << random.integers(8)
        bent.append(bytes(copy))
    levels, cut = [1] * len(bent), len(bent) - 60
    kernels = ["python", "c"] if HAS_C else ["python"]
    found = [Coder(tables, kernel).decode_batch(bent, levels, symbols.shape) for kernel in kernels]
    for decoded, errors in found:
        assert all(isinstance(error, PayloadError) for error in errors[:cut])
        assert [error is None for error in errors] == [error is None for error in found[0][1]]
        sound = [row for row, error in enumerate(errors) if error is None]
        assert np.array_equal(decoded[sound], found[0][0][sound])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("symbols", "level", "said"),
    [
        (np.full((3, 3, 3), 40, np.uint8), 0, "symbol 40 is outside the alphabet 0..39"),
        (np.zeros((3, 9), np.uint8), 0, "shape"),
        (np.zeros((2, 3, 3), np.uint8), 0, "shape"),
        (np.zeros((3, 3, 3), np.uint8), 2, "level 2"),
    ],
)
def test_symbols_that_do_not_fit_are_refused(kernel, symbols, level, said):
    with pytest.raises(SymbolsError, match=said):
        Coder(make(), kernel).encode(symbols, level)


def test_bytes_are_as_the_format_says():
    tables = make()
    data = tables.to_bytes()
    assert data[:16] == b"NCCX" + bytes([1, 11, 5, 0, 2, 0, 0, 0, 3, 0, 0, 0])
    assert data[16:24] == tables.mean_weights[0, 0].astype("<i2").tobytes()
    assert data[-len(tables.bank.to_bytes()) :] == tables.bank.to_bytes()
    assert ContextTables.from_bytes(data).to_bytes() == data


def test_every_truncation_and_flip_is_refused_or_gives_tables_that_code():
    data = make(levels=1, channels=2, alphabet=3, zero=1, classes=2).to_bytes()
    for end in range(len(data)):
        with pytest.raises(TablesError):
            ContextTables.from_bytes(data[:end])
    with pytest.raises(TablesError):
        ContextTables.from_bytes(data + b"\0")
    symbols = np.ones((2, 2, 2), np.uint8)
    for position in range(0, len(data) * 8, 5):
        bent = bytearray(data)
        bent[position // 8] ^= 1 << position % 8
        try:
            tables = ContextTables.from_bytes(bytes(bent))
        except TablesError:
            continue
        if tables.channels == 2:
            coder = Coder(tables)
            assert np.array_equal(coder.decode(coder.encode(symbols, 0), 0, symbols.shape), symbols)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"zero": 40}, "zero is 40"),
        ({"mean_bias": np.full((2, 3), MAX_BIAS + 1, np.int32)}, "a bias is larger"),
        ({"scale_bias": np.full((2, 3), -(2**31), np.int32)}, "a bias is larger"),
        ({"mean_weights": np.zeros((2, 3, 4), np.int32)}, r"mean_weights are int16 \[2, 3, 4\]"),
        ({"scale_weights": np.zeros((2, 3, 6), np.int16)}, r"scale_weights are int16 \[2, 3, 7\]"),
        ({"thresholds": np.array([5, 5, 6, 7], np.uint16)}, "thresholds ascend"),
        ({"thresholds": np.array([5, 6, 7, 1024], np.uint16)}, "thresholds ascend"),
        ({"thresholds": np.array([5, 6], np.uint16)}, "a bank of 1 x 20 tables for 3 classes"),
        ({"bank": bank(4, 40)}, "a bank of 1 x 16 tables for 5 classes"),
    ],
)
def test_tables_that_cannot_code_are_refused(change, said):
    with pytest.raises(TablesError, match=said):
        replace(make(), **change)
