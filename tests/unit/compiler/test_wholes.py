"""The uncut network in lower precisions: compared with fp32, timed, kept or left out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import bundles

from narrowcast.compiler.errors import VerificationError
from narrowcast.compiler.precision import to_fp16, to_int8
from narrowcast.compiler.progress import SILENT
from narrowcast.compiler.recipe import ExportSettings
from narrowcast.compiler.wholes import try_wholes, whole_figures, whole_times, wholes_too_lossy

FRAMES = bundles.random_frames(20)


def whole(*, scores: bool = True, factor: float = 1.0) -> bytes:
    """image uint8 [N, 8, 8, 3] -> output float32 [N, 4], or a map [N, 4, 8, 8]: five convolutions and a mean."""
    value, random = helper.make_tensor_value_info, np.random.default_rng(0)
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["floats"], "floats", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["c0"], "scaled"),
    ]
    constants, channels = [("scale", np.array(1 / 255, np.float32))], 3
    for k in range(5):
        weights = random.normal(size=(4, channels, 3, 3)) * (factor if k == 1 else 1) / channels
        constants.append((f"w{k}", weights.astype(np.float32)))
        nodes.append(helper.make_node("Conv", [f"c{k}", f"w{k}"], [f"r{k}"], f"conv{k}", pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"r{k}"], [f"c{k + 1}"], f"relu{k}"))
        channels = 4
    shape = ["N", 4] if scores else ["N", 4, 8, 8]
    if scores:
        nodes.append(helper.make_node("GlobalAveragePool", ["c5"], ["mean"], "mean"))
        nodes.append(helper.make_node("Flatten", ["mean"], ["output"], "output"))
    else:
        nodes.append(helper.make_node("Mul", ["c5", "one"], ["output"], "output"))
        constants.append(("one", np.array(1, np.float32)))
    inputs = [value("image", TensorProto.UINT8, ["N", 8, 8, 3])]
    return bundles.onnx_model(nodes, inputs, [value("output", TensorProto.FLOAT, shape)], constants)


def shifted(model: bytes, by: float) -> bytes:
    """Another network with the same inputs and outputs: its first convolution's weights moved."""
    proto = onnx.load_from_string(model)
    tensor = next(t for t in proto.graph.initializer if t.name == "w0")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(by), "w0"))
    return proto.SerializeToString()


def test_each_is_compared_with_fp32():
    exact = whole()
    found = try_wholes({"fp32": exact, "fp16": to_fp16(exact), "int8": shifted(exact, 3.0)}, FRAMES, SILENT)
    assert found["fp32"] == {"agreement": 1.0, "output_error": 0.0}
    assert found["fp16"]["agreement"] > 0.9
    assert 0 < found["fp16"]["output_error"] < 0.01
    assert found["int8"]["output_error"] > found["fp16"]["output_error"]


@pytest.mark.parametrize("symmetric", [True, False])
def test_int8_of_a_network_that_takes_any_number_of_frames(symmetric):
    exact = whole(scores=False)
    int8 = to_int8(exact, FRAMES, symmetric=symmetric, what="whole network")
    found = try_wholes({"fp32": exact, "int8": int8}, FRAMES, SILENT)
    assert found["int8"]["agreement"] is None  # no class scores
    assert 0 < found["int8"]["output_error"] < 0.2


def test_what_loses_too_much_is_left_out():
    settings = ExportSettings(max_agreement_loss=0.02, max_error_growth=0.1)
    trials = {
        "fp32": {"agreement": 1.0, "output_error": 0.0},
        "fp16": {"agreement": 0.98, "output_error": 9.0},
        "int8": {"agreement": 0.97, "output_error": 0.0},
    }
    reasons = wholes_too_lossy(trials, settings)
    assert list(reasons) == ["int8"]
    assert reasons["int8"].startswith("it agrees with fp32 on 97 % of the frames")


@pytest.mark.parametrize(("error", "kept"), [(0.0, True), (0.1, True), (0.11, False), (float("nan"), False)])
def test_without_class_scores_the_output_error_decides(error, kept):
    trials = {"fp16": {"agreement": None, "output_error": error}}
    assert (wholes_too_lossy(trials, ExportSettings()) == {}) == kept


def test_fp16_that_overflows_is_left_out():
    """Weights beyond fp16's range are cut; what they would have given is no number, or another one."""
    exact = whole(scores=False, factor=1e8)
    trials = try_wholes({"fp32": exact, "fp16": to_fp16(exact)}, FRAMES, SILENT)
    assert "fp16" in wholes_too_lossy(trials, ExportSettings())


def test_a_network_that_does_not_run():
    exact = whole()
    other = bundles.tail_model()
    with pytest.raises(VerificationError, match="the int8 whole network does not run"):
        try_wholes({"fp32": exact, "int8": other}, FRAMES, SILENT)


def test_times_stand_side_by_side():
    exact = whole()
    times = whole_times({"fp32": exact, "fp16": to_fp16(exact)}, FRAMES[0])
    assert set(times) == {"fp32", "fp16"}
    assert all(value > 0 for value in times.values())
    figures = whole_figures(times, {"fp32": {"agreement": 1.0}}, {"int8": "why"})
    assert figures["precisions"]["fp32"] == {"ms": times["fp32"], "agreement": 1.0}
    assert figures["left_out"] == {"int8": "why"}
