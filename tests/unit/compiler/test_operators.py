"""What TensorRT's parsers take, said at compile time."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import bundles

from narrowcast.compiler.errors import ExportError
from narrowcast.compiler.operators import check_operators, findings, tensorrt_tables
from narrowcast.compiler.progress import SILENT
from narrowcast.devices.targets import load_target

TABLES = {table.name: table for table in tensorrt_tables()}
OLD, NEW = TABLES["TensorRT 8.6"], TABLES["TensorRT 10"]


def network(nodes: list[onnx.NodeProto], *, opset: int = 17, constants=(), kind=TensorProto.FLOAT) -> bytes:
    """x [1, 4] -> y, through ``nodes``."""
    value = helper.make_tensor_value_info
    return bundles.onnx_model(
        nodes, [value("x", kind, [1, 4])], [value("y", TensorProto.FLOAT, [1, 4])], list(constants), opset
    )


def node(operator: str, inputs=("x",), outputs=("y",), **attributes) -> onnx.NodeProto:
    return helper.make_node(operator, list(inputs), list(outputs), f"the_{operator}", **attributes)


class Notes:
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)

    def task(self, title: str, total: int, unit: str):
        return SILENT.task(title, total, unit)


def test_every_table_knows_each_operator_once():
    for table in TABLES.values():
        names = [name for group in table.operators.values() for name in group]
        assert len(names) == len(set(names))
        assert {"Conv", "Relu", "Clip", "Round", "Cast", "Gather", "QuantizeLinear", "DequantizeLinear"} <= set(names)
    assert [table.opset for table in tensorrt_tables()] == [17, 24]


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_what_is_supported_is_not_found_fault_with(table):
    assert findings(network([node("Relu")]), table) == []
    nodes = [node("Cast", outputs=["f"], to=TensorProto.FLOAT), node("Abs", ["f"])]
    assert findings(network(nodes, kind=TensorProto.UINT8), table) == []


def test_an_operator_that_is_missing_is_named():
    (found,) = findings(network([node("Det")], constants=[]), OLD)
    assert (found.node, found.operator) == ("the_Det", "Det")
    assert "TensorRT 8.6 has no such operator" in str(found)
    (only,) = findings(network([node("Hardmax")]), OLD)
    assert only.operator == "Hardmax"
    assert findings(network([node("Hardmax")]), NEW) == []


def test_bytes_must_be_cast_first():
    nodes = [node("Transpose", outputs=["t"], perm=[1, 0]), node("Cast", ["t"], to=TensorProto.FLOAT)]
    found = findings(network(nodes, kind=TensorProto.UINT8), NEW)
    assert [f.operator for f in found] == ["Transpose", "Cast"]
    assert "cast to float first" in found[0].problem


def between_casts(operator: str, to: int) -> bytes:
    """x -> Cast -> operator -> Cast -> y."""
    back = node("Cast", ["r"], to=TensorProto.FLOAT)
    back.name = "back"
    return network([node("Cast", outputs=["i"], to=to), node(operator, ["i"], ["r"]), back])


def test_types():
    assert findings(between_casts("Abs", TensorProto.INT64), OLD) == []  # narrowed to INT32
    assert findings(between_casts("Neg", TensorProto.INT64), NEW) == []
    (found,) = findings(between_casts("Clip", TensorProto.INT32), OLD)
    assert found.problem == "its data are INT32; TensorRT 8.6 takes FP16, FP32"


def test_a_newer_opset():
    (found,) = findings(network([node("Relu")], opset=18), OLD)
    assert "opset 18; TensorRT 8.6 reads up to 17" in found.problem


@pytest.mark.parametrize(
    ("zero", "fine"), [(np.int8(0), True), (np.int8(3), False), (np.uint8(0), False), (None, False)], ids=str
)
def test_quantization_is_int8_around_zero(zero, fine):
    constants = [("scale", np.float32(0.1))] + ([("zero", zero)] if zero is not None else [])
    more = ["zero"] if zero is not None else []
    nodes = [node("QuantizeLinear", ["x", "scale", *more], ["q"]), node("DequantizeLinear", ["q", "scale", *more])]
    found = findings(network(nodes, constants=constants), OLD)
    assert (found == []) == fine
    if not fine:
        assert "only INT8 with a zero point of 0" in found[0].problem


class TestCheckOperators:
    """For a bundle's networks and targets."""

    good, bad = network([node("Relu")]), network([node("Det")])
    jetson, pi = load_target("jetson-orin-nano"), load_target("rpi5")

    def test_nothing_is_said_where_no_board_has_tensorrt(self):
        notes = Notes()
        assert check_operators({"fp32": self.bad}, self.bad, [self.pi], notes) == {}
        assert notes.lines == []

    def test_a_head_that_another_backend_can_run_is_a_note(self):
        notes = Notes()
        found = check_operators({"fp32": self.good, "int8": self.bad}, self.good, [self.pi, self.jetson], notes)
        assert set(found) == {"int8 head"}
        assert set(found["int8 head"]) == set(TABLES)
        (line,) = notes.lines
        assert line.startswith("TensorRT 8.6 does not take the int8 head, Det 'the_Det'")

    def test_the_tail_is_listed_without_a_note(self):
        notes = Notes()
        assert set(check_operators({"fp32": self.good}, self.bad, [self.jetson], notes)) == {"tail"}
        assert notes.lines == []

    def test_a_board_that_could_run_nothing_is_an_error(self):
        only = msgspec.structs.replace(self.jetson, backends=["tensorrt"])
        with pytest.raises(ExportError, match=r"jetson-orin-nano has no backend but TensorRT.* Det 'the_Det'"):
            check_operators({"fp32": self.bad, "fp16": self.bad}, self.good, [only], SILENT)
        assert check_operators({"fp32": self.bad, "fp16": self.good}, self.good, [only], SILENT)
