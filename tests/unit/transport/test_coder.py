"""The range coder: both kernels, the same bytes; close to the entropy; safe on any bytes."""

from __future__ import annotations

import shutil
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.compiler.tables import fit_tables, quantize
from narrowcast.transport.coder import Coder
from narrowcast.transport.coder.native import load
from narrowcast.transport.errors import PayloadError, SymbolsError
from narrowcast.transport.tables import Tables

HAS_C = load() is not None
KERNELS = ["python", pytest.param("c", marks=pytest.mark.skipif(not HAS_C, reason="the C kernel was not built"))]


def logistic(channels: int, alphabet: int, scale: float, levels: int = 1, seed: int = 0) -> np.ndarray:
    """Densities like a learned latent's: float64 [levels, channels, alphabet]."""
    random = np.random.default_rng(seed)
    scales = scale * random.uniform(0.5, 1.5, (levels, channels, 1))
    edges = np.clip(
        (np.arange(alphabet + 1) - alphabet / 2 - random.normal(0, 0.3, (levels, channels, 1))) / scales, -40, 40
    )
    density = np.diff(1 / (1 + np.exp(-edges)), axis=2) + 1e-12
    return density / density.sum(2, keepdims=True)


def draw(density: np.ndarray, count: int, seed: int = 1) -> np.ndarray:
    """Symbols uint8 [channels, count] from one level's density [channels, alphabet]."""
    random = np.random.default_rng(seed)
    return np.stack([random.choice(len(row), count, p=row) for row in density]).astype(np.uint8)


@st.composite
def any_tables(draw_):
    """Tables of every shape, rare and common symbols, escapes and none."""
    levels, channels, alphabet = draw_(st.integers(1, 3)), draw_(st.integers(1, 4)), draw_(st.integers(1, 256))
    precision = draw_(st.integers(8 if alphabet < 100 else 10, 12))
    lanes = draw_(st.sampled_from([1, 2, 4]))
    random = np.random.default_rng(draw_(st.integers(0, 2**32)))
    density = random.uniform(0, 1, (levels, channels, alphabet)) ** draw_(st.sampled_from([0, 1, 8, 60])) + 1e-30
    return fit_tables(density / density.sum(2, keepdims=True), None, precision=precision, lanes=lanes)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_an_install_beside_a_compiler_has_the_c_kernel():
    assert HAS_C


@given(any_tables(), st.integers(1, 37), st.integers(0, 2**32))
@settings(max_examples=120, deadline=None)
def test_every_symbol_round_trips_and_both_kernels_give_the_same_bytes(tables, per_channel, seed):
    random = np.random.default_rng(seed)
    frames = int(random.integers(1, 4))
    symbols = random.integers(0, tables.alphabet, (frames, tables.channels, per_channel)).astype(np.uint8)
    levels = random.integers(0, tables.levels, frames).tolist()
    coders = [Coder(tables, "python")] + ([Coder(tables, "c")] if HAS_C else [])
    payloads = [coder.encode_batch(symbols, levels) for coder in coders]
    assert all(p == payloads[0] for p in payloads)
    for coder in coders:
        decoded, errors = coder.decode_batch(payloads[0], levels, symbols.shape[1:])
        assert errors == [None] * frames
        assert np.array_equal(decoded, symbols)
        assert np.array_equal(coder.decode(payloads[0][0], levels[0], symbols.shape[1:]), symbols[0])
        assert coder.encode(symbols[0], levels[0]) == payloads[0][0]


@pytest.mark.parametrize("lanes", [1, 2, 4])
@pytest.mark.parametrize("scale", [0.12, 0.4, 1.5, 9.0])
def test_size_is_the_cross_entropy_under_the_tables(scale, lanes):
    density = logistic(24, 256, scale)
    tables = fit_tables(density, None, lanes=lanes)
    symbols = draw(density[0], 3025)
    ideal = np.take_along_axis(tables.bits()[0], symbols.astype(int), 1).sum() / 8
    size = len(Coder(tables).encode(symbols.reshape(24, 55, 55), 0))
    assert ideal > 1000
    assert size <= ideal * 1.001 + 16
    assert size >= ideal - 1


@pytest.mark.parametrize("scale", [0.08, 0.12, 0.2, 0.4, 1.5, 9.0])
def test_tables_cost_at_most_half_a_percent_over_the_unquantized_density(scale):
    """Coarse tables cannot hide behind a coder that is tight to them."""
    density = logistic(48, 256, scale, levels=2)
    tables = fit_tables(density, None)
    entropy = -(density * np.log2(density)).sum()
    assert (density * tables.bits()).sum() <= 1.005 * entropy
    symbols = draw(density[0], 2000)
    under_density = -np.log2(np.take_along_axis(density[0], symbols.astype(int), 1)).sum()
    under_tables = np.take_along_axis(tables.bits()[0], symbols.astype(int), 1).sum()
    assert under_tables <= 1.005 * under_density


@pytest.mark.skipif(sys.platform != "linux", reason="constriction has wheels for x86-64 Linux only")
@pytest.mark.parametrize("scale", [0.2, 0.8, 4.0])
def test_constriction_is_no_better(scale):
    """The oracle: the best range coder there is, with the very same tables as its probabilities."""
    constriction = pytest.importorskip(
        "constriction", reason="constriction is not installed (no wheel for this machine)"
    )
    density = logistic(24, 64, scale)
    tables = fit_tables(density, None)
    symbols = draw(density[0], 3025)
    ours = len(Coder(tables).encode(symbols, 0))
    encoder = constriction.stream.queue.RangeEncoder()
    for row, bits in zip(symbols, tables.bits()[0], strict=True):
        probabilities = 2.0**-bits
        model = constriction.stream.model.Categorical(probabilities / probabilities.sum(), perfect=True)
        encoder.encode(row.astype(np.int32), model)
    theirs = encoder.get_compressed().nbytes
    assert ours <= theirs * 1.001 + 16


