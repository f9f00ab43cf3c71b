"""Frames of a video: memories, predicted frames in both kernels, the tables' format, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.contexts import HAS_C, KERNELS, any_tables, make

from narrowcast.transport.codec import CodecSpec
from narrowcast.transport.coder import Coder
from narrowcast.transport.errors import PayloadError, SymbolsError, TablesError
from narrowcast.transport.video import Memory, VideoCodec, VideoTables, change_between, memory_of_key, remembered


def video(contexts=None, seed: int = 0) -> VideoTables:
    """Tables with weights that were drawn, extreme ones among them."""
    contexts = contexts or make(seed=seed)
    random = np.random.default_rng(seed)
    size = [300, 4000, 32767][seed % 3]
    weights = random.integers(-size, size + 1, (contexts.levels, contexts.channels, 5)).astype(np.int16)
    return VideoTables(np.arange(contexts.levels).astype(np.uint32) * 9, weights, contexts)


def spec_of(tables: VideoTables, shape: tuple[int, int], step: tuple[int, int] | None = None) -> CodecSpec:
    contexts = tables.contexts
    more = {} if step is None else {"step": step}
    return CodecSpec(
        name="rans-context", shape=(contexts.channels, *shape), alphabet=contexts.alphabet, levels=contexts.levels,
        quantizer="ab" * 32, **more,
    )  # fmt: skip


@given(any_tables(), st.integers(1, 7), st.integers(1, 9), st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_any_symbols_by_any_reference_round_trip_and_both_kernels_give_the_same_bytes(contexts, height, width, seed):
    tables, random = video(contexts, seed), np.random.default_rng(seed)
    frames = int(random.integers(1, 3))
    shape = (contexts.channels, height, width)
    symbols = random.integers(0, contexts.alphabet, (frames, *shape)).astype(np.uint8)
    memory = random.integers(-4080, 4081, (frames, *shape)).astype(np.int16)
    levels = random.integers(0, contexts.levels, frames).tolist()
    kernels = ["python", "c"] if HAS_C else ["python"]
    coders = [Coder(contexts, kernel, memory_weights=tables.memory_weights) for kernel in kernels]
    payloads = [coder.encode_batch(symbols, levels, memory) for coder in coders]
    assert all(p == payloads[0] for p in payloads)
    for coder in coders:
        decoded, errors = coder.decode_batch(payloads[0], levels, shape, memory)
        assert errors == [None] * frames
        assert np.array_equal(decoded, symbols)


@pytest.mark.parametrize("kernel", KERNELS)
@given(st.binary(max_size=120), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_any_bytes_give_symbols_or_an_error(kernel, data, seed):
    tables = video(make(seed=seed, lanes=[1, 2, 4][seed % 3]), seed)
    coder = Coder(tables.contexts, kernel, memory_weights=tables.memory_weights)
    memory = np.random.default_rng(seed).integers(-4080, 4081, (1, 3, 3, 4)).astype(np.int16)
    symbols, (error,) = coder.decode_batch([data], [0], (3, 3, 4), memory)
    assert error is not None or coder.encode_batch(symbols, [0], memory) == [data]


def test_damaged_payloads_are_errors_in_all_kernels():
    tables = video(seed=1)
    random = np.random.default_rng(0)
    symbols = random.integers(0, 40, (3, 6, 7)).astype(np.uint8)
    memory = memory_of_key(symbols, 11).values
    kernels = ["python", "c"] if HAS_C else ["python"]
    coders = [Coder(tables.contexts, kernel, memory_weights=tables.memory_weights) for kernel in kernels]
    (payload,) = coders[0].encode_batch(symbols[None], [1], memory[None])
    bent = [payload[:k] for k in range(0, len(payload), 5)] + [payload + b"\0\0"]
    found = [
        coder.decode_batch(bent, [1] * len(bent), symbols.shape, np.stack([memory] * len(bent)))[1] for coder in coders
    ]
    assert all(isinstance(error, PayloadError) for errors in found for error in errors)
    other = (memory + 16 * random.integers(0, 3, memory.shape)).astype(np.int16)
    both = [coder.decode_batch([payload], [1], symbols.shape, other[None]) for coder in coders]
    assert len({str(error) for _, (error,) in both}) == 1  # by another reference: no crash, and no disagreement
    assert all(np.array_equal(decoded, both[0][0]) for decoded, (error,) in both if error is None)


@given(st.integers(1, 256), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_a_memory_is_always_within_what_symbols_can_be(alphabet, seed):
    random = np.random.default_rng(seed)
    zero = int(random.integers(alphabet))
    memory = memory_of_key(random.integers(0, alphabet, (2, 3, 4)).astype(np.uint8), zero)
    for age in range(9):
        assert memory.age == min(age, 6)
        assert memory.values.dtype == np.int16
        assert -16 * zero <= memory.values.min() <= memory.values.max() <= 16 * (alphabet - 1 - zero)
        memory = remembered(memory, random.integers(0, alphabet, (2, 3, 4)).astype(np.uint8), zero)


def test_memory_averages_noise_and_forgets_what_has_gone():
    memory = memory_of_key(np.full((1, 1, 1), 20, np.uint8), 10)
    assert memory == (np.full((1, 1, 1), 160), 0)
    seen = []
    for symbol in (21, 20, 21, 40, 40):
        memory = remembered(memory, np.full((1, 1, 1), symbol, np.uint8), 10)
        seen.append(int(memory.values[0, 0, 0]))
    assert seen == [168, 165, 168, 480, 480]  # 16 more halved, then by a third, a quarter; then something else is there


def test_change_is_that_of_the_place_where_most_has_changed():
    before = np.full((4, 6, 7), 9, np.uint8)
    assert change_between(before, before) == 0
    after = before.copy()
    after[:, 0, 0] = 12  # 4 channels by 3
    after[2, 1, 1] = 0
    after[0, 5, 6] = 11
    assert change_between(before, after) == change_between(after, before) == 4 * 3 + 9
    far = np.where(before == 9, 255, 0).astype(np.uint8)
    assert change_between(np.zeros_like(before), far) == 4 * 9 * 255


def test_chains_of_frames_save_bytes_where_little_changes():
    random = np.random.default_rng(3)
    tables = video()
    weights = np.zeros_like(tables.memory_weights)
    weights[..., 0] = 1 << 12
    places = tables.contexts.mean_bias.shape
    contexts = replace(
        tables.contexts, mean_weights=np.zeros((*places, 4), np.int16), mean_bias=np.zeros(places, np.int32),
        scale_weights=np.zeros((*places, 7), np.int16), scale_bias=np.zeros(places, np.int32),
    )  # fmt: skip
    spec = spec_of(tables, (5, 6))
    codec = VideoCodec(spec, VideoTables(tables.unchanged, weights, contexts).to_bytes())
    still = random.integers(0, 40, spec.shape).astype(np.uint8)
    here = there = codec.memory(still, None)
    for _ in range(4):
        frame = np.clip(still + (random.random(spec.shape) < 0.05), 0, 39).astype(np.uint8)
        payload = codec.encode(frame, 1, here)
        decoded, errors = codec.decode_batch([payload], [1], [there])
        assert errors == [None]
        assert np.array_equal(decoded[0], frame)
        here, there = codec.memory(frame, here), codec.memory(decoded[0], there)
        assert np.array_equal(here.values, there.values)
    assert codec.frame_bytes == 3 * still.size
    assert codec.is_unchanged(still, still, 0)
    changed = still.copy()
    changed[0, 0, 0] ^= 1
    assert not codec.is_unchanged(still, changed, 0)
    assert codec.is_unchanged(still, changed, 1)


def test_frames_of_free_size_say_theirs_and_must_be_their_references():
    tables = video()
    codec = VideoCodec(spec_of(tables, (6, 8), (2, 4)), tables.to_bytes())
    small, wide = np.full((3, 2, 4), 12, np.uint8), np.full((3, 2, 8), 12, np.uint8)
    payload = codec.encode(small, 0, codec.memory(small, None))
    assert payload[:2] == codec.skip_payload(small.shape) == b"\1\1"
    assert codec.decode_batch([payload], [0], [codec.memory(small, None)])[1] == [None]
    _, (error,) = codec.decode_batch([payload], [0], [codec.memory(wide, None)])
    assert "another size than its reference" in str(error)
    with pytest.raises(SymbolsError, match=r"symbols \[3, 2, 4\] by a reference of \[3, 2, 8\]"):
        codec.encode(small, 0, codec.memory(wide, None))
    with pytest.raises(SymbolsError, match="references of several shapes"):
        codec.decode_batch([payload] * 2, [0, 0], [codec.memory(small, None), codec.memory(wide, None)])


def test_tables_round_trip_and_damaged_ones_are_refused():
    tables = video(seed=2)
    data = tables.to_bytes()
    again = VideoTables.from_bytes(data)
    assert again.to_bytes() == data
    assert again.fingerprint() == tables.fingerprint()
    start = 16 + 4 * 2 + 10 * 2 * 3
    for end in [*range(0, start, 7), start, len(data) - 1]:
        with pytest.raises(TablesError):
            VideoTables.from_bytes(data[:end])
    with pytest.raises(TablesError, match="not video tables of version 1"):
        VideoTables.from_bytes(b"NCVX" + data[4:])
    with pytest.raises(TablesError, match="too large, or for nothing"):
        VideoTables.from_bytes(data[:8] + b"\xff" * 4 + data[12:])
    other = VideoTables(tables.unchanged, tables.memory_weights, tables.contexts).to_bytes()[:start]
    with pytest.raises(TablesError, match="hold context tables for"):
        VideoTables.from_bytes(other + make(channels=4).to_bytes())
    with pytest.raises(TablesError, match="memory weights are int16"):
        VideoTables(tables.unchanged, tables.memory_weights[:1], tables.contexts)
    with pytest.raises(TablesError, match="limits of change are uint32"):
        VideoTables(tables.unchanged[:1], tables.memory_weights, tables.contexts)
    with pytest.raises(TablesError, match="the codec has"):
        VideoCodec(CodecSpec("rans", (3, 2, 2), 41, 2, "ab" * 32), data)


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        (None, "go by the memories"),
        (np.zeros((1, 3, 2, 2), np.int32), "memories are int16"),
        (np.zeros((1, 3, 2, 3), np.int16), "memories are int16"),
        (np.full((1, 3, 2, 2), -4081, np.int16), "beyond 4080"),
        (np.full((1, 3, 2, 2), -32768, np.int16), "beyond 4080"),
    ],
)
def test_what_is_no_memory_is_refused(memory, said):
    tables = video()
    coder = Coder(tables.contexts, memory_weights=tables.memory_weights)
    symbols = np.full((1, 3, 2, 2), 12, np.uint8)
    with pytest.raises(SymbolsError, match=said):
        coder.encode_batch(symbols, [0], memory)
    with pytest.raises(SymbolsError, match=said):
        coder.decode_batch([b""], [0], (3, 2, 2), memory)
    with pytest.raises(SymbolsError, match="and no others"):
        Coder(tables.contexts).encode_batch(symbols, [0], Memory(np.zeros((1, 3, 2, 2), np.int16), 0).values)
