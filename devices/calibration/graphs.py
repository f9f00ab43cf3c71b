"""The small networks that a calibration measures: the operators of heads, at the sizes at which heads have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from narrowcast.devices.calibration.writer import Builder


class Graph(NamedTuple):
    """A network to measure: what it is called, and its ONNX."""

    name: str
    model: bytes


class Conv(NamedTuple):
    """A convolution: channels in and out, kernel, stride, side of the input; depthwise where ``groups`` says so."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    side: int
    groups: int = 1


# Convolutions on the image's three channels.
STEMS = (
    Conv(3, 16, 3, 2, 224), Conv(3, 32, 3, 2, 224), Conv(3, 64, 7, 2, 224), Conv(3, 96, 5, 2, 224), Conv(3, 48, 3, 2, 160),
    Conv(3, 64, 3, 1, 112), Conv(3, 96, 4, 4, 224),
)  # fmt: skip
DENSE = (
    Conv(16, 16, 3, 1, 112), Conv(32, 64, 3, 2, 112), Conv(48, 48, 3, 2, 56), Conv(64, 64, 3, 1, 56), Conv(48, 64, 3, 1, 56),
    Conv(64, 128, 3, 2, 56), Conv(128, 128, 3, 1, 28), Conv(256, 256, 3, 1, 14), Conv(96, 48, 5, 2, 112),
    Conv(64, 16, 2, 2, 56), Conv(48, 32, 2, 1, 56), Conv(512, 512, 3, 1, 7), Conv(24, 96, 3, 2, 56), Conv(64, 48, 3, 1, 28),
    Conv(48, 48, 3, 1, 112), Conv(32, 32, 5, 2, 28),
)  # fmt: skip
POINTWISE = (
    Conv(16, 64, 1, 1, 112), Conv(24, 96, 1, 1, 56), Conv(96, 24, 1, 1, 56), Conv(64, 256, 1, 1, 56),
    Conv(256, 64, 1, 1, 56),
    Conv(40, 240, 1, 1, 28), Conv(240, 40, 1, 1, 28), Conv(96, 96, 1, 1, 112), Conv(48, 48, 1, 1, 56),
    Conv(112, 672, 1, 1, 14),
    Conv(512, 128, 1, 1, 7), Conv(64, 16, 1, 1, 1), Conv(240, 64, 1, 1, 1), Conv(64, 128, 1, 2, 56),
    Conv(256, 512, 1, 2, 28),
    Conv(48, 64, 1, 2, 112), Conv(32, 16, 1, 1, 112), Conv(128, 512, 1, 1, 28), Conv(512, 128, 1, 1, 28),
)  # fmt: skip
DEPTHWISE = (
    Conv(32, 32, 3, 1, 112, 32), Conv(96, 96, 3, 2, 112, 96), Conv(144, 144, 3, 1, 56, 144), Conv(144, 144, 5, 2, 56, 144),
    Conv(240, 240, 3, 2, 28, 240), Conv(480, 480, 5, 1, 14, 480), Conv(96, 96, 7, 1, 56, 96), Conv(64, 64, 1, 1, 56, 64),
    Conv(672, 672, 3, 1, 14, 672), Conv(192, 192, 7, 1, 28, 192),
)  # fmt: skip
GROUPED = (
    Conv(24, 24, 3, 2, 112, 3), Conv(56, 56, 3, 2, 56, 7), Conv(152, 152, 3, 1, 14, 19), Conv(128, 128, 3, 1, 28, 4),
)  # fmt: skip
# Channels and side of maps that operators on single numbers run over.
MAPS = ((16, 112), (64, 56), (96, 112), (48, 28), (240, 14), (96, 28), (12, 28), (48, 7))
# Channels and side of maps with the channels last, as INT8 heads normalise images.
LAST = ((3, 224), (3, 160), (48, 28))
# Rows, inputs and outputs of matrix products.
PRODUCTS = ((1, 512, 1000), (49, 384, 384), (196, 192, 576), (196, 192, 768), (196, 768, 192), (784, 96, 384))
INT8 = (
    DENSE[1],
    DENSE[3],
    DENSE[4],
    DENSE[6],
    DENSE[7],
    DENSE[12],
    *POINTWISE[1:6:2],
    *POINTWISE[6:9],
    *DEPTHWISE[:5:2],
)


