"""ONNX's operators in torch: those that exported tails and networks are made of.

Each function takes an operator's inputs, in their order, and its attributes, by ONNX's names. What it does not take is
refused when a network is built, by name. Semantics: onnx.ai, *ONNX Operators*, opsets 13 to 23.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Ints = Sequence[int] | Tensor
_F = Callable[..., Any]


@dataclass(frozen=True)
class Operator:
    """How torch runs an operator.

    Attributes:
        function: inputs and attributes to its output, or a tuple of them.
        host: inputs that are shapes, axes and bounds; they are given as Python numbers where they are constants.
        outputs: how many it has; None for as many as the node names.
    """

    function: _F
    host: frozenset[int] = frozenset()
    outputs: int | None = 1


OPERATORS: dict[str, Operator] = {}


def operator(*names: str, host: Sequence[int] = (), outputs: int | None = 1) -> Callable[[_F], _F]:
    """Registers a function for operators; see :class:`Operator`."""

    def register(function: _F) -> _F:
        for name in names:
            OPERATORS[name] = Operator(function, frozenset(host), outputs)
        return function

    return register


def ints(value: Ints) -> list[int]:
    """A shape, axes or bounds as Python numbers."""
    return [int(one) for one in (value.tolist() if isinstance(value, Tensor) else value)]


def together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """On one device. Shapes are computed on the CPU, and meet what is on a GPU now and then."""
    if len({tensor.device for tensor in tensors}) == 1:
        return tensors
    device = next(tensor.device for tensor in tensors if tensor.device.type != "cpu")
    return tuple(tensor.to(device) for tensor in tensors)


# Value by value. Named functions, since a graph's code names what it calls.

_UNARY: dict[str, _F] = {
    "Abs": torch.abs, "Ceil": torch.ceil, "Cos": torch.cos, "Erf": torch.erf, "Exp": torch.exp, "Floor": torch.floor,
    "Log": torch.log, "Mish": F.mish, "Neg": torch.neg, "Not": torch.logical_not, "Reciprocal": torch.reciprocal,
    "Relu": torch.relu, "Round": torch.round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin,
    "Softplus": F.softplus, "Sqrt": torch.sqrt, "Tanh": torch.tanh,
}  # fmt: skip
OPERATORS.update({name: Operator(function) for name, function in _UNARY.items()})


def _binary(name: str, function: _F) -> None:
    def run(a: Tensor, b: Tensor) -> Any:
        return function(*together(a, b))

    run.__name__ = run.__qualname__ = f"_{name.lower()}"
    globals()[run.__name__] = run  # a graph's code finds it there
    OPERATORS[name] = Operator(run)


_BINARY: dict[str, _F] = {
    "Add": torch.add, "And": torch.logical_and, "Equal": torch.eq, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
    "Less": torch.lt, "LessOrEqual": torch.le, "Mul": torch.mul, "Or": torch.logical_or, "Sub": torch.sub,
    "Xor": torch.logical_xor,
}  # fmt: skip
for _name, _function in _BINARY.items():
    _binary(_name, _function)


@operator("Div")
def _div(a: Tensor, b: Tensor) -> Tensor:
    a, b = together(a, b)
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Mod")
def _mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    a, b = together(a, b)
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@operator("Pow")
def _pow(a: Tensor, b: Tensor) -> Tensor:
    a, b = together(a, b)
    return torch.pow(a, b).to(a.dtype)


@operator("Max")
def _max(*values: Tensor) -> Tensor:
    return functools.reduce(torch.maximum, together(*values))


@operator("Min")
def _min(*values: Tensor) -> Tensor:
    return functools.reduce(torch.minimum, together(*values))


@operator("Sum")
def _sum(*values: Tensor) -> Tensor:
    return functools.reduce(torch.add, together(*values))


@operator("Where")
def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    condition, a, b = together(condition, a, b)
    return torch.where(condition, a, b)


@operator("Identity", "Dropout")  # nothing is dropped outside training
def _identity(x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None, *, seed: int = 0) -> Tensor:
    return x


@operator("Clip", host=(1, 2))
def _clip(x: Tensor, least: Any = None, most: Any = None) -> Tensor:
    x = x if least is None else torch.clamp(x, min=least)
    return x if most is None else torch.clamp(x, max=most)


@operator("Elu")
def _elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@operator("Gelu")
def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


@operator("HardSigmoid")
def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


@operator("HardSwish")
def _hard_swish(x: Tensor) -> Tensor:
    return F.hardswish(x)


@operator("LeakyRelu")
def _leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@operator("PRelu")
def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


_TYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


@operator("Cast")
def _cast(x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    return x.to(_TYPES[to])


# Networks' layers.


def _pairs(pads: Sequence[int] | None, rank: int) -> list[tuple[int, int]]:
    """Begin and end of each axis."""
    found = [0] * (2 * rank) if pads is None else list(pads)
    return list(zip(found[:rank], found[rank:], strict=True))


def _padded(x: Tensor, pairs: Sequence[tuple[int, int]], value: float) -> tuple[Tensor, list[int]]:
    """What is left for the layer to pad, by itself and alike at both ends; the rest is done here."""
    if all(begin == end for begin, end in pairs):
        return x, [begin for begin, _ in pairs]
    flat = [amount for pair in reversed(pairs) for amount in pair]
    return F.pad(x, flat, value=value), [0] * len(pairs)


def _explicit(auto_pad: str) -> None:
    if auto_pad not in ("NOTSET", "VALID"):
        raise ValueError(f"auto_pad {auto_pad!r}")


_CONV = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_CONV_TRANSPOSE = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}
_MAX_POOL: dict[int, _F] = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}
_AVERAGE_POOL: dict[int, _F] = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}


@operator("Conv")
def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None, group: int = 1, kernel_shape: Sequence[int] = (),
    pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    _explicit(auto_pad)
    rank = x.ndim - 2
    x, padding = _padded(x, _pairs(pads, rank), 0.0)
    return _CONV[x.ndim](x, weight, bias, strides or [1] * rank, padding, dilations or [1] * rank, group)


@operator("ConvTranspose")
def _conv_transpose(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None, group: int = 1, kernel_shape: Sequence[int] = (),
    output_padding: Sequence[int] | None = None, pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    _explicit(auto_pad)
    rank = x.ndim - 2
    ones = [1] * rank
    # A pad takes away from the output. What its end loses more than its start, or less, is cut off or added behind.
    pairs = _pairs(pads, rank)
    least = [min(pair) for pair in pairs]
    y = _CONV_TRANSPOSE[x.ndim](
        x, weight, bias, strides or ones, least, output_padding or [0] * rank, group, dilations or ones
    )
    cuts = [amount - low for pair, low in zip(reversed(pairs), reversed(least), strict=True) for amount in pair]
    return F.pad(y, [-cut for cut in cuts]) if any(cuts) else y


@operator("MaxPool")
def _max_pool(
    x: Tensor, *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0,
    dilations: Sequence[int] | None = None, pads: Sequence[int] | None = None, storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> Any:  # fmt: skip
    _explicit(auto_pad)
    rank = x.ndim - 2
    x, padding = _padded(x, _pairs(pads, rank), -torch.inf)
    ones = [1] * rank
    return _MAX_POOL[x.ndim](x, kernel_shape, strides or ones, padding, dilations or ones, bool(ceil_mode))


@operator("AveragePool")
def _average_pool(
    x: Tensor, *, kernel_shape: Sequence[int], auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
    pads: Sequence[int] | None = None, strides: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    _explicit(auto_pad)
    rank = x.ndim - 2
    pairs = _pairs(pads, rank)
    if not count_include_pad and any(begin != end for begin, end in pairs):
        raise ValueError(f"pads {list(pads or ())} that differ at both ends and do not count")
    x, padding = _padded(x, pairs, 0.0)
    counted = bool(count_include_pad)
    pooled: Tensor = _AVERAGE_POOL[x.ndim](x, kernel_shape, strides or [1] * rank, padding, bool(ceil_mode), counted)
    return pooled


@operator("GlobalAveragePool")
def _global_average_pool(x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def _global_max_pool(x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.ndim)), keepdim=True)


@operator("BatchNormalization")
def _batch_normalization(
    x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> Tensor:  # fmt: skip
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)


@operator("InstanceNormalization")
def _instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@operator("LayerNormalization")
def _layer_normalization(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    return F.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


@operator("MatMul")
def _matmul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@operator("Gemm")
def _gemm(
    a: Tensor, b: Tensor, c: Tensor | None = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0,
    transB: int = 0,
) -> Tensor:  # fmt: skip
    if transB and not transA and alpha == beta == 1 and (c is None or c.ndim == 1):
        return F.linear(a, b, c)
    y = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return y if c is None else y + beta * c


@operator("Einsum")
def _einsum(*values: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *values)


@operator("Softmax")
def _softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


@operator("LogSoftmax")
def _log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


# Reductions. Their axes became an input in opsets 13 and 18; before, they were an attribute of the same name.


def _reduction(name: str, function: Callable[[Tensor, list[int], bool], Tensor]) -> None:
    def run(x: Tensor, axes: Ints | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        over = [] if axes is None else ints(axes)
        if not over and noop_with_empty_axes:
            return x
        return function(x, over or list(range(x.ndim)), bool(keepdims))

    run.__name__ = run.__qualname__ = f"_{name.lower()}"
    globals()[run.__name__] = run
    OPERATORS[name] = Operator(run, frozenset({1}))


_reduction("ReduceL2", lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep))
_reduction("ReduceMax", torch.amax)
_reduction("ReduceMean", torch.mean)
_reduction("ReduceMin", torch.amin)
_reduction("ReduceSum", lambda x, axes, keep: torch.sum(x, axes, keep, dtype=x.dtype))


@operator("ArgMax")
def _argmax(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        raise ValueError("select_last_index")
    return torch.argmax(x, axis, bool(keepdims))


@operator("TopK", host=(1,), outputs=2)
def _topk(x: Tensor, k: Ints, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> Any:
    return torch.topk(x, ints(k)[0], axis, bool(largest), bool(sorted))
