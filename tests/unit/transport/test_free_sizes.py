"""Frames that differ in size: the contract, the codec, the manifest."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import bundles

from narrowcast.compiler.contexts import fit_contexts
from narrowcast.transport.bundle.manifest import OutputSpec, parse_manifest
from narrowcast.transport.codec import CodecSpec, open_codec
from narrowcast.transport.contract import InputContract
from narrowcast.transport.errors import ConfigError, ManifestError, PayloadError, SymbolsError
from narrowcast.transport.packed import PackedTables
from narrowcast.transport.structs import from_mapping, to_json

CONTRACT = InputContract(size=(64, 64), fit="free", max_size=(128, 192), multiple_of=32, fill=(1, 2, 3))
SHAPE = (3, 8, 12)


@given(st.integers(1, 600), st.integers(1, 600))
@settings(max_examples=60, deadline=None)
def test_frames_keep_their_aspect_and_boxes_their_place(height, width):
    frame = np.full((height, width, 3), 200, np.uint8)
    image, place = CONTRACT.prepare(frame)
    assert image.shape == (*place.input, 3)
    assert all(side % 32 == 0 and 0 < side <= most for side, most in zip(place.input, (128, 192), strict=True))
    assert place.visible == place.resized
    if height <= 128 and width <= 192:
        assert place.resized == (height, width)
        assert np.array_equal(image[:height, :width], frame)
    assert np.array_equal(image[place.visible[0] :], np.broadcast_to(CONTRACT.fill, image[place.visible[0] :].shape))
    box = np.array([0.0, 0.0, width, height])
    inside = place.boxes_to_input(box)
    assert np.allclose(inside, [0, 0, place.resized[1], place.resized[0]])
    assert np.allclose(place.boxes_to_source(inside), box)


def test_a_mask_comes_back_pixel_for_pixel_where_nothing_was_scaled():
    frame = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    image, place = CONTRACT.prepare(frame)
    assert place.input == (64, 96)
    assert np.array_equal(place.mask_to_source(image, place.input), frame)
    assert (place.mask_to_input(frame, place.input, outside=7)[50:] == 7).all()


def test_training_sees_crops_at_the_frames_own_scale():
    large = np.random.default_rng(0).integers(0, 256, (128, 192, 3)).astype(np.uint8)
    crop = CONTRACT.training_view(large)
    assert np.array_equal(crop, CONTRACT.training_view(large))
    windows = np.lib.stride_tricks.sliding_window_view(large, (64, 64), axis=(0, 1))
    assert (windows == crop.transpose(2, 0, 1)).all((2, 3, 4)).sum() == 1
    other = CONTRACT.training_view(255 - large)
    assert not np.array_equal(255 - other, crop)
    small = CONTRACT.training_view(large[:10, :100])
    assert (small[32:] == CONTRACT.fill).all()
    fixed = InputContract(size=(64, 64))
    assert np.array_equal(fixed.training_view(large), fixed.prepare(large).image)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_size": None}, "Expected `array`"),
        ({"multiple_of": 30}, r"size is \[64, 64\]; height and width are multiples of 30"),
        ({"max_size": [128, 200]}, r"max_size is \[128, 200\]; height and width are multiples of 32"),
        ({"size": [160, 64]}, r"size is \[160, 64\], more than max_size, \[128, 192\]"),
        ({"multiple_of": 1, "max_size": [64, 256]}, "a side is at most 255 times multiple_of, 1"),
        ({"crop": 0.5}, 'crop is 0.5; fit = "free" cuts nothing off'),
        ({"fit": "letterbox"}, "max_size and multiple_of go with fit = \"free\"; fit is 'letterbox'"),
    ],
    ids=str,
)
def test_contracts_that_cannot_be(change, told):
    mapping = {"size": [64, 64], "fit": "free", "max_size": [128, 192], "multiple_of": 32}
    with pytest.raises(ConfigError, match=told):
        from_mapping(InputContract, {**mapping, **change}, "test")


@pytest.mark.parametrize("missing", ["max_size", "multiple_of"])
def test_a_free_contract_says_how_far(missing):
    mapping = {"size": [64, 64], "fit": "free", "max_size": [128, 192], "multiple_of": 32}
    del mapping[missing]
    with pytest.raises(ConfigError, match="wants max_size .the largest input. and multiple_of"):
        from_mapping(InputContract, mapping, "test")


def test_contracts_and_codecs_for_one_size_have_the_bytes_they_always_had():
    assert b"max_size" not in to_json(InputContract(size=(8, 8)))
    assert b"step" not in to_json(bundles.spec())


def spec_of(name: str) -> CodecSpec:
    return CodecSpec(name=name, shape=SHAPE, alphabet=16, levels=2, quantizer="0" * 64, step=(2, 4))


def drawn(shape=SHAPE, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).binomial(15, 0.5, shape).astype(np.uint8)


@pytest.fixture(params=["rans", "rans-context", "packed", "zstd"])
def codec(request):
    """Each codec, for frames up to 8 x 12 in steps of 2 x 4."""
    data = {
        "rans": bundles.tables,
        "rans-context": lambda: fit_contexts(drawn((2, 4, *SHAPE)), 16).to_bytes(),
        "packed": lambda: PackedTables(16, 3, (3, 3)).to_bytes(),
        "zstd": lambda: b"",
    }[request.param]()
    return open_codec(spec_of(request.param), data)


def test_symbols_of_every_grid_come_back(codec):
    for rows, columns in ((2, 4), (8, 12), (8, 4), (2, 12), (6, 8)):
        symbols = drawn((3, 3, rows, columns))
        levels = [0, 1, 0]
        payloads = [codec.encode(frame, level) for frame, level in zip(symbols, levels, strict=True)]
        assert payloads[0][:2] == bytes((rows // 2, columns // 4))
        assert codec.shape_of(payloads[0]) == (3, rows, columns)
        decoded, errors = codec.decode_batch(payloads, levels)
        assert errors == [None] * 3
        assert np.array_equal(decoded, symbols)


def test_payloads_that_lie_about_their_size(codec):
    good = codec.encode(drawn((3, 4, 8)), 0)
    lies = [b"", b"\x01", bytes((0, 1)) + good[2:], bytes((5, 1)) + good[2:], bytes((1, 255)) + good[2:]]
    for lie in lies:
        with pytest.raises(PayloadError, match=r"announces symbols of|does not say its frame's size"):
            codec.shape_of(lie)
    decoded, errors = codec.decode_batch([*lies, good], [0] * 6)
    assert [error is None for error in errors] == [False] * 5 + [True]
    assert decoded.shape == (6, 3, 4, 8)
    other = bytes((4, 3)) + good[2:]  # a size that there is, and not this frame's
    assert isinstance(codec.decode_batch([other], [0])[1][0], PayloadError)
    assert [type(error) for error in codec.decode_batch(lies, [0] * 5)[1]] == [PayloadError] * 5


def test_a_batch_has_one_size(codec):
    payloads = [codec.encode(drawn((3, 4, 8)), 0), codec.encode(drawn((3, 2, 8)), 0)]
    with pytest.raises(SymbolsError, match="payloads of 2 shapes: a batch has one"):
        codec.decode_batch(payloads, [0, 0])


@pytest.mark.parametrize("shape", [(3, 3, 4), (3, 2, 6), (3, 10, 4), (2, 2, 4), (3, 2, 16), (3, 2)])
def test_symbols_of_a_shape_that_there_is_not(codec, shape):
    with pytest.raises(SymbolsError, match=r"symbols are uint8 up to \[3, 8, 12\]"):
        codec.encode(np.zeros(shape, np.uint8), 0)


@pytest.mark.parametrize("step", [(3, 4), (2, 5), (16, 4)])
def test_a_step_that_is_none(step):
    with pytest.raises(ValueError, match="rows and columns are 1 to 255 steps"):
        msgspec.convert({**msgspec.to_builtins(spec_of("zstd")), "step": step}, CodecSpec)


def test_outputs_follow_the_input():
    output = OutputSpec(name="mask", dtype="float32", shape=[5, 16, 32], follows=["nothing", "height", "width"])
    assert output.at((96, 32), (64, 64)).shape == [5, 24, 16]
    assert OutputSpec(name="mask", dtype="float32", shape=[5]).at((96, 32), (64, 64)).shape == [5]


def free_manifest(**changes):
    return msgspec.to_builtins(bundles.make_free().manifest) | changes


def test_what_the_manifest_says_of_sizes_goes_together():
    manifest = parse_manifest(msgspec.json.encode(free_manifest()), "test")
    assert manifest.symbols_shape((12, 20)) == (3, 12, 20)
    assert manifest.input_size((3, 12, 20)) == (12, 20)
    for size in ((12, 21), (20, 12), (0, 4)):
        with pytest.raises(SymbolsError):
            manifest.symbols_shape(size)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"input": {"size": [8, 8]}}, "only one of its input and its codec is for images of any size"),
        (
            {"input": {"size": [8, 8], "fit": "free", "max_size": [16, 16], "multiple_of": 4}},
            r"its codec has \[16, 24\] rows and columns; an input of \[16, 16\] gives \[16, 16\]",
        ),
        (
            {"outputs": [{"name": "output", "dtype": "float32", "shape": [3]}]},
            "its output 'output' does not say what each of its sides follows",
        ),
    ],
    ids=["one of two", "another grid", "silent outputs"],
)
def test_a_manifest_that_contradicts_itself(changes, told):
    with pytest.raises(ManifestError, match=told):
        parse_manifest(msgspec.json.encode(free_manifest(**changes)), "test")


def test_outputs_that_follow_an_input_of_one_size():
    fixed = msgspec.to_builtins(bundles.make().manifest)
    fixed["outputs"][0]["follows"] = ["nothing"]
    with pytest.raises(ManifestError, match="an output's shape follows the input's, which has one size"):
        parse_manifest(msgspec.json.encode(fixed), "test")
