"""ONNX in bundles: what is refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from support import bundles
from support.bundles import make, open_made

from narrowcast.transport.bundle import describe_part
from narrowcast.transport.errors import ExternalDataError, OnnxError, UnknownOperatorDomainError


def onnx_with(change) -> bytes:
    """The tail, changed."""
    model = onnx.load_from_string(bundles.tail_model())
    change(model)
    return model.SerializeToString()


def with_tail(tmp_path: Path, data: bytes) -> Path:
    """A signed bundle with another tail."""
    part = describe_part("tail.onnx", data, "tail", ["server"], precision="fp32")
    return make().with_part(part, data).write(tmp_path / "m.ncb")


@pytest.mark.parametrize("data", [b"", b"\x00" * 50, b"import os", onnx.ModelProto(ir_version=8).SerializeToString()])
def test_not_onnx(tmp_path, data):
    with pytest.raises(OnnxError, match=r"tail\.onnx is no ONNX model"):
        open_made(with_tail(tmp_path, data))


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def external_in_an_attribute(model: onnx.ModelProto) -> None:
    tensor = helper.make_tensor("hidden", TensorProto.FLOAT, [1], [1.0])
    tensor.external_data.add(key="location", value="weights.bin")
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def external_in_a_branch(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "branch", [], [])
    branch.initializer.append(helper.make_tensor("inner", TensorProto.FLOAT, [1], [1.0]))
    branch.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.node.append(helper.make_node("If", ["condition"], ["z"], then_branch=branch, else_branch=branch))


def external_in_a_sparse_tensor(model: onnx.ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.name = "sparse"
    sparse.values.data_location = TensorProto.EXTERNAL


def with_default(model: onnx.ModelProto, value) -> None:
    """Adds a function with an attribute that is ``value`` where its caller gives none."""
    node, opsets = helper.make_node("Identity", ["x"], ["y"]), [helper.make_opsetid("", 17)]
    default = helper.make_attribute("default", value)
    model.functions.append(helper.make_function("mine", "f", ["x"], ["y"], [node], opsets, [], [default]))


def external_in_a_functions_default(model: onnx.ModelProto) -> None:
    tensor = helper.make_tensor("hidden", TensorProto.FLOAT, [1], [1.0])
    tensor.external_data.add(key="location", value="weights.bin")
    with_default(model, tensor)


@pytest.mark.parametrize(
    "change",
    [
        external,
        external_in_an_attribute,
        external_in_a_branch,
        external_in_a_sparse_tensor,
        external_in_a_functions_default,
    ],
    ids=lambda f: f.__name__,
)
def test_external_data(tmp_path, change):
    with pytest.raises(ExternalDataError, match="lies outside the file"):
        open_made(with_tail(tmp_path, onnx_with(change)))


def foreign(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"


def foreign_in_a_branch(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([helper.make_node("Run", ["x"], ["y"], domain="evil")], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["condition"], ["z"], then_branch=branch, else_branch=branch))


def foreign_in_a_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Run", ["x"], ["y"], domain="evil")
    model.functions.append(helper.make_function("mine", "f", ["x"], ["y"], [node], [helper.make_opsetid("evil", 1)]))


def foreign_beside_a_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    model.functions.append(helper.make_function("mine", "f", ["x"], ["y"], [node], [helper.make_opsetid("", 17)]))
    model.graph.node.append(helper.make_node("other", ["x"], ["y"], domain="mine"))


def foreign_in_a_functions_default(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([helper.make_node("Run", ["x"], ["y"], domain="evil")], "branch", [], [])
    with_default(model, branch)


@pytest.mark.parametrize(
    "change",
    [
        foreign, foreign_in_a_branch, foreign_in_a_function, foreign_beside_a_function, foreign_in_a_functions_default,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_unknown_operator_domains(tmp_path, change):
    with pytest.raises(UnknownOperatorDomainError, match="domain"):
        open_made(with_tail(tmp_path, onnx_with(change)))


def test_a_models_own_functions_are_fine(tmp_path):
    def own(model: onnx.ModelProto) -> None:
        node = helper.make_node("Identity", ["x"], ["y"])
        model.functions.append(helper.make_function("mine", "f", ["x"], ["y"], [node], [helper.make_opsetid("", 17)]))
        model.graph.node.append(helper.make_node("f", ["output"], ["unused"], domain="mine"))

    open_made(with_tail(tmp_path, onnx_with(own)))