def graphs() -> Iterator[Graph]:
    """All networks, in a fixed order, with the same weights every time."""
    for stem in STEMS:
        yield _graph(f"image {_said(stem)}", _image, stem)
    for conv in (*DENSE, *POINTWISE, *DEPTHWISE, *GROUPED):
        yield _graph(_said(conv), _plain, conv)
    for channels, side in MAPS:
        yield _graph(f"arithmetic {channels}x{side}", _arithmetic, channels, side)
        yield _graph(f"activations {channels}x{side}", _activations, channels, side)
        yield _graph(f"pools {channels}x{side}", _pools, channels, side)
        yield _graph(f"gdn {channels}x{side}", _gdn, channels, side)
        yield _graph(f"resize {channels}x{side}", _resize, channels, side)
        yield _graph(f"channels last {channels}x{side}", _channels_last, channels, side)
    for channels, side in LAST:
        yield _graph(f"gains last {channels}x{side}", _gains_last, channels, side)
    for rows, inputs, outputs in PRODUCTS:
        yield _graph(f"matmul {rows}x{inputs}x{outputs}", _product, rows, inputs, outputs)
    for stem in (STEMS[1], STEMS[2], STEMS[4]):
        yield _graph(f"int8 image {_said(stem)}", _quantized_image, stem)
    for channels, side in MAPS[:4]:
        yield _graph(f"levels {channels}x{side}", _levels, channels, side)
    for conv in INT8:
        yield _graph(f"int8 {_said(conv)}", _quantized, conv)


def _graph(name: str, make: Callable[..., tuple[str, str]], *sizes: Any) -> Graph:
    builder = Builder()
    output, dtype = make(builder, *sizes)
    return Graph(name, builder.model(output, dtype=dtype))


def _said(conv: Conv) -> str:
    kind = "conv" if conv.groups == 1 else "depthwise" if conv.groups == conv.inputs else "grouped"
    return f"{kind} {conv.kernel}x{conv.kernel}/{conv.stride} {conv.inputs}-{conv.outputs} at {conv.side}"


