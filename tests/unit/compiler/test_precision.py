"""Heads in fp16 and INT8: what is converted, what stays, and how far the symbols move."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from narrowcast.compiler.errors import ExportError
from narrowcast.compiler.precision import core, quantizable, to_fp16, to_int8
from narrowcast.compiler.verify import OnnxNetwork

SIDE = 16


def head(convolutions: int = 6, gain: float = 20.0) -> bytes:
    """image uint8 [1, 16, 16, 3] -> a chain of 3x3 convolutions with ReLU between -> gain, round, clip -> symbols uint8."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["x0"], "normalise"),
    ]
    constants = {"scale": np.float32(1 / 128), "gain": np.float32(gain), "zero": np.float32(128)}
    constants |= {"low": np.float32(0), "high": np.float32(255)}
    for k in range(convolutions):
        channels = 3 if k == 0 else 8
        constants[f"w{k}"] = (random.normal(size=(8, channels, 3, 3)) / (4 * channels**0.5)).astype(np.float32)
        constants[f"b{k}"] = random.normal(size=8).astype(np.float32) / 10
        out = f"x{k + 1}" if k == convolutions - 1 else f"c{k}"
        nodes.append(helper.make_node("Conv", [f"x{k}", f"w{k}", f"b{k}"], [out], f"conv{k}", pads=[1, 1, 1, 1]))
        if out.startswith("c"):
            nodes.append(helper.make_node("Relu", [out], [f"x{k + 1}"], f"relu{k}"))
    nodes += [
        helper.make_node("Mul", [f"x{convolutions}", "gain"], ["scaled"], "gain"),
        helper.make_node("Round", ["scaled"], ["whole"], "round"),
        helper.make_node("Add", ["whole", "zero"], ["shifted"], "zero"),
        helper.make_node("Clip", ["shifted", "low", "high"], ["limited"], "clip"),
        helper.make_node("Cast", ["limited"], ["symbols"], "bytes", to=TensorProto.UINT8),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "head", [value("image", TensorProto.UINT8, [1, SIDE, SIDE, 3])],
        [value("symbols", TensorProto.UINT8, [1, 8, SIDE, SIDE])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)


def steps(model: bytes, **kind) -> np.ndarray:
    """By how much the symbols of a head differ from those of :func:`head`."""
    exact, other = OnnxNetwork(head(**kind)), OnnxNetwork(model)
    return np.stack([other(image=f[None])["symbols"].astype(int) - exact(image=f[None])["symbols"] for f in frames(8)])


def by_name(model: bytes) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in onnx.load_from_string(model).graph.node}


def test_the_core_is_what_lies_between_the_convolutions():
    names = [node.name for node in core(onnx.load_from_string(head(3)))]
    assert names == ["conv0", "relu0", "conv1", "relu1", "conv2"]


def test_the_first_convolutions_and_the_last_are_not_quantized():
    assert quantizable(onnx.load_from_string(head(6))) == ["conv3", "relu3", "conv4", "relu4"]
    # of four, three would hold more than their share of the work
    assert quantizable(onnx.load_from_string(head(4))) == ["conv2", "relu2"]


@pytest.mark.parametrize("convolutions", [1, 2])
def test_a_head_with_nothing_in_between(convolutions):
    with pytest.raises(ExportError, match="no convolution to quantize"):
        to_int8(head(convolutions), frames(2), symmetric=False)


def test_fp16_keeps_types_at_the_ends_and_fp32_in_the_quantizer():
    model = onnx.load_from_string(to_fp16(head()))
    kinds = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    assert kinds["c2_fp16"] == TensorProto.FLOAT16
    assert kinds["x0"] == kinds["scaled"] == kinds["limited"] == TensorProto.FLOAT
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert not any(t.name in {"w0", "b0"} for t in model.graph.initializer)  # only their fp16 twins are left
    assert len(model.SerializeToString()) < 0.75 * len(head())


def test_fp16_moves_few_symbols_by_one():
    moved = steps(to_fp16(head()))
    assert 0 < np.abs(moved).mean() < 0.02
    assert np.abs(moved).max() == 1


def test_weights_beyond_fp16_are_limited_not_infinite():
    model = onnx.load_from_string(head())
    weight = next(t for t in model.graph.initializer if t.name == "w3")
    values = numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] = 1e6
    weight.CopyFrom(numpy_helper.from_array(values, "w3"))
    half = onnx.load_from_string(to_fp16(model.SerializeToString()))
    found = numpy_helper.to_array(next(t for t in half.graph.initializer if t.name == "w3_fp16"))
    assert found.dtype == np.float16
    assert found.max() == np.finfo(np.float16).max


@pytest.mark.parametrize("symmetric", [False, True])
def test_int8_is_close_and_leaves_the_quantizer_alone(symmetric):
    model = to_int8(head(), frames(16), symmetric=symmetric)
    moved = np.abs(steps(model))
    assert 0 < (moved > 0).mean() < 0.25
    assert moved.max() <= 2
    nodes = by_name(model)
    produced = {value: node for node in nodes.values() for value in node.output}
    for name in ("conv0", "conv2", "conv5", "gain", "round", "zero", "clip"):
        sources = [produced[value].op_type for value in nodes[name].input[1:] if value in produced]
        assert "DequantizeLinear" not in sources, name
    assert produced[nodes["conv3"].input[1]].op_type == "DequantizeLinear"


def test_weights_have_a_scale_per_channel():
    model = onnx.load_from_string(to_int8(head(), frames(4), symmetric=False))
    scales = {t.name: t.dims for t in model.graph.initializer}
    assert list(scales["w3_scale"]) == [8]


def test_the_symmetric_form_is_the_one_that_tensorrt_reads():
    model = onnx.load_from_string(to_int8(head(), frames(4), symmetric=True))
    zeros = [t for t in model.graph.initializer if t.name.endswith("zero_point")]
    assert {t.data_type for t in zeros} == {TensorProto.INT8}
    assert not any(numpy_helper.to_array(t).any() for t in zeros)
    assert not any("b3" in node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear")


def test_the_same_frames_give_the_same_head():
    assert to_int8(head(), frames(4), symmetric=False) == to_int8(head(), frames(4), symmetric=False)


def test_what_is_no_network_for_it_is_one_line():
    model = onnx.load_from_string(head())
    del model.graph.initializer[:]
    with pytest.raises(ExportError, match="cannot be quantized to INT8") as caught:
        to_int8(model.SerializeToString(), frames(2), symmetric=False)
    assert "\n" not in str(caught.value)
