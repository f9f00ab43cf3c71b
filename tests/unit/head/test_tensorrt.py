"""The TensorRT backend's own logic, on fakes of TensorRT and of the CUDA driver.

``tests/contract/test_tensorrt_api.py`` holds the fake TensorRT to the real API.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import time

import numpy as np
import pytest
from onnx import TensorProto, helper
from support import bundles, fake_tensorrt, gpu

from narrowcast.head.backends import engines, load_backend
from narrowcast.head.backends.cuda import Gpu
from narrowcast.head.backends.engines import EngineKey, keep_engine, read_engine
from narrowcast.head.errors import BackendError

pytestmark = pytest.mark.skipif(gpu.COMPILER is None, reason="there is no C compiler for the fake CUDA driver")
FRAME = bundles.random_frames(1)[0]


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    return gpu.build_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(params=fake_tensorrt.VERSIONS)
def each(request, driver):
    """The machine with each version: (backend, tensorrt, driver)."""
    with gpu.machine(driver, request.param) as made:
        yield made
        made[2].fake_budget(1 << 30)
        made[2].fake_missing(0)


@pytest.fixture
def machine(driver):
    """The machine with TensorRT 10."""
    with gpu.machine(driver, "10.3.0") as made:
        yield made
        made[2].fake_budget(1 << 30)
        made[2].fake_missing(0)


@pytest.fixture
def cache(keys_folder):
    return keys_folder.parent / "cache"


def load(model: bytes = bundles.head_model()):
    return load_backend("tensorrt", model, threads=0)


def typed_head(kind: str) -> bytes:
    """Normalise, two convolutions, round: with the convolutions in fp32, in fp16, or quantized."""
    value = helper.make_tensor_value_info
    half = kind == "fp16"
    weights = np.full((3, 3, 1, 1), 0.25, np.float16 if half else np.float32)
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["floats"], "floats", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"], "scaled"),
    ]
    source, target = "scaled", "second"
    if half:
        nodes.append(helper.make_node("Cast", ["scaled"], ["scaled_half"], "in", to=TensorProto.FLOAT16))
        source, target = "scaled_half", "second_half"
    if kind == "int8":
        nodes.append(helper.make_node("QuantizeLinear", ["scaled", "step", "zero"], ["q"], "q"))
        nodes.append(helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["dq"], "dq"))
        source = "dq"
    nodes += [
        helper.make_node("Conv", [source, "w"], ["first"], "first"),
        helper.make_node("Relu", ["first"], ["between"], "between"),
        helper.make_node("Conv", ["between", "w"], [target], "second"),
    ]
    if half:
        nodes.append(helper.make_node("Cast", ["second_half"], ["second"], "out", to=TensorProto.FLOAT))
    nodes += [
        helper.make_node("Round", ["second"], ["whole"], "whole"),
        helper.make_node("Cast", ["whole"], ["symbols"], "symbols", to=TensorProto.UINT8),
    ]
    constants = [("scale", np.array(1 / 16, np.float32)), ("w", weights)]
    if kind == "int8":
        constants += [("step", np.array(0.125, np.float32)), ("zero", np.array(0, np.int8))]
    inputs = [value("image", TensorProto.UINT8, [1, bundles.SIDE, bundles.SIDE, 3])]
    return bundles.onnx_model(nodes, inputs, [value("symbols", TensorProto.UINT8, [1, *bundles.SHAPE])], constants)


class TestPrecision:
    """Who decides about a layer's arithmetic."""

    @pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
    def test_networks_are_strongly_typed_where_that_exists(self, each, kind):
        _, trt, _ = each
        load(typed_head(kind))
        (network,), (config,) = trt.made.networks, trt.made.configs
        flags = trt.NetworkDefinitionCreationFlag
        assert network.flags == 1 << (flags.EXPLICIT_BATCH if trt.__version__ == "8.6.1" else flags.STRONGLY_TYPED)
        assert config.pools["WORKSPACE"] == 256 * 1024 * 1024
        assert "TF32" not in config.flags
        weakly = {"fp32": set(), "fp16": {"FP16", "PREFER_PRECISION_CONSTRAINTS"}, "int8": {"INT8"}}[kind]
        assert config.flags == (weakly if trt.__version__ == "8.6.1" else set())

    def test_before_strong_types_what_lies_outside_the_core_of_an_fp16_head_stays_fp32(self, driver):
        with gpu.machine(driver, "8.6.1") as (_, trt, _):
            load(typed_head("fp16"))
            pinned = {layer.name for layer in trt.made.networks[0].layers if layer.precision == trt.DataType.FLOAT}
            assert pinned == {"floats", "scaled", "out", "whole"}
            assert all(
                layer.pinned == ({0: trt.DataType.FLOAT} if layer.name in pinned else {})
                for layer in trt.made.networks[0].layers
            )

    @pytest.mark.parametrize("kind", ["fp32", "int8"])
    def test_other_heads_need_no_pins(self, driver, kind):
        with gpu.machine(driver, "8.6.1") as (_, trt, _):
            load(typed_head(kind))
            assert all(layer.precision is None for layer in trt.made.networks[0].layers)


