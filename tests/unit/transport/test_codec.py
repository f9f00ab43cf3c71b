"""Codecs: whatever the bundle says, the same interface."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from support import bundles

from narrowcast.transport.codec import CodecSpec, open_codec
from narrowcast.transport.errors import ConfigError, PayloadError, SymbolsError, TablesError
from narrowcast.transport.packed import PackedTables
from narrowcast.transport.structs import from_mapping

ZSTD = CodecSpec(name="zstd", shape=(4, 6, 6), alphabet=100, levels=1, quantizer="1" * 64)


def frames(spec: CodecSpec, count: int = 5) -> np.ndarray:
    """Symbols with structure: uint8 [count, *shape]."""
    random = np.random.default_rng(0)
    return (
        random.integers(0, spec.alphabet, (count, *spec.shape)) * (random.uniform(size=(count, *spec.shape)) < 0.2)
    ).astype(np.uint8)


def dictionary() -> bytes:
    samples = [frame.tobytes() for frame in frames(ZSTD, 200)]
    return zstandard.train_dictionary(1024, samples).as_bytes()


PACKED = CodecSpec(name="packed", shape=(4, 6, 6), alphabet=100, levels=2, quantizer="1" * 64)


@pytest.fixture(params=["rans", "packed", "zstd", "zstd with a dictionary"])
def codec(request):
    """Each codec there is."""
    if request.param == "packed":
        return open_codec(PACKED, PackedTables(100, 4, (4, 4)).to_bytes())
    if request.param == "rans":
        return open_codec(bundles.spec(), bundles.tables())
    return open_codec(ZSTD, dictionary() if "dictionary" in request.param else b"")


def test_round_trip(codec):
    symbols = frames(codec.spec)
    levels = [k % codec.spec.levels for k in range(len(symbols))]
    payloads = [codec.encode(frame, level) for frame, level in zip(symbols, levels, strict=True)]
    decoded, errors = codec.decode_batch(payloads, levels)
    assert errors == [None] * len(symbols)
    assert np.array_equal(decoded, symbols)
    assert payloads[0] == codec.encode(symbols[0], levels[0])


def test_bad_payloads_are_errors_and_leave_the_others_alone(codec):
    symbols = frames(codec.spec, 1)[0]
    good = codec.encode(symbols, 0)
    bad = [b"", good[:-1], good[: len(good) // 2], bytes(50), b"\xff" * 200]
    decoded, errors = codec.decode_batch([*bad, good], [0] * (len(bad) + 1))
    assert all(isinstance(error, PayloadError) for error in errors[:-1])
    assert errors[-1] is None
    assert np.array_equal(decoded[-1], symbols)


def test_what_does_not_fit_is_refused(codec):
    good = frames(codec.spec, 1)[0]
    with pytest.raises(SymbolsError, match="level 9"):
        codec.encode(good, 9)
    with pytest.raises(SymbolsError, match="level 9"):
        codec.decode_batch([b""], [9])
    with pytest.raises(SymbolsError, match="symbols are uint8"):
        codec.encode(good[:1], 0)
    with pytest.raises(SymbolsError, match="symbols are uint8"):
        codec.encode(good.astype(np.int64), 0)
    with pytest.raises(SymbolsError, match="outside the alphabet"):
        codec.encode(np.full_like(good, codec.spec.alphabet), 0)


def test_a_bomb_unpacks_to_no_more_than_a_frame():
    codec = open_codec(ZSTD, b"")
    bomb = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(
            format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=False, write_checksum=False
        )
    ).compress(bytes(200_000_000))
    assert len(bomb) < 20_000
    _, (error,) = codec.decode_batch([bomb], [0])
    assert "another size" in str(error)


@pytest.mark.parametrize("data", [b"", dictionary()], ids=["plain", "dictionary"])
def test_a_zstandard_payload_is_one_frame_and_nothing_behind_it(data):
    codec = open_codec(ZSTD, data)
    good = codec.encode(frames(ZSTD, 1)[0], 0)
    _, errors = codec.decode_batch(
        [good + bytes(1), good + b"x", good + bytes(5), good + good, good[:-1], good], [0] * 6
    )
    assert all(isinstance(error, PayloadError) for error in errors[:-1])
    assert "has 1 bytes behind its frame" in str(errors[0])
    assert errors[-1] is None


def test_a_zstandard_frame_without_its_end_is_none():
    """All symbols are there, but the last block, which is empty, is not."""
    codec = open_codec(ZSTD, b"")
    compressor = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    ).compressobj()
    part = compressor.compress(bytes(144)) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    _, (short, whole) = codec.decode_batch([part, part + compressor.flush()], [0, 0])
    assert "ends within its frame" in str(short)
    assert whole is None


def test_symbols_outside_the_alphabet_do_not_come_out():
    wide = open_codec(CodecSpec(name="zstd", shape=ZSTD.shape, alphabet=256, levels=1, quantizer="1" * 64), b"")
    _, (error,) = open_codec(ZSTD, b"").decode_batch([wide.encode(np.full(ZSTD.shape, 200, np.uint8), 0)], [0])
    assert "symbol 200" in str(error)


def test_the_fingerprint_names_tables_quantizer_and_layout():
    spec, data = bundles.spec(), bundles.tables()
    seen = {spec.fingerprint(data)}
    for change in ({"shape": (3, 4, 16)}, {"levels": 1}, {"alphabet": 15}, {"quantizer": "2" * 64}, {"name": "zstd"}):
        fields = {"name": spec.name, "shape": spec.shape, "alphabet": 16, "levels": 2, "quantizer": spec.quantizer}
        seen.add(CodecSpec(**{**fields, **change}).fingerprint(data))
    seen.add(spec.fingerprint(data[:-1]))
    assert len(seen) == 7
    assert all(len(fingerprint) == 16 for fingerprint in seen)


def test_tables_of_another_shape_are_refused():
    with pytest.raises(TablesError, match="the codec has"):
        open_codec(CodecSpec(name="rans", shape=(4, 8, 8), alphabet=16, levels=2, quantizer="0" * 64), bundles.tables())
    with pytest.raises(TablesError, match="the codec has"):
        open_codec(PACKED, PackedTables(100, 5, (4, 4)).to_bytes())
    large = CodecSpec(name="packed", shape=(300, 256, 256), alphabet=256, levels=1, quantizer="0" * 64)
    with pytest.raises(TablesError, match="a payload has"):
        open_codec(large, PackedTables(256, 300, (300,)).to_bytes())


@pytest.mark.parametrize(
    "change",
    [
        {"alphabet": 257},
        {"alphabet": 0},
        {"levels": 300},
        {"shape": [1, 0, 1]},
        {"shape": [9999, 9999, 9]},
        {"quantizer": "x"},
    ],
)
def test_specs_have_limits(change):
    fields = {"name": "zstd", "shape": [1, 2, 3], "alphabet": 4, "levels": 1, "quantizer": "0" * 64}
    with pytest.raises(ConfigError):
        from_mapping(CodecSpec, {**fields, **change}, "manifest")
