"""What an operator has to do: its kind, and the quantities that its time is made of."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, prod
from typing import NamedTuple, Protocol

_BYTES = {"float": 4, "float16": 2, "uint8": 1, "int8": 1, "int32": 4, "int64": 8, "double": 8, "bool": 1}
_CONVOLUTIONS = frozenset({"Conv", "FusedConv", "QLinearConv", "ConvTranspose", "NhwcFusedConv"})
_PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul", "FusedGemm", "QGemm", "QLinearMatMul", "MatMulInteger"})
# The image's channels, and the gain's or an alpha's.
_STEM_CHANNELS = 4
# Operators whose time does not depend on which one of them it is: they only tell of shapes.
_FREE = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Constant"})


class Tensor(Protocol):
    """A type and a shape."""

    @property
    def dtype(self) -> str:
        """ONNX Runtime's name of it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sides."""


class Operation(NamedTuple):
    """One operator on one machine's runtime.

    Attributes:
        kind: what is fitted together: ``conv dense float``, ``Mul float``.
        macs: multiply-accumulates.
        moved: bytes of activations read and written.
        weights: bytes of weights.
        sums: of convolutions partial sums, outputs times taps of the kernel, which few input channels make expensive; of
            operators on numbers the stretches of memory that one value or row of the smaller operand is for.
        coordinates: where it lies among its like: logarithms of multiply-accumulates, channels and places.
    """

    kind: str
    macs: float
    moved: float
    weights: float
    sums: float
    coordinates: tuple[float, ...]

    @property
    def features(self) -> tuple[float, ...]:
        """What the fit multiplies with its coefficients; the first is the operator's own overhead."""
        return 1.0, self.macs, self.moved, self.weights, self.sums


def operation(op: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Operation:
    """An operator as ONNX Runtime runs it, with all its inputs (weights among them)."""
    dtype = inputs[0].dtype if inputs else "float"
    if op in _FREE:
        return Operation("free", 0.0, 0.0, 0.0, 0.0, (0.0,))
    if op in _CONVOLUTIONS:
        return _convolution(op, dtype, inputs, outputs)
    if op in _PRODUCTS:
        return _product(dtype, inputs, outputs)
    moved = float(_size(inputs) + _size(outputs))
    stretches = _stretches(inputs, outputs)
    return Operation(f"{op} {dtype}", 0.0, moved, 0.0, stretches, (log(1 + moved), log(1 + stretches)))


def _convolution(op: str, dtype: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Operation:
    kernel = next(value for value in inputs[1:] if len(value.shape) == 4)
    made, (number, channels, *taps) = prod(outputs[0].shape), kernel.shape
    if channels == 1 and number > 1:
        what = "depthwise"
    elif channels not in (inputs[0].shape[1], inputs[0].shape[-1]) and op != "ConvTranspose":
        what = "grouped"
    elif channels <= _STEM_CHANNELS:
        what = "stem"
    else:
        what = "pointwise" if prod(taps) == 1 else "dense"
    macs = made * channels * prod(taps)
    if op == "ConvTranspose":  # weights are [in, out, ...], and every input meets all of them
        what, macs = "transposed", prod(inputs[0].shape) * channels * prod(taps)
    places = made / max(1, number)
    coordinates = log(1 + macs), log(channels), log(number), log(1 + places)
    return Operation(
        f"conv {what} {dtype}", float(macs), float(_size([inputs[0], outputs[0]])), float(_size([kernel])),
        float(made * prod(taps)), coordinates,
    )  # fmt: skip


def _product(dtype: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Operation:
    matrices = [value for value in inputs if len(value.shape) >= 2]
    made, shared = prod(outputs[0].shape), (matrices[0].shape[-1] if matrices else 1)
    factor = matrices[-1] if matrices else outputs[0]
    macs = made * shared
    coordinates = log(1 + macs), log(1 + shared), log(1 + outputs[0].shape[-1] if outputs[0].shape else 1)
    moved = float(_size([matrices[0], outputs[0]]) if matrices else _size(outputs))
    return Operation(f"matmul {dtype}", float(macs), moved, float(_size([factor])), 0.0, coordinates)


def _stretches(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Into how many pieces a smaller operand (a gain per channel) cuts the work on the larger; 0 where all are alike."""
    if len(inputs) != 2 or not outputs:
        return 0.0
    whole, small = outputs[0].shape, min((value.shape for value in inputs), key=prod)
    if prod(small) in (1, prod(whole)):
        return 0.0
    padded, length = (1,) * (len(whole) - len(small)) + small, 1
    spread = padded[-1] == 1  # one value for all of the last side, or another for each
    for side, own in zip(reversed(whole), reversed(padded), strict=True):
        if (own == 1) != spread:
            break
        length *= side
    return prod(whole) / max(1, length)


def _size(values: Sequence[Tensor]) -> int:
    return sum(prod(value.shape) * _BYTES.get(value.dtype, 4) for value in values)
