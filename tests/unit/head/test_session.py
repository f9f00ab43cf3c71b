"""The device's half: frame to payload."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from support import bundles

from narrowcast.head import whole
from narrowcast.head.backends import load_whole
from narrowcast.head.daemon.clients import check_source, policy_of
from narrowcast.head.daemon.config import DaemonConfig, SourceConfig
from narrowcast.head.daemon.model import Model
from narrowcast.head.errors import BackendError
from narrowcast.head.offload import OffloadControl
from narrowcast.head.rate.control import RateControl
from narrowcast.head.session import HeadSession
from narrowcast.transport.bundle import describe_part
from narrowcast.transport.errors import ConfigError, FrameError, MissingPartError, SymbolsError

LEVELS = [{"level": 0, "agreement": 0.6, "mean_packet_bytes": 150.0}]


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


@pytest.fixture
def refused_by_tensorrt(tmp_path, monkeypatch):
    """A session whose head runs on what calls itself TensorRT, which refuses the uncut network; and what was loaded."""
    asked = []

    def load(name, model, *, threads):
        asked.append((name, threads))
        if name == "tensorrt" or "onnxruntime" in refusing:
            raise BackendError(f"{name} refuses the whole network")
        return load_whole(name, model, threads=threads)

    refusing: set[str] = set()
    monkeypatch.setattr(whole, "load_whole", load)
    made = bundles.with_whole(bundles.make(figures={"levels": LEVELS}))
    session = HeadSession(bundles.open_made(made.write(tmp_path / "m.ncb"), "device"), threads=1)
    session.choice = msgspec.structs.replace(session.choice, backend="tensorrt 10.3")
    return session, asked, refusing


def test_the_uncut_network_runs_elsewhere_where_the_heads_backend_refuses_it(refused_by_tensorrt):
    session, asked, _ = refused_by_tensorrt
    assert session.whole.choice.backend.startswith("onnxruntime")
    assert session.whole.choice.passed_over == {"tensorrt": "tensorrt refuses the whole network"}
    assert asked == [("tensorrt", 1), ("onnxruntime", 1)], "with the session's threads"


def test_an_uncut_network_that_no_backend_takes_leaves_the_other_ways(refused_by_tensorrt, tmp_path):
    session, asked, refusing = refused_by_tensorrt
    refusing.add("onnxruntime")
    rate = RateControl(session.bundle.manifest, automatic=True)
    found = OffloadControl(session, "auto", rate)
    assert found.ways == ["split"]
    assert "onnxruntime refuses" in found.left_out["local"]
    with pytest.raises(BackendError, match="tensorrt refuses the whole network; onnxruntime refuses the whole network"):
        OffloadControl(session, "local", None)
    assert len(asked) == 2, "it is tried once"
    settings = {"bundle": str(tmp_path / "m.ncb"), "to": "127.0.0.1:9"}
    source = SourceConfig(name="in", uri="in", offload="auto")
    config = DaemonConfig(**settings, sources=[source])
    check_source(config, source, Model(session, []))
    with pytest.raises(BackendError, match="onnxruntime refuses"):
        check_source(config, msgspec.structs.replace(source, offload="local"), Model(session, []))
    rate.close()


def test_a_source_of_further_tails_alone_has_no_answers_from_the_board(tmp_path):
    made = bundles.with_second_tail(bundles.with_exit(bundles.with_whole(bundles.make())))
    session = HeadSession(bundles.open_made(made.write(tmp_path / "two.ncb"), "device"))
    source = SourceConfig(name="gate", uri="photos", tails=["second"])
    config = DaemonConfig(bundle="two.ncb", to="127.0.0.1:9", sources=[source])
    check_source(config, source, Model(session, []))
    assert policy_of(source, session) == "drop"
    for insists in ({"on_outage": "local"}, {"offload": "local"}):
        with pytest.raises(ConfigError, match="source 'gate': .*'main' does, which is not asked for"):
            check_source(config, msgspec.structs.replace(source, **insists), Model(session, []))
