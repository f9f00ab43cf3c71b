"""Every operator of the torch backend against ONNX Runtime."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("torch", reason="torch is not installed (pip install 'narrowcast[tail-torch]')")

import onnxruntime as ort

from narrowcast.tail.backends import BackendSettings
from narrowcast.tail.backends.torch import OPERATORS, TorchTail
from narrowcast.tail.errors import TailBackendError

RANDOM = np.random.default_rng(0)
F = np.float32
SETTINGS = BackendSettings(backend="torch", threads=1)


class Case(NamedTuple):
    """One node: what it is given as values, what as constants, and by which attributes."""

    operator: str
    values: list
    constants: list = []
    attributes: dict = {}
    opset: int = 18
    outputs: int = 1

    def __str__(self) -> str:
        return self.operator


def some(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(F)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


X = some(2, 3, 8, 8)
BITS = [RANDOM.integers(0, 2, (2, 3)).astype(bool) for _ in range(2)]
WHOLE = [ints(7, -7, 8, -8), ints(2, 2, -3, -3)]
UNARY = "Abs Ceil Cos Elu Erf Exp Floor GlobalAveragePool GlobalMaxPool HardSigmoid HardSwish Identity LeakyRelu "
UNARY += "Mish Neg Relu Round Sigmoid Sign Sin Softplus Tanh Softmax LogSoftmax Flatten Transpose Shape ArgMax"

CASES = [
    *(Case(name, [X]) for name in UNARY.split()),
    *(Case(name, [np.abs(X) + 0.1]) for name in ("Log", "Reciprocal", "Sqrt")),
    *(Case(name, [X, some(3, 1, 1)]) for name in ("Add", "Div", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    *(Case(name, [X, X.copy()]) for name in ("Mul", "Sub", "Equal", "LessOrEqual")),
    *(Case(name, WHOLE) for name in ("Add", "Div", "Mod", "Mul", "Sub")),
    *(Case(name, BITS) for name in ("And", "Or", "Xor")),
    *(Case(name, [X, some(8), some(2, 1, 8, 8)]) for name in ("Max", "Min", "Sum")),
    Case("Not", BITS[:1]),
    Case("Mod", [X, some(3, 1, 1)], attributes={"fmod": 1}),
    Case("Pow", [np.abs(X)], [np.array(1.7, F)]),
    Case("Where", [X > 0, X], [np.array(0, F)]),
    Case("Dropout", [X]),
    Case("Clip", [X], [np.array(-0.5, F), np.array(0.4, F)]),
    Case("Clip", [X, np.array(-0.5, F)]),
    Case("Gelu", [X], opset=20),
    Case("Gelu", [X], attributes={"approximate": "tanh"}, opset=20),
    Case("HardSigmoid", [X], attributes={"alpha": 1 / 6, "beta": 0.5}),
    Case("PRelu", [X], [np.abs(some(3, 1, 1))]),
    *(Case("Cast", [X * 10], attributes={"to": to}) for to in (TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT16)),
    Case("Conv", [X], [some(4, 3, 3, 3), some(4)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    Case("Conv", [X], [some(4, 3, 3, 3)], {"pads": [0, 1, 2, 1], "dilations": [2, 1]}),
    Case("Conv", [X], [some(6, 1, 3, 3)], {"group": 3}),
    Case("Conv", [some(2, 3, 9)], [some(4, 3, 2)], {"strides": [2]}),
    Case("ConvTranspose", [X], [some(3, 4, 3, 3), some(4)], {
        "pads": [1, 1, 1, 1], "strides": [2, 2], "output_padding": [1, 1],
    }),
    Case("ConvTranspose", [X], [some(3, 4, 3, 3)], {"pads": [0, 1, 1, 0]}),
    Case("MaxPool", [X], attributes={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    Case("MaxPool", [X], attributes={"kernel_shape": [3, 3], "pads": [0, 0, 1, 1], "strides": [2, 2]}),
    Case("MaxPool", [X], attributes={"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    Case("AveragePool", [X], attributes={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}),
    Case("AveragePool", [X], attributes={"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", [X], attributes={"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    Case("BatchNormalization", [X], [some(3), some(3), some(3), np.abs(some(3))], {"epsilon": 1e-3}),
    Case("InstanceNormalization", [X], [some(3), some(3)], {"epsilon": 1e-3}),
    Case("LayerNormalization", [some(2, 5, 8)], [some(8), some(8)], {"axis": -1, "epsilon": 1e-6}),
    Case("LayerNormalization", [X], [some(8, 8)], {"axis": 2}),
    Case("MatMul", [some(2, 4, 5), some(2, 5, 3)]),
    Case("MatMul", [some(2, 4, 5)], [some(5, 3)]),
    Case("Gemm", [some(2, 5)], [some(3, 5), some(3)], {"transB": 1}),
    Case("Gemm", [some(5, 2)], [some(5, 3), some(2, 3)], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", [some(2, 5)], [some(5, 3)]),
    Case("Einsum", [some(2, 4, 5), some(2, 3, 5)], attributes={"equation": "bij,bkj->bik"}),
    Case("Softmax", [X], attributes={"axis": 1}),
    *(Case(name, [X], [ints(2, 3)], {"keepdims": 0}) for name in OPERATORS if name.startswith("Reduce")),
    *(Case(name, [X]) for name in OPERATORS if name.startswith("Reduce")),
    Case("ReduceMean", [X], attributes={"axes": [-1], "keepdims": 1}, opset=17),
    Case("ReduceSum", [WHOLE[0]], [ints(0)]),
    Case("ReduceMax", [X], [ints()], {"noop_with_empty_axes": 1}),
    Case("ArgMax", [X], attributes={"axis": 1, "keepdims": 0}),
    Case("TopK", [some(2, 9)], [ints(3)], {"axis": 1}, outputs=2),
    Case("Shape", [X], attributes={"start": 1, "end": -1}),
    Case("Reshape", [X], [ints(0, -1, 4)]),
    Case("Reshape", [X], [ints(2, -1)], {"allowzero": 1}),
    Case("Reshape", [X, ints(2, -1)]),
    Case("Flatten", [X], attributes={"axis": 2}),
    Case("Flatten", [X], attributes={"axis": 0}),
    Case("Transpose", [X], attributes={"perm": [0, 2, 3, 1]}),
    Case("Squeeze", [some(2, 1, 3, 1)], [ints(1, -1)]),
    Case("Squeeze", [some(2, 1, 3, 1)]),
    Case("Unsqueeze", [some(2, 3)], [ints(-1, 0)]),
    Case("Expand", [some(2, 1, 3)], [ints(1, 4, 1)]),
    Case("Tile", [some(2, 3)], [ints(2, 1)]),
    Case("Concat", [X, some(2, 1, 8, 8)], attributes={"axis": 1}),
    Case("Split", [X], [ints(1, 2)], {"axis": 1}, outputs=2),
    Case("Split", [X], attributes={"axis": 2, "num_outputs": 3}, outputs=3),
    Case("Slice", [X], [ints(1, -3), ints(2**62, -1), ints(2, 3), ints(2, 1)]),
    Case("Slice", [X], [ints(-1), ints(-(2**62)), ints(3), ints(-2)]),
    Case("Slice", [X], [ints(0, 1), ints(1, 9)]),
    Case("Gather", [X], [ints(2, -1, 0)], {"axis": 1}),
    Case("Gather", [some(4, 5)], [np.array([[0, -2], [1, 3]])]),
    Case("Gather", [some(4, 5)], [np.array(1, np.int64)], {"axis": 1}),
    Case("GatherElements", [some(3, 4)], [np.array([[0, -1], [2, 3]])], {"axis": 1}),
    Case("ConstantOfShape", [ints(2, 3)], attributes={"value": numpy_helper.from_array(np.array([7], np.int64))}),
    Case("ConstantOfShape", [ints(2, 3)]),
    Case("Pad", [X], [ints(0, 0, 1, 2, 0, 0, 3, 0), np.array(1.5, F)]),
    Case("Pad", [X], [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "reflect"}),
    Case("Pad", [X], [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "edge"}),
    Case("DepthToSpace", [some(2, 12, 3, 4)], attributes={"blocksize": 2}),
    Case("DepthToSpace", [some(2, 12, 3, 4)], attributes={"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", [some(2, 3, 4, 6)], attributes={"blocksize": 2}),
    *(
        Case("Resize", [X], [np.zeros(0, F), np.zeros(0, F), ints(2, 3, height, width)], {
            "mode": mode, "coordinate_transformation_mode": transformation, **more,
        })
        for mode, more in (
            ("linear", {}), ("cubic", {}), ("nearest", {}), ("nearest", {"nearest_mode": "floor"}),
            ("nearest", {"nearest_mode": "ceil"}), ("nearest", {"nearest_mode": "round_prefer_ceil"}),
        )
        for transformation in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
        if mode == "nearest" or transformation != "asymmetric"
        for height, width in ((16, 24), (5, 3))
    ),
    Case("Resize", [X], [np.zeros(0, F), np.array([1, 1, 2, 1.5], F)], {"mode": "linear"}),
]  # fmt: skip


def model_of(case: Case) -> bytes:
    """The node alone; ``symbols`` and ``level`` are there because a tail has them."""
    value = helper.make_tensor_value_info
    kind = helper.np_dtype_to_tensor_dtype
    names = [f"value{k}" for k in range(len(case.values))] + [f"constant{k}" for k in range(len(case.constants))]
    outputs = [f"output{k}" for k in range(case.outputs)]
    node = helper.make_node(case.operator, names, outputs, name="node", **case.attributes)
    inputs = [value(f"value{k}", kind(a.dtype), [None] * a.ndim) for k, a in enumerate(case.values)]
    constants = [numpy_helper.from_array(a, f"constant{k}") for k, a in enumerate(case.constants)]
    inferred = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph([node], "one", inputs, inferred, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model).SerializeToString()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_is_what_onnx_runtime_makes_of_it(case):
    model = model_of(case)
    given = {f"value{k}": array for k, array in enumerate(case.values)}
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    expected = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, given)
    found = TorchTail(model, SETTINGS)._run(given, 2)
    assert len(found) == len(expected) == case.outputs
    for mine, theirs in zip(found.values(), expected, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        assert np.allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_every_operator_is_compared():
    assert OPERATORS.keys() == {case.operator for case in CASES}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            Case("NonZero", [X]),
            "operator 'NonZero', which the torch backend does not know; serve it with --backend onnx",
        ),
        (Case("Softmax", [X], opset=12), "opset 12; this backend runs 13 to 23"),
        (Case("AveragePool", [X], attributes={"kernel_shape": [2, 2], "dilations": [2, 2]}, opset=19), "dilations"),
        (Case("Dropout", [X], outputs=2), "'Dropout' .* with 2 outputs"),
    ],
)
def test_what_it_does_not_know_is_refused_by_name_when_it_is_loaded(case, message):
    with pytest.raises(TailBackendError, match=message):
        TorchTail(model_of(case), SETTINGS)


def test_operators_of_onnx_runtimes_own_and_functions_are_refused():
    model = onnx.load_from_string(model_of(Case("Relu", [X])))
    model.graph.node[0].domain = "com.microsoft"
    with pytest.raises(TailBackendError, match="'Relu' of the domain 'com.microsoft', which only ONNX Runtime runs"):
        TorchTail(model.SerializeToString(), SETTINGS)
    model.graph.node[0].domain = ""
    model.functions.add(name="mine", domain="own")
    with pytest.raises(TailBackendError, match=r"functions of its own \(mine\)"):
        TorchTail(model.SerializeToString(), SETTINGS)


def test_a_subgraph_is_refused():
    model = onnx.load_from_string(model_of(Case("Relu", [X])))
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node[0].attribute.append(helper.make_attribute("then_branch", inner))
    with pytest.raises(TailBackendError, match="'then_branch', which only ONNX Runtime runs"):
        TorchTail(model.SerializeToString(), SETTINGS)


def test_a_value_from_nowhere_is_refused():
    model = onnx.load_from_string(model_of(Case("Relu", [X])))
    model.graph.node[0].input[0] = "missing"
    with pytest.raises(TailBackendError, match="'missing' comes from nowhere"):
        TorchTail(model.SerializeToString(), SETTINGS)


def test_a_gpu_that_is_not_there():
    import torch

    from narrowcast.tail.errors import ProviderError

    number = torch.cuda.device_count() + 1
    with pytest.raises(ProviderError, match=f"GPU {number}"):
        TorchTail(model_of(Case("Relu", [X])), BackendSettings(backend="torch", device=number))
