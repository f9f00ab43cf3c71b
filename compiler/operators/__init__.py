"""Whether TensorRT's parser will take an exported network: said when it is compiled, not by the board.

What each version takes is data: one TOML file each, beside this one. ONNX Runtime is not listed: every exported network is
loaded and run by it when it is verified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import onnx
import onnx.numpy_helper
import onnx.shape_inference

from narrowcast.compiler.errors import ExportError
from narrowcast.compiler.progress import Progress
from narrowcast.devices.targets import Target
from narrowcast.transport.bundle.manifest import Precision
from narrowcast.transport.structs import Settings, from_toml

# ONNX's types by TensorRT's names for them.
_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.FLOAT16: "FP16", onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.DOUBLE: "FP32", onnx.TensorProto.INT8: "INT8", onnx.TensorProto.UINT8: "UINT8",
    onnx.TensorProto.INT32: "INT32", onnx.TensorProto.INT64: "INT64", onnx.TensorProto.BOOL: "BOOL",
}  # fmt: skip
# Operators whose data are not their first input.
_DATA_INPUT = {"Where": 1}
MOST_LISTED = 5


class OperatorTable(Settings, frozen=True):
    """What one version of a runtime's parser takes.

    Attributes:
        name: of the runtime, with its version.
        opset: the newest of ONNX's operator sets that it reads.
        int64_as_int32: it narrows INT64 by itself.
        operators: operators' names by the types that their data may have, as words.
    """

    name: str
    opset: int
    int64_as_int32: bool
    operators: dict[str, list[str]]

    def types(self) -> dict[str, frozenset[str]]:
        """The types by operator."""
        return {name: frozenset(types.split()) for types, names in self.operators.items() for name in names}


@dataclass(frozen=True)
class Finding:
    """A node that a parser refuses.

    Attributes:
        node: its name in the graph.
        operator: ONNX's name for what it does.
        problem: what is wrong, and what to change.
    """

    node: str
    operator: str
    problem: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.operator} {self.node!r}: {self.problem}"


def tensorrt_tables() -> list[OperatorTable]:
    """The tables of all versions, oldest first."""
    files = [file for file in resources.files(__name__).iterdir() if file.name.endswith(".toml")]
    tables = [from_toml(OperatorTable, file.read_text("utf-8"), file.name) for file in files]
    return sorted(tables, key=lambda table: table.opset)


def check_operators(
    heads: Mapping[Precision, bytes], tail: bytes, targets: Sequence[Target], progress: Progress
) -> dict[str, dict[str, list[str]]]:
    """What TensorRT's parsers refuse of a bundle's networks: by part and version, each finding a line.

    Nothing is checked where no target has TensorRT. A head that another backend of the target runs is told of in a note.

    Raises:
        ExportError: a target has no backend but TensorRT, and no head goes through its parser.
    """
    wanting = [target for target in targets if "tensorrt" in target.backends]
    found: dict[str, dict[str, list[str]]] = {}
    if not wanting:
        return found
    for part, model in [*((f"{precision} head", head) for precision, head in heads.items()), ("tail", tail)]:
        by_version = {table.name: [str(f) for f in findings(model, table)] for table in tensorrt_tables()}
        refused = {name: lines for name, lines in by_version.items() if lines}
        if not refused:
            continue
        found[part] = {name: lines[:MOST_LISTED] for name, lines in refused.items()}
        if part != "tail":  # tails run on servers, by ONNX Runtime
            name, lines = next(iter(refused.items()))
            more = f" (and {len(lines) - 1} more nodes)" if len(lines) > 1 else ""
            progress.note(f"{name} does not take the {part}, {lines[0]}{more}")
    refused_heads = [precision for precision in heads if f"{precision} head" in found]
    for target in wanting:
        if target.backends == ["tensorrt"] and len(refused_heads) == len(heads):
            name, lines = next(iter(found[f"{refused_heads[0]} head"].items()))
            raise ExportError(
                f"{target.name} has no backend but TensorRT, and {name} does not take the head, {lines[0]}"
            )
    return found


def findings(model: bytes, table: OperatorTable) -> list[Finding]:
    """The nodes of an ONNX model that a parser refuses, in their order."""
    proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(model))
    opset = next(entry.version for entry in proto.opset_import if entry.domain in {"", "ai.onnx"})
    found = []
    if opset > table.opset:
        found.append(
            Finding(proto.graph.name, "Graph", f"it is of opset {opset}; {table.name} reads up to {table.opset}")
        )
    checker = _Checker(proto.graph, table)
    for node in proto.graph.node:
        problems = [problem for problem in (checker.problem(node),) if problem]
        found += [Finding(node.name, node.op_type, problem) for problem in problems]
    return found


class _Checker:
    def __init__(self, graph: onnx.GraphProto, table: OperatorTable) -> None:
        self.table = table
        self.types = table.types()
        self.of_value = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
        self.of_value |= {t.name: t.data_type for t in graph.initializer}
        self.weights = {t.name: t for t in graph.initializer}
        self.ends = {v.name for v in (*graph.input, *graph.output)}

    def problem(self, node: onnx.NodeProto) -> str | None:
        """What is wrong with a node; None if nothing is."""
        if node.domain not in {"", "ai.onnx"} or node.op_type not in self.types:
            return f"{self.table.name} has no such operator; build the encoder without it, or cut before it"
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"} and (problem := self._quantization(node)):
            return problem
        if bytes_ := {value for value in (*node.input, *node.output) if self._type(value) == "UINT8"}:
            if node.op_type == "Cast" and bytes_ <= self.ends:
                return None
            return "bytes are taken at the network's ends alone, and by Cast; cast to float first"
        place = _DATA_INPUT.get(node.op_type, 0)
        seen = self._type(node.input[place] if len(node.input) > place else node.output[0])
        if seen is not None and seen not in self.types[node.op_type]:
            return f"its data are {seen}; {self.table.name} takes {', '.join(sorted(self.types[node.op_type]))}"
        return None

    def _type(self, value: str) -> str | None:
        """TensorRT's name for a value's type; None where shape inference does not tell."""
        kind = self.of_value.get(value)
        if not kind:
            return None
        name = _TYPES.get(kind) or onnx.TensorProto.DataType.Name(kind)
        return "INT32" if name == "INT64" and self.table.int64_as_int32 else name

    def _quantization(self, node: onnx.NodeProto) -> str | None:
        zero = node.input[2] if len(node.input) > 2 else ""
        values = onnx.numpy_helper.to_array(self.weights[zero]) if zero in self.weights else None
        if values is not None and values.dtype == "int8" and not values.any():
            return None
        return (
            "only INT8 with a zero point of 0 is taken; the int8 head is for ONNX Runtime. "
            "Use fp16 there, or compile a bundle for targets that prefer TensorRT alone"
        )
