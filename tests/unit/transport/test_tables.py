"""Coding tables: the byte format and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from narrowcast.transport.errors import TablesError
from narrowcast.transport.tables import Tables


def tables(precision: int = 8, lanes: int = 2) -> Tables:
    """Two levels, one channel, four symbols; the last two are escaped at level 1."""
    total = 1 << precision
    frequencies = np.array([[[total - 3, 1, 1, 1]], [[total - 9, 4, 0, 0]]], np.uint16)
    return Tables(precision, lanes, frequencies, np.array([[0], [5]], np.uint16))


def test_bytes_are_as_the_format_says():
    data = tables().to_bytes()
    assert data[:16] == b"NCTB" + bytes([1, 8, 2, 0]) + (4).to_bytes(2, "little") + (2).to_bytes(2, "little") + bytes(
        [1, 0, 0, 0]
    )
    assert data[16:24] == np.array([253, 1, 1, 1], "<u2").tobytes()
    assert data[32:] == np.array([0, 5], "<u2").tobytes()
    back = Tables.from_bytes(data)
    assert (back.precision, back.lanes, back.levels, back.channels, back.alphabet) == (8, 2, 2, 1, 4)
    assert back.to_bytes() == data


def test_bits_are_what_the_coder_spends():
    bits = tables().bits()
    assert np.allclose(bits[0, 0], -np.log2(np.array([253, 1, 1, 1]) / 256))
    assert np.allclose(bits[1, 0], [-np.log2(247 / 256), 6, -np.log2(5 / 256) + 1, -np.log2(5 / 256) + 1])


def test_every_truncation_extension_and_flip_is_refused_or_gives_valid_tables():
    data = tables().to_bytes()
    for end in range(len(data)):
        with pytest.raises(TablesError):
            Tables.from_bytes(data[:end])
    with pytest.raises(TablesError, match="asks for"):
        Tables.from_bytes(data + b"\0")
    for position in range(len(data) * 8):
        bent = bytearray(data)
        bent[position // 8] ^= 1 << position % 8
        try:
            found = Tables.from_bytes(bytes(bent))
        except TablesError:
            continue
        assert ((found.frequencies.sum(2) + found.escapes) == 1 << found.precision).all()


@pytest.mark.parametrize(
    ("frequencies", "escapes", "said"),
    [
        ([[[100, 100]]], [[0]], "sums to 200"),
        ([[[256, 0]]], [[0]], "lacks one"),
        ([[[128, 100]]], [[28]], "escape where no symbol"),
        ([[[256]], [[256]]], [[0]], "do not go with"),
    ],
)
def test_tables_that_cannot_code_are_refused(frequencies, escapes, said):
    with pytest.raises(TablesError, match=said):
        Tables(8, 1, np.array(frequencies, np.uint16), np.array(escapes, np.uint16))


@pytest.mark.parametrize(("precision", "lanes"), [(7, 1), (13, 1), (8, 3), (8, 0)])
def test_precision_and_lanes_have_limits(precision, lanes):
    with pytest.raises(TablesError, match="precision lies in"):
        Tables(precision, lanes, np.array([[[1 << 8]]], np.uint16), np.array([[0]], np.uint16))


def test_a_few_bytes_do_not_ask_for_all_memory():
    """16 x 4,096 tables of one symbol pack into next to nothing."""
    frequencies = np.full((16, 4096, 1), 1 << 12, np.uint16)
    with pytest.raises(TablesError, match="slots are too large"):
        Tables(12, 1, frequencies, np.zeros((16, 4096), np.uint16))


def test_other_types_are_refused():
    with pytest.raises(TablesError, match="uint16"):
        Tables(8, 1, np.array([[[256]]]), np.array([[0]]))