class TestCache:
    """Engines are built once."""

    def test_the_second_start_builds_nothing(self, each, cache):
        _, trt, _ = each
        first, second = load(), load()
        assert len(trt.made.networks) == 1
        assert np.array_equal(first.run(FRAME, 1), second.run(FRAME, 1))
        assert len(list(cache.iterdir())) == 1

    def test_another_network_or_version_or_workspace_has_an_engine_of_its_own(self, driver, cache, monkeypatch):
        for version in ("8.6.1", "10.3.0"):
            with gpu.machine(driver, version) as (backend, trt, _):
                load()
                load(typed_head("fp32"))
                monkeypatch.setattr(backend, "FLAGS", backend.FLAGS + " more")
                load()
                assert len(trt.made.networks) == 3
        assert len(list(cache.iterdir())) == 6

    def test_another_gpu_has_an_engine_of_its_own(self, machine, cache, monkeypatch):
        load()
        monkeypatch.setattr(Gpu, "_attribute", lambda self, number, device: 9)
        from narrowcast.head.backends import cuda

        cuda._open.clear()
        load()
        assert len(machine[1].made.networks) == 2

    def test_engines_that_are_not_used_any_more_are_removed(self, cache, monkeypatch):
        def aged(letter: str, days: float) -> EngineKey:
            key = EngineKey(model=letter * 64, tensorrt="10.3.0", gpu="a board", flags="")
            keep_engine(key, letter.encode())
            os.utime(key.file(), (now - days * 86_400,) * 2)
            return key

        now = time.time()
        old, used, young = aged("a", 31), aged("b", 29), aged("c", 29)
        os.utime(used.file(), (now - 31 * 86_400,) * 2)
        assert read_engine(used) == b"b"
        (cache / "precision-0.json").write_text("{}")
        os.utime(cache / "precision-0.json", (0, 0))
        new = EngineKey(model="d" * 64, tensorrt="10.3.0", gpu="a board", flags="")
        keep_engine(new, b"d")
        assert [read_engine(key) for key in (old, used, young, new)] == [None, b"b", b"c", b"d"]
        assert (cache / "precision-0.json").exists()
        monkeypatch.setattr(engines, "UNUSED_DAYS", -1)
        keep_engine(new, b"e")
        assert [read_engine(key) for key in (used, young, new)] == [None, None, b"e"], "never the one just written"

    def test_a_clock_in_the_past_does_not_make_an_engine_old(self, cache, monkeypatch):
        key = EngineKey(model="a" * 64, tensorrt="10.3.0", gpu="a board", flags="")
        keep_engine(key, b"a")
        before = key.file().stat().st_mtime
        monkeypatch.setattr(engines.time, "time", lambda: 0.0)
        assert read_engine(key) == b"a"
        assert key.file().stat().st_mtime == before

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[:-1],
            lambda data: data[:-1] + bytes([data[-1] ^ 1]),
            lambda data: b"",
            lambda data: b"{}\nengine",
            lambda data: b"\xff" * 1000,
            lambda data: data.replace(b"Fake GPU", b"Real GPU"),
        ],
    )
    def test_a_damaged_engine_is_built_anew_and_replaced(self, machine, cache, damage):
        load()
        (file,) = cache.iterdir()
        whole = file.read_bytes()
        file.write_bytes(damage(whole))
        assert load().run(FRAME, 0).shape == bundles.SHAPE
        assert len(machine[1].made.networks) == 2
        assert file.read_bytes() == whole

    def test_an_engine_that_tensorrt_refuses_is_built_anew(self, machine, cache, caplog):
        load()
        (file,) = cache.iterdir()
        head, _, engine = file.read_bytes().partition(b"\n")
        other = engine.replace(b"10.3.0", b"10.2.0")
        old, new = (hashlib.sha256(data).hexdigest().encode() for data in (engine, other))
        file.write_bytes(head.replace(old, new) + b"\n" + other)
        with caplog.at_level(logging.WARNING):
            assert load().run(FRAME, 0).shape == bundles.SHAPE
        assert "not an engine of this version" in caplog.text
        assert len(machine[1].made.networks) == 2

    def test_it_can_be_turned_off_and_a_disk_that_cannot_be_written_is_no_error(
        self, machine, cache, monkeypatch, caplog
    ):
        monkeypatch.setenv("NARROWCAST_CACHE", "off")
        load()
        file = cache.parent / "file"
        file.write_text("")
        monkeypatch.setenv("NARROWCAST_CACHE", str(file / "below"))
        with caplog.at_level(logging.WARNING):
            load()
            load()
        assert len(machine[1].made.networks) == 3
        assert "not kept" in caplog.text

    def test_an_engine_that_does_not_load_is_not_kept(self, machine, cache):
        machine[1].made.refuse_to_load = True
        with pytest.raises(BackendError, match="does not load the engine that it built: fake runtime"):
            load()
        assert not cache.exists()


