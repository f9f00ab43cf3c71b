"""The drawn networks of ``bench/profiler.py``: convolutions with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from narrowcast.compiler.tables import fit_tables
from narrowcast.transport.codec import CodecSpec

SIDE, CLASSES, SHAPE = 160, 10, (8, 20, 20)
_WIDTHS = (24, 48, 96)  # before the cut, at strides 2, 4 and 8
_BEHIND, _LAYERS = 128, 6


class _Graph:
    """Layers, one behind the other."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._random = np.random.default_rng(0)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node; gives its output's name."""
        name = f"value{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, array: np.ndarray) -> str:
        """A constant's name."""
        name = f"weight{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def conv(self, value: str, channels: int, made: int, stride: int = 1) -> str:
        """3 x 3, and a ReLU."""
        scale = np.sqrt(2 / (9 * channels))
        weights = self.constant(self._random.normal(0, scale, (made, channels, 3, 3)).astype(np.float32))
        return self.add("Relu", self.add("Conv", value, weights, pads=[1, 1, 1, 1], strides=[stride, stride]))

    def front(self) -> str:
        """The image uint8 ``[N, H, W, 3]`` to 96 channels at an eighth of its sides."""
        floats = self.add("Cast", "image", to=TensorProto.FLOAT)
        value = self.add(
            "Transpose", self.add("Div", floats, self.constant(np.array(255, np.float32))), perm=[0, 3, 1, 2]
        )
        before = 3
        for width in _WIDTHS:
            value, before = self.conv(value, before, width, 2), width
        return value

    def back(self, value: str, channels: int) -> str:
        """To class scores."""
        for _ in range(_LAYERS):
            value, channels = self.conv(value, channels, _BEHIND), _BEHIND
        means = self.add("ReduceMean", value, axes=[2, 3], keepdims=0)
        return self.add(
            "MatMul", means, self.constant(self._random.normal(0, 1, (channels, CLASSES)).astype(np.float32))
        )

    def bytes(self, inputs: list[Any], kind: int, shape: list[Any], name: str) -> bytes:
        """As ONNX."""
        self.nodes[-1].output[0] = name
        graph = helper.make_graph(
            self.nodes, "drawn", inputs, [helper.make_tensor_value_info(name, kind, shape)], self.weights
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())


def whole() -> bytes:
    """Image to class scores."""
    graph = _Graph()
    graph.back(graph.front(), _WIDTHS[-1])
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])
    return graph.bytes([image], TensorProto.FLOAT, ["N", CLASSES], "output")


def head() -> bytes:
    """Image to symbols."""
    graph = _Graph()
    value = graph.conv(graph.front(), _WIDTHS[-1], SHAPE[0])
    low, high = (graph.constant(np.array(bound, np.float32)) for bound in (0, 15))
    graph.add("Cast", graph.add("Clip", graph.add("Round", value), low, high), to=TensorProto.UINT8)
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, SIDE, SIDE, 3])
    return graph.bytes([image], TensorProto.UINT8, [1, *SHAPE], "symbols")


def tail() -> bytes:
    """Symbols to class scores."""
    graph = _Graph()
    graph.back(graph.add("Cast", "symbols", to=TensorProto.FLOAT), SHAPE[0])
    inputs = [
        helper.make_tensor_value_info("symbols", TensorProto.UINT8, ["N", *SHAPE]),
        helper.make_tensor_value_info("level", TensorProto.INT64, ["N"]),
    ]
    return graph.bytes(inputs, TensorProto.FLOAT, ["N", CLASSES], "output")


def tables(spec: CodecSpec) -> bytes:
    """Low symbols are likelier."""
    density = np.linspace(2, 1, spec.alphabet) / np.linspace(2, 1, spec.alphabet).sum()
    return bytes(fit_tables(np.tile(density, (spec.levels, spec.shape[0], 1)), None).to_bytes())
