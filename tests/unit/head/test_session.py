"""The device's half: frame to payload."""

from __future__ import annotations

import numpy as np
import pytest
from support import bundles

from narrowcast.head.errors import BackendError
from narrowcast.head.session import HeadSession
from narrowcast.transport.bundle import describe_part
from narrowcast.transport.errors import FrameError, MissingPartError, SymbolsError


def test_a_frame_becomes_a_payload_that_decodes_to_its_symbols(tiny):
    session = HeadSession(tiny)
    frame = bundles.random_frames(1)[0]
    for level in range(session.levels):
        encoded = session.encode(frame, level)
        symbols, (error,) = session.codec.decode_batch([encoded.payload], [level])
        assert error is None
        assert np.array_equal(symbols[0], (frame // (32 if level == 0 else 16)).transpose(2, 0, 1))
        assert set(encoded.times.stages()) == {"resize", "head", "encode"}


def test_frames_of_any_size_are_resized_by_the_contract(tiny):
    session = HeadSession(tiny)
    frame = bundles.random_frames(1, size=(40, 60))[0]
    prepared = session.contract.prepare(frame)
    assert session.encode(frame, 1).payload == session.encode(prepared.image, 1).payload
    assert session.encode(frame, 1).placement.source == (40, 60)


@pytest.mark.parametrize("level", [-1, 2, 99])
def test_no_such_level(tiny, level):
    with pytest.raises(SymbolsError, match=f"level {level}; tiny has levels 0..1"):
        HeadSession(tiny).encode(bundles.random_frames(1)[0], level)


def test_no_frame(tiny):
    with pytest.raises(FrameError):
        HeadSession(tiny).encode(np.zeros((8, 8)), 0)


def test_a_precision_that_the_bundle_lacks(tiny):
    with pytest.raises(MissingPartError, match=r"no head \(int8\)"):
        HeadSession(tiny, precision="int8")


def test_no_such_backend(tiny):
    with pytest.raises(BackendError, match="did you mean 'onnxruntime'"):
        HeadSession(tiny, backend="onnxrunime")


def swapped(tmp_path, model: bytes):
    """A bundle whose head is another network."""
    part = describe_part("head.onnx", model, "head", ["device"], precision="fp32")
    return bundles.open_made(bundles.make().with_part(part, model).write(tmp_path / "m.ncb"))


def test_a_head_that_gives_other_symbols_than_the_bundle_says(tmp_path):
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Transpose", ["image"], ["symbols"], perm=[0, 3, 2, 1])]
    inputs = [value("image", TensorProto.UINT8, [1, 8, "W", 3])]
    model = bundles.onnx_model(nodes, inputs, [value("symbols", TensorProto.UINT8, [1, 3, "W", 8])], [])
    session = HeadSession(swapped(tmp_path, model))
    assert session.symbols(bundles.random_frames(1)[0], 0).shape == (3, 8, 8)
    with pytest.raises(BackendError, match=r"the bundle says uint8 \[3, 8, 8\]"):
        session.symbols(np.zeros((8, 4, 3), np.uint8), 0)


def test_a_head_that_the_backend_refuses_says_why(tmp_path):
    with pytest.raises(BackendError, match="does not load the head"):
        HeadSession(swapped(tmp_path, bundles.tail_model().replace(b"ReduceMean", b"ReduceNone")))


def test_a_head_that_fails_on_a_frame(tiny):
    with pytest.raises(BackendError, match="the head failed"):
        HeadSession(tiny).symbols(np.zeros((9, 9, 3), np.uint8), 0)


def test_video_tables_are_read_once(tmp_path):
    """Another bundle may take this one's place on disk: clients that are made later still have the tables."""
    path = bundles.with_video(bundles.make()).write(tmp_path / "m.ncb")
    session = HeadSession(bundles.open_made(path))
    video = session.video_codec()
    path.unlink()
    assert session.video_codec() is video
    with pytest.raises(MissingPartError, match=r"m\.ncb has no video tables: compile with video = true"):
        HeadSession(bundles.open_made(bundles.make().write(path))).video_codec()
