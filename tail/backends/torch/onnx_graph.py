"""ONNX as a list of nodes with NumPy constants, for backends that build their own graph of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Node:
    """One operator's use.

    Attributes:
        operator: its name, in ONNX's own domain.
        name: of this node; for messages.
        inputs: names of values; empty for an optional input that is left out.
        outputs: names of values.
        attributes: by name, as Python numbers, strings, lists and arrays.
    """

    operator: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Graph:
    """A network.

    Attributes:
        opset: of ONNX's own operators.
        inputs, outputs: names of values.
        constants: weights and other fixed values, by name.
        nodes: each behind those whose values it takes.
    """

    opset: int
    inputs: list[str]
    outputs: list[str]
    constants: dict[str, Array]
    nodes: list[Node]


def parse(data: bytes) -> Graph:
    """Reads a model that is one flat graph of ONNX's own operators.

    Raises:
        ValueError: it is no such model; says why.
    """
    try:
        model = onnx.load_from_string(data)
    except DecodeError as error:
        raise ValueError(f"no ONNX model: {error}") from error
    if not model.graph.node:
        raise ValueError("no ONNX model: it has no graph")
    if model.functions:
        raise ValueError(f"it defines functions of its own ({model.functions[0].name}), which only ONNX Runtime runs")
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise ValueError(
                f"the operator {node.op_type!r} of the domain {node.domain!r}, which only ONNX Runtime runs"
            )
        attributes = {entry.name: _attribute(node, entry) for entry in node.attribute}
        if node.op_type == "Constant":
            constants[node.output[0]] = np.asarray(next(iter(attributes.values())))
            continue
        nodes.append(Node(node.op_type, node.name, list(node.input), list(node.output), attributes))
    inputs = [entry.name for entry in graph.input if entry.name not in constants]
    return Graph(opset, inputs, [entry.name for entry in graph.output], constants, nodes)


def _attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, float) or (node.op_type == "Constant" and attribute.name == "value_floats"):
        return np.asarray(value, np.float32) if node.op_type == "Constant" else value
    if isinstance(value, int):
        return value
    listed = list(value) if not isinstance(value, onnx.GraphProto) else None
    if listed is None or any(not isinstance(entry, (int, float)) for entry in listed):
        raise ValueError(
            f"the operator {node.op_type!r} has the attribute {attribute.name!r}, which only ONNX Runtime runs"
        )
    return listed
