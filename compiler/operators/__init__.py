"""Whether TensorRT and ONNX Runtime will take an exported network: said when it is compiled, not by the board.

What each version takes is data: one TOML file each, beside this one. Of ONNX Runtime it is the oldest version that boards
may have: every exported network is loaded and run when it is verified, but by the version that is installed here.
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

# ONNX's types by the tables' names for them; others have their own.
_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "FP32", onnx.TensorProto.FLOAT16: "FP16", onnx.TensorProto.BFLOAT16: "BF16",
    onnx.TensorProto.DOUBLE: "FP64",
}  # fmt: skip
# Domains of ONNX's own operators; the others' stand before the names in a table.
_OWN = frozenset({"", "ai.onnx"})
# Operators whose data are not their first input.
_DATA_INPUT = {"Where": 1}
MOST_LISTED = 5


class OperatorTable(Settings, frozen=True):
    """What one version of a runtime takes.

    Attributes:
        name: of the runtime, with its version.
        opset: the newest of ONNX's operator sets that it reads.
        operators: operators' names (with their domain, where they are not ONNX's own) by the types that their data may
            have, as words.
        ir_version: the newest of ONNX's file formats that it reads; None if that is not known.
        taken_for: types that it converts by itself, by what it makes of them.
        bytes_anywhere: UINT8 may stand inside a network, not only at its ends.
        zero_points: quantized values may have zero points, and be unsigned.
    """

    name: str
    opset: int
    operators: dict[str, list[str]]
    ir_version: int | None = None
    taken_for: dict[str, str] = {}
    bytes_anywhere: bool = False
    zero_points: bool = False

    def types(self) -> dict[str, frozenset[str]]:
        """The types by operator."""
        return {name: frozenset(types.split()) for types, names in self.operators.items() for name in names}


@dataclass(frozen=True)
class Finding:
    """A node that a runtime refuses.

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
    return _tables("tensorrt")


def onnxruntime_table() -> OperatorTable:
    """The table of the oldest version that boards may have."""
    (table,) = _tables("onnxruntime")
    return table


def _tables(runtime: str) -> list[OperatorTable]:
    files = [file for file in resources.files(__name__).iterdir() if file.name.startswith(f"{runtime}-")]
    tables = [from_toml(OperatorTable, file.read_text("utf-8"), file.name) for file in files]
    return sorted(tables, key=lambda table: table.opset)


def check_operators(
    heads: Mapping[Precision, bytes], tail: bytes, targets: Sequence[Target], progress: Progress
) -> dict[str, dict[str, list[str]]]:
    """What runtimes refuse of a bundle's heads and tail: by part and version, each finding a line.

    Heads are checked for TensorRT where a target has it, and for the oldest ONNX Runtime where a target has that (or there
    are none). What a head is refused for is told in a note: another backend of the target runs it, or a later ONNX Runtime.
    Tails run on servers; for these, TensorRT's findings are listed without a note.

    Raises:
        ExportError: a target has no backend but TensorRT, and no head goes through its parser.
    """
    found = {part: _refused(head, part, targets, progress) for part, head in _named(heads, "head").items()}
    tensorrt = tensorrt_tables()
    refusals = [refusal for refused in found.values() if (refusal := _first(tensorrt, refused)) is not None]
    for target in targets:
        if target.backends == ["tensorrt"] and len(refusals) == len(found):
            raise ExportError(f"{target.name} has no backend but TensorRT, and {_said(refusals[0], 'head')}")
    if any("tensorrt" in target.backends for target in targets):
        found["tail"] = {name: lines[:MOST_LISTED] for name, lines in _lines(tail, tensorrt).items()}
    return {part: refused for part, refused in found.items() if refused}


def check_local(
    wholes: Mapping[Precision, bytes], local_exit: bytes | None, targets: Sequence[Target], progress: Progress
) -> dict[str, dict[str, list[str]]]:
    """The same for what boards run without a server: the uncut network in its precisions, and the local exit.

    Boards can do without them, so nothing is an error.
    """
    parts = _named(wholes, "whole network")
    if local_exit is not None:
        parts["local exit"] = local_exit
    found = {part: _refused(model, part, targets, progress) for part, model in parts.items()}
    return {part: refused for part, refused in found.items() if refused}


def _named(networks: Mapping[Precision, bytes], what: str) -> dict[str, bytes]:
    return {f"{precision} {what}": model for precision, model in networks.items()}


