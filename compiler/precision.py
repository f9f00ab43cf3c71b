"""A network in fp16 and INT8, from the same in fp32: the same inputs and outputs, other arithmetic inside.

What is said of heads here holds for the uncut network as well: it, too, is a core between bytes and a few last layers.

What is converted is the head's *core*: its convolutions (and matrix products) and what lies between them. The normalisation
of the bytes before them and everything behind the last of them (gain, rounding, clip) stay in fp32: there a small error is
a whole step of a symbol.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence, Set
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.shape_inference
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from narrowcast.compiler.errors import ExportError, first_line

# Nodes with weights worth converting.
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What ONNX Runtime and TensorRT fuse with them or run on 8-bit tensors. Everything else of the core stays in floats.
QUANTIZED = WEIGHTED | {"Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "LeakyRelu", "MaxPool", "Relu"}


# The first convolutions work on few channels of large maps: INT8 kernels gain nothing there, and an error made there goes
# through all the others. So many of them stay in fp32, as long as they hold at most this part of the multiply-accumulates.
FIRST = 3
FIRST_SHARE = 0.55
# A side that any network's stride divides.
ANY_SIDE = 1024


def weighted(nodes: Sequence[onnx.NodeProto]) -> set[str]:
    """The names of the nodes with weights worth converting.

    A search for the nearest codeword (a convolution whose largest or smallest output is looked for) is none: like rounding,
    it stays in fp32.
    """
    producers = {value: node for node in nodes for value in node.output}
    found = {node.name for node in nodes if node.op_type in WEIGHTED}
    waiting = [value for node in nodes if node.op_type in {"ArgMin", "ArgMax"} for value in node.input]
    while waiting:
        node = producers.get(waiting.pop())
        if node is not None and node.name in found:
            found.remove(node.name)
        elif node is not None and node.op_type not in WEIGHTED:
            waiting += node.input
    return found


def core(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes between the first and the last convolutions, these included, in their order."""
    nodes = list(model.graph.node)
    layers = weighted(nodes)
    above, below = _reach(nodes, layers), _reach(nodes[::-1], layers, forward=False)
    return [node for node in nodes if above[node.name] and below[node.name]]


def quantizable(model: onnx.ModelProto) -> list[str]:
    """The names of the nodes of the core that run in INT8: without the first convolutions and without the last.

    The last are those with no further one behind them: they take a few hundredths of the time, and their errors go straight
    into symbols. (``docs/precision.md`` has the figures for both.)
    """
    inside, layers = core(model), weighted(model.graph.node)
    below = _reach(list(model.graph.node)[::-1], layers, forward=False)
    macs = _macs(model, layers)
    total, held, start = sum(macs.values()), 0, 0
    places = [at for at, node in enumerate(inside) if node.name in layers]
    for at, after in itertools.pairwise(places[: FIRST + 1]):
        held += macs[inside[at].name]
        if held > FIRST_SHARE * total:
            break
        start = after
    left = [node for node in inside[start:] if below[node.name] != {node.name}]
    if not any(node.name in layers for node in left):
        return []
    return [node.name for node in left if node.op_type in QUANTIZED]


