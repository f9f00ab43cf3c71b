"""Small ONNX networks written with protobuf alone: boards have no onnx package.

The messages are the part of onnx.proto3 (Apache-2.0) that such networks need, with ONNX's own field numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

OPSET, IR_VERSION = 17, 8
_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7}
# message -> field: (number, type, repeated); a type in capitals is a message.
_MESSAGES: dict[str, dict[str, tuple[int, str, bool]]] = {
    "Dimension": {"dim_value": (1, "int64", False)},
    "Shape": {"dim": (1, "Dimension", True)},
    "TensorType": {"elem_type": (1, "int32", False), "shape": (2, "Shape", False)},
    "Type": {"tensor_type": (1, "TensorType", False)},
    "ValueInfo": {"name": (1, "string", False), "type": (2, "Type", False)},
    "Tensor": {
        "dims": (1, "int64", True),
        "data_type": (2, "int32", False),
        "name": (8, "string", False),
        "raw_data": (9, "bytes", False),
    },
    "Attribute": {
        "name": (1, "string", False),
        "f": (2, "float", False),
        "i": (3, "int64", False),
        "s": (4, "bytes", False),
        "ints": (8, "int64", True),
        "type": (20, "int32", False),
    },
    "Node": {
        "input": (1, "string", True),
        "output": (2, "string", True),
        "name": (3, "string", False),
        "op_type": (4, "string", False),
        "attribute": (5, "Attribute", True),
    },
    "Graph": {
        "node": (1, "Node", True),
        "name": (2, "string", False),
        "initializer": (5, "Tensor", True),
        "input": (11, "ValueInfo", True),
        "output": (12, "ValueInfo", True),
    },
    "OperatorSet": {"domain": (1, "string", False), "version": (2, "int64", False)},
    "Model": {
        "ir_version": (1, "int64", False),
        "graph": (7, "Graph", False),
        "opset_import": (8, "OperatorSet", True),
    },
}


class Builder:
    """Makes one network, node by node.

    Args:
        seed: of the weights.
    """

    def __init__(self, seed: int = 0) -> None:
        self._graph = _classes()["Graph"](name="calibration")
        self._random = np.random.default_rng(seed)
        self._count = 0

    def input(self, shape: Sequence[int], dtype: str = "float32") -> str:
        """An input; its name."""
        name = self._name()
        self._graph.input.append(_value(name, shape, dtype))
        return name

    def constant(self, values: npt.NDArray[Any] | float) -> str:
        """A constant; its name. A Python float becomes a float32 scalar."""
        array = np.asarray(values, np.float32) if isinstance(values, float) else np.asarray(values)
        tensor = _classes()["Tensor"](
            dims=array.shape, data_type=_TYPES[array.dtype.name], name=self._name(), raw_data=array.tobytes()
        )
        self._graph.initializer.append(tensor)
        return str(tensor.name)

    def weights(self, *shape: int) -> str:
        """Random float32 weights, scaled by the number of inputs; their name."""
        scale = 1 / np.sqrt(max(1, int(np.prod(shape[1:]))))
        return self.constant((self._random.standard_normal(shape) * scale).astype(np.float32))

    def node(self, op: str, *inputs: str, **attributes: int | float | str | Sequence[int]) -> str:
        """A node with one output; its name."""
        node = self._graph.node.add(op_type=op, name=self._name(), input=inputs, output=[self._name()])
        for name, value in attributes.items():
            attribute = node.attribute.add(name=name)
            if isinstance(value, float):
                attribute.type, attribute.f = 1, value
            elif isinstance(value, int):
                attribute.type, attribute.i = 2, value
            elif isinstance(value, str):
                attribute.type, attribute.s = 3, value.encode()
            else:
                attribute.type = 7
                attribute.ints.extend(value)
        return str(node.output[0])

    def model(self, *outputs: str, dtype: str = "float32") -> bytes:
        """The network, with these outputs (whose shapes ONNX Runtime finds)."""
        for name in outputs:
            self._graph.output.append(_value(name, None, dtype))
        classes = _classes()
        opset = classes["OperatorSet"](domain="", version=OPSET)
        model = classes["Model"](ir_version=IR_VERSION, graph=self._graph, opset_import=[opset])
        return bytes(model.SerializeToString())

    def _name(self) -> str:
        self._count += 1
        return f"v{self._count}"


def _value(name: str, shape: Sequence[int] | None, dtype: str) -> Any:
    value = _classes()["ValueInfo"](name=name)
    value.type.tensor_type.elem_type = _TYPES[dtype]
    for side in shape or ():
        value.type.tensor_type.shape.dim.add(dim_value=side)
    return value


@cache
def _classes() -> dict[str, Any]:
    field_type = descriptor_pb2.FieldDescriptorProto
    package = "narrowcast.calibration"
    file = descriptor_pb2.FileDescriptorProto(name="narrowcast/calibration.proto", package=package, syntax="proto2")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind, repeated) in fields.items():
            label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            field = described.field.add(name=name, number=number, label=label)
            if kind in _MESSAGES:
                field.type, field.type_name = field_type.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                field.type = getattr(field_type, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in _MESSAGES
    }
