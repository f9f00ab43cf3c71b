"""What TensorRT and ONNX Runtime take, said at compile time."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import bundles

from narrowcast.compiler.errors import ExportError
from narrowcast.compiler.operators import check_local, check_operators, findings, onnxruntime_table, tensorrt_tables
from narrowcast.compiler.precision import to_fp16, to_int8
from narrowcast.compiler.progress import SILENT
from narrowcast.devices.targets import load_target

TABLES = {table.name: table for table in tensorrt_tables()}
OLD, NEW = TABLES["TensorRT 8.6"], TABLES["TensorRT 10"]
RUNTIME = onnxruntime_table()


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
    for table in (*TABLES.values(), RUNTIME):
        names = [name for group in table.operators.values() for name in group]
        assert len(names) == len(set(names))
        assert {"Conv", "Relu", "Clip", "Round", "Cast", "Gather", "QuantizeLinear", "DequantizeLinear"} <= set(names)
    assert [table.opset for table in tensorrt_tables()] == [17, 24]


@pytest.mark.parametrize("table", [*TABLES.values(), RUNTIME], ids=lambda table: table.name)
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


def test_the_table_of_onnx_runtime_is_of_the_oldest_that_boards_may_have():
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8")
    (oldest,) = re.findall(r'^head = \[.*"onnxruntime>=([\d.]+),', text, re.MULTILINE)
    assert RUNTIME.name == f"ONNX Runtime {oldest}"


class TestOnnxRuntime:
    """The oldest that boards may have."""

    @staticmethod
    def convolutions() -> bytes:
        """x [1, 2, 8, 8] -> five convolutions -> y."""
        value, random = helper.make_tensor_value_info, np.random.default_rng(0)
        nodes = [
            helper.make_node("Conv", [f"v{k}", f"w{k}"], [f"v{k + 1}"], f"conv{k}", pads=[1, 1, 1, 1]) for k in range(5)
        ]
        nodes.insert(0, node("Transpose", ["planes"], ["v0"], perm=[0, 3, 1, 2]))
        nodes.insert(0, node("Cast", ["image"], ["planes"], to=TensorProto.FLOAT))
        weights = [(f"w{k}", random.normal(size=(3, 3, 3, 3)).astype(np.float32)) for k in range(5)]
        image = value("image", TensorProto.UINT8, [1, 8, 8, 3])
        return bundles.onnx_model(nodes, [image], [value("v5", TensorProto.FLOAT, [1, 3, 8, 8])], weights)

    @pytest.mark.parametrize("symmetric", [False, True])
    def test_heads_in_lower_precisions_are_taken(self, symmetric):
        exact, frames = self.convolutions(), np.zeros((2, 8, 8, 3), np.uint8)
        quantized = to_int8(exact, frames, symmetric=symmetric)
        assert {"QuantizeLinear", "DequantizeLinear"} <= {
            n.op_type for n in onnx.load_from_string(quantized).graph.node
        }
        assert [findings(model, RUNTIME) for model in (exact, to_fp16(exact), quantized)] == [[], [], []]

    def test_what_later_versions_alone_read(self):
        (found,) = findings(network([node("Relu")], opset=22), RUNTIME)
        assert "opset 22; ONNX Runtime 1.20 reads up to 21" in found.problem
        model = onnx.load_from_string(network([node("Relu")]))
        model.ir_version = 11
        (found,) = findings(model.SerializeToString(), RUNTIME)
        assert "IR version 11; ONNX Runtime 1.20 reads up to 10" in found.problem

    def test_types(self):
        assert findings(between_casts("Abs", TensorProto.INT64), RUNTIME) == []
        assert findings(between_casts("Sigmoid", TensorProto.FLOAT16), RUNTIME) == []  # casts are put around it
        (found,) = findings(between_casts("ReduceMean", TensorProto.INT64), RUNTIME)
        assert found.problem == "its data are INT64; ONNX Runtime 1.20 takes FP32, FP64, INT32"

    def test_values_are_quantized_to_eight_bits(self):
        def quantizing(zero) -> bytes:
            nodes = [node("QuantizeLinear", ["x", "scale", "zero"], ["q"]), node("Cast", ["q"], to=TensorProto.FLOAT)]
            return network(nodes, constants=[("scale", np.float32(0.1)), ("zero", zero)], opset=21)

        assert findings(quantizing(np.uint8(7)), RUNTIME) == []
        (found,) = findings(quantizing(np.int16(0)), RUNTIME)
        assert found.problem == "it quantizes to INT16; ONNX Runtime 1.20 takes INT8, UINT8"

    def test_domains(self):
        def of(domain: str, name: str) -> bytes:
            model = onnx.load_from_string(network([node("Relu")]))
            model.graph.node[0].op_type, model.graph.node[0].domain = name, domain
            model.opset_import.append(helper.make_opsetid(domain, 1))
            return model.SerializeToString()

        assert findings(of("com.microsoft", "Gelu"), RUNTIME) == []
        (found,) = findings(of("org.example", "Gelu"), RUNTIME)
        assert "ONNX Runtime 1.20 has no such operator in the domain org.example" in found.problem


class TestCheckOperators:
    """For a bundle's networks and targets."""

    good, bad = network([node("Relu")]), network([node("Det")])
    unknown = bundles.onnx_model(
        [node("DeformConv", ["x", "w", "o"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 1, 1]) for name in ("x", "w", "o")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, 1])], [], 19,
    )  # fmt: skip
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

    def test_heads_that_the_oldest_onnx_runtime_refuses_are_a_note(self):
        for targets in ([self.pi], []):  # without targets, boards are taken to have ONNX Runtime
            notes = Notes()
            found = check_operators({"fp32": self.good, "int8": self.unknown}, self.unknown, targets, notes)
            assert set(found) == {"int8 head"}
            (line,) = notes.lines
            assert line.startswith(
                "ONNX Runtime 1.20 does not take the int8 head, DeformConv 'the_DeformConv': ONNX Runtime"
            )
            assert line.endswith("; boards need a later version")
        only = msgspec.structs.replace(self.jetson, backends=["tensorrt"])
        assert check_operators({"fp32": self.unknown, "fp16": self.good}, self.good, [only], Notes()).keys() == {
            "fp32 head"
        }

    def test_so_are_the_uncut_network_and_the_exit(self):
        notes = Notes()
        found = check_local({"fp32": self.good, "int8": self.unknown}, self.unknown, [self.pi], notes)
        assert {part: list(versions) for part, versions in found.items()} == {
            "int8 whole network": [RUNTIME.name], "local exit": [RUNTIME.name],
        }  # fmt: skip
        assert [line.split(", ")[0] for line in notes.lines] == [
            "ONNX Runtime 1.20 does not take the int8 whole network", "ONNX Runtime 1.20 does not take the local exit",
        ]  # fmt: skip
        assert check_local({}, None, [self.pi], notes) == {}

    def test_tensorrt_is_asked_for_what_it_may_run_without_a_server(self):
        notes = Notes()
        wholes = {"fp32": network([node("Relu")], opset=18), "int8": self.good}
        found = check_local(wholes, self.bad, [self.jetson], notes)
        assert {part: list(versions) for part, versions in found.items()} == {
            "fp32 whole network": ["TensorRT 8.6"], "local exit": list(TABLES),
        }  # fmt: skip
        assert notes.lines[0].startswith(
            "TensorRT 8.6 does not take the fp32 whole network, Graph 'test': it is of opset 18"
        )
        assert notes.lines[1].startswith("TensorRT 8.6 does not take the local exit, Det 'the_Det'")
        only = msgspec.structs.replace(self.jetson, backends=["tensorrt"])
        assert check_local({"fp32": self.bad}, self.bad, [only], notes)  # a board does without them: no error

    def test_a_board_that_could_run_nothing_is_an_error(self):
        only = msgspec.structs.replace(self.jetson, backends=["tensorrt"])
        with pytest.raises(ExportError, match=r"jetson-orin-nano has no backend but TensorRT.* Det 'the_Det'"):
            check_operators({"fp32": self.bad, "fp16": self.bad}, self.good, [only], SILENT)
        assert check_operators({"fp32": self.bad, "fp16": self.good}, self.good, [only], SILENT)
