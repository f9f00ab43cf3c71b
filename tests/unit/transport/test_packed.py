"""Packed symbols: one size whatever the image, and any other bytes are an error."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.transport.errors import PayloadError, SymbolsError, TablesError
from narrowcast.transport.packed import PackedTables, width_of

SHAPE = (5, 3, 7)
TABLES = PackedTables(20, 5, (1, 3, 5))


def frame(tables: PackedTables, level: int, shape=SHAPE, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).integers(0, tables.alphabet, shape).astype(np.uint8)
    found[tables.sent[level] :] = 0
    return found


@pytest.mark.parametrize(("alphabet", "width"), [(1, 1), (2, 1), (3, 2), (128, 7), (129, 8), (256, 8)])
def test_symbols_take_the_fewest_bits_that_hold_them(alphabet, width):
    assert width_of(alphabet) == width


@given(st.integers(1, 256), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.data())
@settings(max_examples=60, deadline=None)
def test_round_trip_and_size(alphabet, channels, height, width, data):
    sent = tuple(data.draw(st.lists(st.integers(1, channels), min_size=1, max_size=4)))
    tables = PackedTables.from_bytes(PackedTables(alphabet, channels, sent).to_bytes())
    shape = (channels, height, width)
    for level in range(len(sent)):
        symbols = frame(tables, level, shape, seed=data.draw(st.integers(0, 99)))
        payload = tables.pack(symbols, level)
        assert len(payload) == tables.payload_bytes(level, height * width)
        assert len(payload) == -(-sent[level] * height * width * width_of(alphabet) // 8)
        assert np.array_equal(tables.unpack(payload, level, shape), symbols)


def test_the_bits_lie_as_the_wire_format_says():
    """Symbol j in bits 5 j .. 5 j + 4, the lowest bit first."""
    symbols = frame(TABLES, 0)
    number = sum(int(symbol) << (5 * j) for j, symbol in enumerate(symbols[0].ravel()))
    assert TABLES.pack(symbols, 0) == number.to_bytes(14, "little")


@given(st.integers(0, 2), st.binary(max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_frame_that_packs_to_them_or_an_error(level, payload):
    try:
        symbols = TABLES.unpack(payload, level, SHAPE)
    except PayloadError:
        return
    assert TABLES.pack(symbols, level) == payload


@pytest.mark.parametrize("level", [0, 1, 2])
def test_bad_payloads(level):
    payload = TABLES.pack(frame(TABLES, level), level)
    for bad in (payload[:-1], payload + b"\0", b""):
        with pytest.raises(PayloadError, match=f"one of level {level} has {len(payload)}"):
            TABLES.unpack(bad, level, SHAPE)
    with pytest.raises(PayloadError, match="symbol 31, outside the alphabet"):
        TABLES.unpack(b"\x1f" + payload[1:], level, SHAPE)
    spare = 8 * len(payload) - 5 * TABLES.sent[level] * 21
    assert spare > 0
    for bit in range(8 - spare, 8):
        changed = payload[:-1] + bytes([payload[-1] | 1 << bit])
        with pytest.raises(PayloadError, match="behind its last symbol"):
            TABLES.unpack(changed, level, SHAPE)


def test_symbols_that_do_not_fit():
    symbols = frame(TABLES, 2)
    with pytest.raises(SymbolsError, match="level 1 sends 3 of 5"):
        TABLES.pack(symbols, 1)
    symbols[0, 0, 0] = 20
    with pytest.raises(SymbolsError, match="symbol 20 is outside"):
        TABLES.pack(symbols, 2)


def test_tables_that_cannot_be():
    for wrong in ((0, 5, (1,)), (257, 5, (1,)), (20, 0, (1,)), (20, 5, ()), (20, 5, (0,)), (20, 5, (6,))):
        with pytest.raises(TablesError):
            PackedTables(*wrong)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d[:10], "header of 16 bytes"),
        (lambda d: b"NCXX" + d[4:], "not tables of packed symbols"),
        (lambda d: d[:4] + b"\2" + d[5:], "not tables of packed symbols"),
        (lambda d: d[:10] + b"\1" + d[11:], "not tables of packed symbols"),
        (lambda d: d + b"\0", "3 levels in 29 bytes"),
        (lambda d: d[:-4], "3 levels in 24 bytes"),
        (lambda d: d[:5] + b"\4" + d[6:], "they take 5"),
        (lambda d: d[:-4] + struct.pack("<I", 6), "sends 6 channels"),
        (lambda d: d[:12] + struct.pack("<I", 1 << 31) + d[16:], "channels; at most"),
    ],
)
def test_bytes_that_are_no_tables(change, says):
    data = TABLES.to_bytes()
    assert PackedTables.from_bytes(data) == TABLES
    with pytest.raises(TablesError, match=says):
        PackedTables.from_bytes(change(data))