def _conv(b: Builder, x: str, conv: Conv) -> str:
    weights = b.weights(conv.outputs, conv.inputs // conv.groups, conv.kernel, conv.kernel)
    pads = [(conv.kernel - 1) // 2] * 2 + [conv.kernel // 2 if conv.stride == 1 else (conv.kernel - 1) // 2] * 2
    return b.node(
        "Conv", x, weights, b.weights(conv.outputs), strides=[conv.stride] * 2, pads=pads, group=conv.groups,
        kernel_shape=[conv.kernel] * 2,
    )  # fmt: skip


def _image(b: Builder, conv: Conv) -> tuple[str, str]:
    """A head's way in: bytes to normalised floats, a first convolution, and a head's way out to symbols."""
    x = b.node("Cast", b.input([1, conv.side, conv.side, 3], "uint8"), to=1)
    x = b.node("Transpose", x, perm=[0, 3, 1, 2])
    x = b.node("Mul", x, b.weights(1, 3, 1, 1))
    x = b.node("Relu", _conv(b, b.node("Add", x, b.weights(1, 3, 1, 1)), conv))
    x = b.node("Add", b.node("Round", b.node("Mul", x, b.weights(1, conv.outputs, 1, 1))), b.constant(128.0))
    return b.node("Cast", b.node("Clip", x, b.constant(0.0), b.constant(255.0)), to=2), "uint8"


def _plain(b: Builder, conv: Conv) -> tuple[str, str]:
    return b.node("Relu", _conv(b, b.input([1, conv.inputs, conv.side, conv.side]), conv)), "float32"


def _map(b: Builder, channels: int, side: int) -> str:
    return b.input([1, channels, side, side])


def _arithmetic(b: Builder, channels: int, side: int) -> tuple[str, str]:
    x, y = _map(b, channels, side), _map(b, channels, side)
    gain = b.weights(1, channels, 1, 1)
    x = b.node("Mul", b.node("Add", x, y), b.node("Sub", y, gain))
    x = b.node("Div", b.node("Mul", x, gain), b.node("Add", b.node("Abs", y), b.constant(1.0)))
    x = b.node("Round", b.node("Clip", b.node("Div", x, gain), b.constant(-9.0), b.constant(9.0)))
    return b.node("Concat", x, b.node("Sqrt", b.node("Abs", y)), axis=1), "float32"


def _activations(b: Builder, channels: int, side: int) -> tuple[str, str]:
    x = b.node("Relu", _map(b, channels, side))
    x = b.node("Mul", x, b.node("Sigmoid", x))
    x = b.node("Mul", x, b.node("HardSigmoid", x, alpha=1 / 6, beta=0.5))
    x = b.node("HardSwish", x)
    x = b.node("LeakyRelu", x, alpha=0.1)
    x = b.node("Tanh", x)
    return b.node(
        "Mul", x, b.node("Add", b.node("Erf", b.node("Div", x, b.constant(1.4142))), b.constant(1.0))
    ), "float32"


def _pools(b: Builder, channels: int, side: int) -> tuple[str, str]:
    """Pooling as networks have it; and what squeezes and excites."""
    x = b.node("Relu", _map(b, channels, side))
    y = b.node("ReduceMean", x, axes=[2, 3], keepdims=1)
    x = b.node("Mul", x, b.node("Sigmoid", y))
    x = b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = b.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    return b.node("GlobalAveragePool", x), "float32"


def _gdn(b: Builder, channels: int, side: int) -> tuple[str, str]:
    """Generalized divisive normalization in its simplified form: every channel by a mixture of all magnitudes."""
    x = _map(b, channels, side)
    return b.node("Div", x, _conv(b, b.node("Abs", x), Conv(channels, channels, 1, 1, side))), "float32"


def _resize(b: Builder, channels: int, side: int) -> tuple[str, str]:
    scales = b.constant(np.array([1, 1, 2, 2], np.float32))
    return b.node("Resize", _map(b, channels, side // 2), "", scales, mode="nearest", nearest_mode="floor",
                  coordinate_transformation_mode="asymmetric"), "float32"  # fmt: skip


def _channels_last(b: Builder, channels: int, side: int) -> tuple[str, str]:
    """As transformers and ConvNeXt have it."""
    x = b.node("Transpose", _map(b, channels, side), perm=[0, 2, 3, 1])
    x = b.node("LayerNormalization", x, b.weights(channels), b.weights(channels), axis=-1, epsilon=1e-6)
    x = b.node("Reshape", x, b.constant(np.array([1, side * side, channels], np.int64)))
    x = b.node("Softmax", b.node("MatMul", x, b.weights(channels, channels)), axis=-1)
    return b.node("Transpose", x, perm=[0, 2, 1]), "float32"


def _gains_last(b: Builder, channels: int, side: int) -> tuple[str, str]:
    x = b.input([1, side, side, channels])
    for op in ("Mul", "Add", "Sub", "Div"):
        x = b.node(op, x, b.weights(1, 1, 1, channels))
    return x, "float32"


def _product(b: Builder, rows: int, inputs: int, outputs: int) -> tuple[str, str]:
    x = b.input([1, rows, inputs])
    x = b.node("Add", b.node("MatMul", x, b.weights(inputs, outputs)), b.weights(outputs))
    if rows == 1:
        x = b.node("Reshape", x, b.constant(np.array([1, outputs], np.int64)))
        return b.node("Gemm", x, b.weights(outputs, inputs), b.weights(inputs)), "float32"
    return x, "float32"


def _levels(b: Builder, channels: int, side: int) -> tuple[str, str]:
    """A batch norm that nothing is fused with, and a gain for each level, of which one is picked."""
    x = b.node("MaxPool", _map(b, channels, side), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    ones = b.constant(np.ones(channels, np.float32))
    x = b.node("BatchNormalization", b.node("Abs", x), ones, ones, ones, ones)
    gain = b.node("Gather", b.weights(4, channels), b.input([1], "int64"), axis=0)
    gain = b.node("Unsqueeze", gain, b.constant(np.array([2, 3], np.int64)))
    return b.node("Mul", x, gain), "float32"


def _quantized_image(b: Builder, conv: Conv) -> tuple[str, str]:
    """A first convolution in INT8 with a pool behind it."""
    image = b.input([1, conv.inputs, conv.side, conv.side])
    x, _ = _quantized(b, conv, image)
    x = b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    point, scale = b.constant(np.array(0, np.uint8)), b.constant(0.02)
    return b.node("DequantizeLinear", b.node("QuantizeLinear", x, scale, point), scale, point), "float32"


def _quantized(b: Builder, conv: Conv, image: str | None = None) -> tuple[str, str]:
    """A convolution between quantizers (QDQ), twice, as in INT8 heads: ONNX Runtime makes it one of integers."""
    point, scale = b.constant(np.array(128, np.uint8)), b.constant(0.02)

    zero = b.constant(np.array(0, np.uint8))

    def through(x: str, point: str) -> str:
        return b.node("DequantizeLinear", b.node("QuantizeLinear", x, scale, point), scale, point)

    x = through(image or b.input([1, conv.inputs, conv.side, conv.side]), point)
    shape = conv.outputs, conv.inputs // conv.groups, conv.kernel, conv.kernel
    values = np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)
    zeros, steps = np.zeros(conv.outputs, np.int8), np.full(conv.outputs, 0.01, np.float32)
    weights = b.node("DequantizeLinear", b.constant(values), b.constant(steps), b.constant(zeros), axis=0)
    bias = b.node("DequantizeLinear", b.constant(np.zeros(conv.outputs, np.int32)), b.constant(steps * 0.02),
                  b.constant(np.zeros(conv.outputs, np.int32)), axis=0)  # fmt: skip
    pads = [(conv.kernel - 1) // 2] * 4
    x = b.node("Conv", x, weights, bias, strides=[conv.stride] * 2, pads=pads, group=conv.groups,
               kernel_shape=[conv.kernel] * 2)  # fmt: skip
    x = through(b.node("Relu", x), zero)  # that point does away with the Relu
    return (x if image else through(b.node("Add", x, x), zero)), "float32"