def _refused(model: bytes, part: str, targets: Sequence[Target], progress: Progress) -> dict[str, list[str]]:
    """What the targets' runtimes refuse of a network, by version; the first finding of each runtime is told in a note."""
    backends = {backend for target in targets for backend in target.backends} or {"onnxruntime"}
    tables = {"tensorrt": tensorrt_tables(), "onnxruntime": [onnxruntime_table()]}
    found: dict[str, list[str]] = {}
    for runtime in (name for name in tables if name in backends):
        refused = _lines(model, tables[runtime])
        if (first := _first(tables[runtime], refused)) is not None:
            later = "; boards need a later version" if runtime == "onnxruntime" else ""
            progress.note(f"{_said(first, part)}{later}")
        found |= refused
    return {name: lines[:MOST_LISTED] for name, lines in found.items()}


def _lines(model: bytes, tables: Sequence[OperatorTable]) -> dict[str, list[str]]:
    by_version = {table.name: [str(finding) for finding in findings(model, table)] for table in tables}
    return {name: lines for name, lines in by_version.items() if lines}


def _first(tables: Sequence[OperatorTable], refused: Mapping[str, list[str]]) -> tuple[str, list[str]] | None:
    """The oldest version that refuses something, and what; None if all take the network."""
    return next(((table.name, refused[table.name]) for table in tables if table.name in refused), None)


def _said(refusal: tuple[str, list[str]], part: str) -> str:
    name, lines = refusal
    more = f" (and {len(lines) - 1} more nodes)" if len(lines) > 1 else ""
    return f"{name} does not take the {part}, {lines[0]}{more}"


def findings(model: bytes, table: OperatorTable) -> list[Finding]:
    """The nodes of an ONNX model that a runtime refuses, in their order; before them, what is wrong with all of it."""
    proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(model))
    opset = next(entry.version for entry in proto.opset_import if entry.domain in _OWN)
    found = []
    if opset > table.opset:
        found.append(
            Finding(proto.graph.name, "Graph", f"it is of opset {opset}; {table.name} reads up to {table.opset}")
        )
    if table.ir_version is not None and proto.ir_version > table.ir_version:
        problem = f"it is of ONNX's IR version {proto.ir_version}; {table.name} reads up to {table.ir_version}"
        found.append(Finding(proto.graph.name, "Graph", problem))
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
        own = node.domain in _OWN
        name = node.op_type if own else f"{node.domain}.{node.op_type}"
        if name not in self.types:
            where = "" if own else f" in the domain {node.domain}"
            return (
                f"{self.table.name} has no such operator{where}; build the network without it, or cut a head before it"
            )
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"} and (problem := self._quantization(node)):
            return problem
        if not self.table.bytes_anywhere and (bytes_ := self._bytes(node)):
            if node.op_type == "Cast" and bytes_ <= self.ends:
                return None
            return "bytes are taken at the network's ends alone, and by Cast; cast to float first"
        place = _DATA_INPUT.get(node.op_type, 0)
        seen = self._type(node.input[place] if len(node.input) > place else node.output[0])
        if seen is not None and seen not in self.types[name]:
            return f"its data are {seen}; {self.table.name} takes {', '.join(sorted(self.types[name]))}"
        return None

    def _bytes(self, node: onnx.NodeProto) -> set[str]:
        return {value for value in (*node.input, *node.output) if self._type(value) == "UINT8"}

    def _type(self, value: str) -> str | None:
        """The tables' name for what a value's type is taken for; None where shape inference does not tell."""
        kind = self.of_value.get(value)
        if not kind:
            return None
        name = _TYPES.get(kind) or onnx.TensorProto.DataType.Name(kind)
        return self.table.taken_for.get(name, name)

    def _quantization(self, node: onnx.NodeProto) -> str | None:
        if self.table.zero_points:
            return self._quantized(node)
        zero = node.input[2] if len(node.input) > 2 else ""
        values = onnx.numpy_helper.to_array(self.weights[zero]) if zero in self.weights else None
        if values is not None and values.dtype == "int8" and not values.any():
            return None
        return (
            "only INT8 with a zero point of 0 is taken; this form of int8 is for ONNX Runtime. "
            "Use fp16 there, or compile a bundle for targets that prefer TensorRT alone"
        )

    def _quantized(self, node: onnx.NodeProto) -> str | None:
        """The type that values are quantized to is that of an output; what reads them says which there may be."""
        if node.op_type == "DequantizeLinear":
            return None
        twin = "DequantizeLinear" if node.domain in _OWN else f"{node.domain}.DequantizeLinear"
        seen, taken = self._type(node.output[0]), self.types[twin] - {"INT32"}  # biases are, which nothing quantizes to
        if seen is None or seen in taken:
            return None
        return f"it quantizes to {seen}; {self.table.name} takes {', '.join(sorted(taken))}"