class TestErrors:
    """A line that says what to do."""

    def test_no_library(self):
        with pytest.raises(BackendError, match=r"the backend tensorrt cannot be used: .*JetPack"):
            load()

    def test_no_driver(self, tmp_path):
        with gpu.machine(tmp_path / "libcuda.so.1", "10.3.0"), pytest.raises(BackendError, match="no CUDA driver"):
            load()

    def test_a_library_that_is_no_driver(self, driver, tmp_path):
        with gpu.machine("libc.so.6", "10.3.0"), pytest.raises(BackendError, match="no CUDA driver: .*cuInit"):
            load()

    def test_no_gpu(self, machine):
        machine[2].fake_missing(1)
        with pytest.raises(BackendError, match=r"cannot be used: CUDA's cuInit failed: no CUDA-capable device"):
            load()

    def test_the_parser_refuses(self, each):
        broken = bundles.head_model().replace(b"Floor", b"Flood")
        with pytest.raises(
            BackendError, match=r"TensorRT .* does not load the head: its parser refuses it: fake parser"
        ):
            load(broken)

    def test_the_builder_gives_nothing(self, machine):
        machine[1].made.refuse_to_build = True
        with pytest.raises(BackendError, match="it builds no engine: fake builder: no tactic"):
            load()

    def test_the_bindings_give_no_object(self, machine, monkeypatch):
        def nothing(logger):
            raise TypeError("pybind11::init(): factory function returned nullptr")

        monkeypatch.setattr(machine[1], "Runtime", nothing)
        with pytest.raises(BackendError, match="does not load the head: pybind11"):
            load()

    def test_no_memory(self, machine):
        machine[2].fake_budget(100)
        with pytest.raises(BackendError, match=r"cuMemAlloc_v2 failed: out of memory \(2\)"):
            load()
        gc.collect()
        assert (machine[2].fake_blocks(), machine[2].fake_streams()) == (0, 0)

    def test_a_network_without_a_fixed_shape(self, machine):
        value = helper.make_tensor_value_info
        nodes = [helper.make_node("Transpose", ["image"], ["symbols"], perm=[0, 3, 1, 2])]
        inputs = [value("image", TensorProto.UINT8, [1, 8, "W", 3])]
        model = bundles.onnx_model(nodes, inputs, [value("symbols", TensorProto.UINT8, [1, 3, 8, "W"])], [])
        with pytest.raises(BackendError, match=r"'image' has no fixed shape: \[1, 8, -1, 3\]"):
            load(model)

    def test_the_uncut_network_takes_batches_and_is_built_for_one_frame(self, each):
        network = each[0].load(bundles.whole_model(), threads=0, what="whole network")
        outputs = network.run({"image": FRAME[None]})["output"]
        assert outputs.shape == (1, 3)
        assert np.allclose(outputs[0], (FRAME // 16).reshape(-1, 3).mean(0) + 100, atol=1e-3)

    def test_inputs_that_are_not_the_networks(self, each):
        backend = each[0]
        network = backend.load(bundles.head_model(), threads=0, what="head")
        level = np.array([1], np.int64)
        with pytest.raises(BackendError, match="wants 'level'"):
            network.run({"image": FRAME[None]})
        with pytest.raises(BackendError, match=r"'image' is int64 \[1, 8, 8, 3\]; the engine takes uint8"):
            network.run({"image": FRAME[None].astype(np.int64), "level": level})
        assert network.run({"image": FRAME[None], "level": level})["symbols"].dtype == np.uint8


def test_memory_and_stream_are_given_back(machine):
    head = load()
    head.run(FRAME, 0)
    assert (machine[2].fake_blocks(), machine[2].fake_streams()) == (3, 1)
    del head
    gc.collect()
    assert (machine[2].fake_blocks(), machine[2].fake_streams()) == (0, 0)


def test_symbols_are_onnx_runtimes(each):
    for model in (bundles.head_model(), typed_head("fp32"), typed_head("fp16"), typed_head("int8")):
        head, reference = load(model), load_backend("onnxruntime", model, threads=1)
        for level in range(2):
            assert np.array_equal(head.run(FRAME, level), reference.run(FRAME, level))


def test_an_image_that_does_not_lie_in_one_piece(machine):
    head = load()
    turned = FRAME.transpose(1, 0, 2)
    assert np.array_equal(head.run(turned, 1), head.run(np.ascontiguousarray(turned), 1))