def _macs(model: onnx.ModelProto, layers: Set[str]) -> dict[str, int]:
    """Multiply-accumulates of the weighted nodes ``layers``: every weight is used once per place of the (larger) map."""
    graph = onnx.shape_inference.infer_shapes(_of_one_size(model)).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.value_info, *graph.output)
    }
    weights = {tensor.name: prod(tensor.dims) for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.name in layers:
            shape = shapes.get(node.input[0] if node.op_type == "ConvTranspose" else node.output[0], [])
            places = shape[2:] if node.op_type.startswith("Conv") else shape[:-1]
            found[node.name] = prod(places) * weights.get(node.input[1], 0)
    return found


def _of_one_size(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with numbers for free sides: the layers' shares of the work do not depend on them."""
    if all(dim.HasField("dim_value") for value in model.graph.input for dim in value.type.tensor_type.shape.dim):
        return model
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = ANY_SIDE
    for values in (fixed.graph.value_info, fixed.graph.output):
        del values[:]
    fixed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(value.name) for value in model.graph.output)
    return fixed


def _reach(nodes: list[onnx.NodeProto], layers: Set[str], *, forward: bool = True) -> dict[str, set[str]]:
    """By node: those of ``layers`` that lie before it (behind it), itself included. ``nodes`` come in that order."""
    by_value: dict[str, set[str]] = {}
    found: dict[str, set[str]] = {}
    for node in nodes:
        sources, targets = (node.input, node.output) if forward else (node.output, node.input)
        seen = set().union(*(by_value.get(value, set()) for value in sources))
        if node.name in layers:
            seen.add(node.name)
        found[node.name] = seen
        for value in targets:
            by_value.setdefault(value, set()).update(seen)
    return found


def to_fp16(head: bytes, what: str = "head") -> bytes:
    """The head with its core in fp16; casts stand where the core begins and ends.

    Args:
        head: in fp32.
        what: to call it in errors.

    Raises:
        ExportError: it cannot be converted.
    """
    model = onnx.load_from_string(head)
    inside = {node.name for node in core(model)}
    floats = _float_values(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    produced = {value for node in model.graph.node if node.name in inside for value in node.output}
    wanted = {value for node in model.graph.node if node.name not in inside for value in node.input}
    wanted |= {value.name for value in model.graph.output}
    nodes: list[onnx.NodeProto] = []
    half: dict[str, str] = {}  # fp32 values by the name of their fp16 twin
    for node in model.graph.node:
        if node.name not in inside:
            nodes.append(node)
            continue
        for value in (v for v in node.input if v in floats and v not in produced and v not in half):
            half[value] = f"{value}_fp16"
            if value in weights:
                model.graph.initializer.append(_in_half(weights[value], half[value]))
            else:
                nodes.append(_cast(value, half[value], onnx.TensorProto.FLOAT16))
        half.update({value: f"{value}_fp16" for value in node.output if value in floats})
        nodes.append(_renamed(node, half))
        nodes += [_cast(half[v], v, onnx.TensorProto.FLOAT) for v in node.output if v in floats and v in wanted]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    used = {value for node in nodes for value in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # onnx raises errors of several kinds
        raise ExportError(f"the {what} cannot be written in fp16: {first_line(error)}") from error
    data: bytes = model.SerializeToString()
    return data


def _float_values(model: onnx.ModelProto) -> set[str]:
    """The names of the fp32 values of a model."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    found = {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    return found | {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}


def _in_half(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    limit = np.finfo(np.float16).max
    values = np.clip(onnx.numpy_helper.to_array(tensor), -limit, limit).astype(np.float16)
    return onnx.numpy_helper.from_array(values, name)


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [source], [target], f"{target}_cast", to=to)


def _renamed(node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
    """The node on the fp16 twins of its values."""
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    twin.input[:] = [names.get(value, value) for value in node.input]
    twin.output[:] = [names.get(value, value) for value in node.output]
    for attribute in twin.attribute:
        if twin.op_type == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
            attribute.i = onnx.TensorProto.FLOAT16
    return twin


def to_int8(head: bytes, frames: npt.NDArray[np.uint8], *, symmetric: bool, what: str = "head") -> bytes:
    """The head with its core in INT8: static QDQ, weights per channel, ranges of activations measured on ``frames``.

    Args:
        head: in fp32.
        frames: uint8 ``[N, H, W, 3]``, as the head takes them.
        symmetric: signed activations with zero points of 0 and float biases, the one form that TensorRT reads. Without,
            unsigned activations with zero points: ONNX Runtime folds ReLU and clips into those, and runs them faster.
        what: to call it in errors.

    Raises:
        ExportError: it cannot be quantized.
    """
    model = onnx.load_from_string(head)
    chosen, inputs = quantizable(model), [value.name for value in model.graph.input]
    if not chosen:
        raise ExportError(f"the {what} has no convolution to quantize between its first and its last")
    options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False} if symmetric else {}
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(head)
        try:
            with _quiet():
                quantize_static(
                    before, after, _Frames(frames, inputs), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8, weight_type=QuantType.QInt8,
                    nodes_to_quantize=chosen, calibrate_method=CalibrationMethod.MinMax, extra_options=options,
                )  # fmt: skip
        except Exception as error:
            raise ExportError(f"the {what} cannot be quantized to INT8: {first_line(error)}") from error
        return after.read_bytes()


class _Frames(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, frames: npt.NDArray[np.uint8], inputs: list[str]) -> None:
        self._frames = iter(frames)
        self._inputs = inputs

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        """The next frame's inputs; only the gain, which is not quantized, depends on the level."""
        frame = next(self._frames, None)
        if frame is None:
            return None
        return {name: frame[None] if name == "image" else np.zeros(1, np.int64) for name in self._inputs}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what onnxruntime's tools say to the root logger, without leaving a handler there."""
    root, handler = logging.getLogger(), logging.NullHandler()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