@pytest.mark.parametrize("kernel", KERNELS)
@given(st.binary(max_size=200), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_any_bytes_give_symbols_or_an_error(kernel, data, seed):
    tables = fit_tables(logistic(3, 32, 1.0, seed=seed % 7), None, lanes=[1, 2, 4][seed % 3])
    coder = Coder(tables, kernel)
    try:
        symbols = coder.decode(data, 0, (3, 5, 5))
    except PayloadError:
        return
    assert symbols.max() < 32
    assert coder.encode(symbols, 0) == data


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_damaged_payloads_never_crash_and_both_kernels_agree(kernel, lanes):
    density = logistic(4, 256, 0.5)
    tables = fit_tables(density, None, lanes=lanes)
    coder, reference = Coder(tables, kernel), Coder(tables, "python")
    symbols = draw(density[0], 49)
    symbols[0, :4] = [0, 255, 3, 250]  # escapes
    payload = coder.encode(symbols, 0)
    random = np.random.default_rng(0)
    bent = [payload[:k] for k in range(len(payload))] + [payload + b"\0\0", payload + b"\1"]
    for _ in range(300):
        copy = bytearray(payload)
        copy[random.integers(len(copy))] ^= 1 << random.integers(8)
        bent.append(bytes(copy))
    _, errors = coder.decode_batch(bent, [0] * len(bent), symbols.shape)
    _, expected = reference.decode_batch(bent, [0] * len(bent), symbols.shape)
    assert all(isinstance(error, PayloadError) for error in errors[: len(payload) + 2])
    assert [str(e) for e in errors[: len(payload)]] == [str(e) for e in expected[: len(payload)]]
    assert [error is None for error in errors] == [error is None for error in expected]


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_bad_frame_leaves_the_others_alone(kernel):
    density = logistic(2, 16, 1.0)
    coder = Coder(fit_tables(density, None), kernel)
    symbols = draw(density[0], 30).reshape(2, 5, 6)
    good = coder.encode(symbols, 0)
    decoded, errors = coder.decode_batch([good, b"nonsense" * 3, good], [0, 0, 0], symbols.shape)
    assert [error is None for error in errors] == [True, False, True]
    assert np.array_equal(decoded[0], symbols)
    assert np.array_equal(decoded[2], symbols)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("symbols", "level", "said"),
    [
        (np.full((2, 9), 16, np.uint8), 0, "symbol 16 is outside the alphabet 0..15"),
        (np.zeros((2, 9), np.int32), 0, "symbols are uint8"),
        (np.zeros((3, 9), np.uint8), 0, "shape"),
        (np.zeros((2, 9), np.uint8), 1, "level 1"),
        (np.zeros((2, 9), np.uint8), -1, "level -1"),
        ([[1, 2]], 0, "symbols are uint8"),
    ],
)
def test_symbols_that_do_not_fit_are_refused(kernel, symbols, level, said):
    coder = Coder(fit_tables(logistic(2, 16, 1.0), None), kernel)
    with pytest.raises(SymbolsError, match=said):
        coder.encode(symbols, level)


@pytest.mark.parametrize("kernel", KERNELS)
def test_empty_batches(kernel):
    coder = Coder(fit_tables(logistic(2, 16, 1.0), None), kernel)
    assert coder.encode_batch(np.zeros((0, 2, 4), np.uint8), []) == []
    assert coder.decode_batch([], [], (2, 4))[0].shape == (0, 2, 4)


def test_a_table_of_one_symbol_costs_nothing():
    tables = Tables(12, 1, np.full((1, 1, 1), 1 << 12, np.uint16), np.zeros((1, 1), np.uint16))
    for kernel in ["python"] + ["c"] * HAS_C:
        payload = Coder(tables, kernel).encode(np.zeros((1, 1000), np.uint8), 0)
        assert len(payload) == 4
        assert Coder(tables, kernel).decode(payload, 0, (1, 1000)).max() == 0


def test_quantize_gives_every_slot_away():
    for probability in ([1.0, 0, 0], [0.5, 0.5], [1e-9, 1 - 1e-9], [1 / 3] * 3, [0.0] * 255 + [1.0]):
        frequencies, escape = quantize(np.array(probability), 12)
        assert int(frequencies.sum()) + escape == 1 << 12
        assert (escape > 0) == (frequencies == 0).any()


@pytest.mark.skipif(not HAS_C, reason="the C kernel was not built")
def test_the_gil_is_released():
    """While one thread decodes in C, another runs Python."""
    density = logistic(24, 64, 2.0)
    coder = Coder(fit_tables(density, None))
    symbols = np.stack([draw(density[0], 3025)] * 60)
    payloads = coder.encode_batch(symbols, [0] * 60)
    done = threading.Event()

    def decode() -> None:
        for _ in range(10):
            coder.decode_batch(payloads, [0] * 60, symbols.shape[1:])
        done.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # nobody is made to give the GIL up: only a C call that releases it lets us run
    try:
        thread = threading.Thread(target=decode)
        thread.start()
        turns = 0
        while not done.is_set():
            time.sleep(0)
            turns += 1
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert turns > 20
