"""What a request of the Open Inference Protocol asks for. All of it is untrusted."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from narrowcast.tail.backends import Array
from narrowcast.tail.errors import InferRequestError
from narrowcast.tail.frame import Priority
from narrowcast.tail.kserve_tensors import FIELDS, LEVEL, SYMBOLS, Offered, offered
from narrowcast.transport.bundle import Manifest
from narrowcast.transport.codec import CodecSpec
from narrowcast.transport.rpc import open_inference_pb2 as pb

MAX_FRAMES = 64
# Triton's clients can ask for these; a tail has no state between frames.
_STATEFUL = ("sequence_id", "sequence_start", "sequence_end")


class Frames(NamedTuple):
    """What a request asks to be answered.

    Attributes:
        symbols: uint8 ``[N, C, h, w]``, ``[C, h, w]`` being any shape that the codec takes.
        levels: int64 ``[N]``.
    """

    symbols: npt.NDArray[np.uint8]
    levels: npt.NDArray[np.int64]


class Asked(NamedTuple):
    """A request's parameters.

    Attributes:
        timeout_seconds: after so long nobody wants the answer; None: no such time.
        priority: which lane of the queue.
    """

    timeout_seconds: float | None
    priority: Priority


def read_parameters(request: pb.ModelInferRequest, fingerprint: bytes) -> Asked:
    """What a request says beside its tensors; parameters that mean something to others only are left alone.

    ``timeout`` (microseconds) and ``priority`` (1 is the highest, 2 normal, 0 the server's choice) are as Triton has them.

    Args:
        request: whose.
        fingerprint: of the model's codec.

    Raises:
        InferRequestError: a value that cannot be, symbols of another codec, or a sequence.
    """
    parameters = request.parameters
    for name in _STATEFUL:
        if name in parameters and _value(parameters[name]) not in (0, "", False, None):
            raise InferRequestError(f"the parameter {name!r}; every frame stands alone here, there are no sequences")
    codec = _value(parameters["codec_fingerprint"]) if "codec_fingerprint" in parameters else fingerprint.hex()
    if codec != fingerprint.hex():
        raise InferRequestError(f"the symbols are of the codec {str(codec)[:40]}; the model has {fingerprint.hex()}")
    timeout = _whole(request, "timeout")
    priority = _whole(request, "priority")
    lane = {0: Priority.NORMAL, 1: Priority.URGENT, 2: Priority.NORMAL}.get(priority, Priority.BACKGROUND)
    return Asked(timeout / 1e6 if timeout else None, lane)


def _whole(request: pb.ModelInferRequest, name: str) -> int:
    if name not in request.parameters:
        return 0
    value = _value(request.parameters[name])
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InferRequestError(f"the parameter {name!r} is {str(value)[:40]!r}; it is a whole number, 0 or more")
    return value


def _value(parameter: pb.InferParameter) -> bool | int | str | float | None:
    kind = parameter.WhichOneof("parameter_choice")
    value: bool | int | str | float | None = None if kind is None else getattr(parameter, kind)
    return value


def choose_outputs(request: pb.ModelInferRequest, manifest: Manifest) -> list[Offered]:
    """The outputs that a request names, in its order; all of them where it names none.

    Raises:
        InferRequestError: an output that there is not, or with parameters.
    """
    there = {output.name: output for output in offered(manifest)}
    names = [output.name for output in request.outputs]
    for output in request.outputs:
        if output.name not in there or names.count(output.name) > 1:
            raise InferRequestError(
                f"the output {output.name[:80]!r}; {manifest.name!r} has {', '.join(there)}, to be named once each"
            )
        if output.parameters:
            asked = ", ".join(sorted(output.parameters))[:80]
            raise InferRequestError(f"the output {output.name!r} with the parameters {asked}; outputs come as they are")
    return [there[name] for name in names] if names else list(there.values())


def read_frames(request: pb.ModelInferRequest, spec: CodecSpec) -> Frames:
    """The symbols and levels of a request. ``level`` may be left out where the model has one level only.

    Raises:
        InferRequestError: other inputs, types, shapes or sizes, a level or number of frames outside the limits.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InferRequestError(
            f"{len(request.inputs)} inputs with {len(raw)} raw contents; there must be one for each"
        )
    inputs: dict[str, Array] = {}
    for index, tensor in enumerate(request.inputs):
        if tensor.name in inputs or tensor.name not in (SYMBOLS, LEVEL):
            raise InferRequestError(
                f"the input {tensor.name[:80]!r}; a request has {SYMBOLS!r} and {LEVEL!r}, once each"
            )
        _check_declared(tensor, spec)
        inputs[tensor.name] = _raw(tensor, raw[index]) if raw else _typed(tensor)
    if SYMBOLS not in inputs:
        raise InferRequestError(f"the input {SYMBOLS!r} is missing")
    symbols = inputs[SYMBOLS].astype(np.uint8, copy=False)
    if LEVEL not in inputs and spec.levels == 1:
        inputs[LEVEL] = np.zeros(len(symbols), np.int64)
    if LEVEL not in inputs:
        raise InferRequestError(f"the input {LEVEL!r} is missing; the model has levels 0..{spec.levels - 1}")
    levels = inputs[LEVEL].astype(np.int64, copy=False)
    if len(levels) != len(symbols):
        raise InferRequestError(f"{len(symbols)} frames of symbols with {len(levels)} levels")
    if not 0 <= levels.min() <= levels.max() < spec.levels:
        raise InferRequestError(f"levels {levels.min()}..{levels.max()}; the model has 0..{spec.levels - 1}")
    if symbols.max() >= spec.alphabet:
        raise InferRequestError(f"symbol {symbols.max()} is outside the alphabet 0..{spec.alphabet - 1}")
    return Frames(symbols, levels)


def _check_declared(tensor: pb.ModelInferRequest.InferInputTensor, spec: CodecSpec) -> None:
    name = tensor.name
    dtype = "UINT8" if name == SYMBOLS else "INT64"
    if tensor.parameters:
        there = ", ".join(sorted(tensor.parameters))[:80]
        raise InferRequestError(f"the input {name!r} has the parameters {there}; tensors travel in the request itself")
    if tensor.datatype != dtype:
        raise InferRequestError(f"the input {name!r} is {tensor.datatype[:16]!r}; the model takes {dtype}")
    seen = tuple(tensor.shape)
    fits = len(seen) == 4 and spec.takes(seen[1:]) if name == SYMBOLS else len(seen) == 1
    if not fits:
        takes = _shapes(spec) if name == SYMBOLS else "[-1]"
        raise InferRequestError(f"the input {name!r} has the shape {list(seen)[:8]}; the model takes {takes}")
    if not 1 <= seen[0] <= MAX_FRAMES:
        raise InferRequestError(f"{seen[0]} frames in one request; it takes 1..{MAX_FRAMES}")


def _shapes(spec: CodecSpec) -> str:
    """Of the symbols that a model takes, in words."""
    if isinstance(spec.step, msgspec.UnsetType):
        return f"{[-1, *spec.shape]}"
    channels, *most = spec.shape
    rows, columns = (f"{step}..{side} in steps of {step}" for side, step in zip(most, spec.step, strict=True))
    return f"[-1, {channels}, {rows}, {columns}]"


def _raw(tensor: pb.ModelInferRequest.InferInputTensor, data: bytes) -> Array:
    if tensor.HasField("contents"):
        raise InferRequestError(f"the input {tensor.name!r} has contents both raw and typed")
    dtype = np.dtype("u1") if tensor.name == SYMBOLS else np.dtype("<i8")
    wanted = prod(tensor.shape) * dtype.itemsize
    if len(data) != wanted:
        raise InferRequestError(f"the input {tensor.name!r} has {len(data)} bytes; its shape asks for {wanted}")
    return np.frombuffer(data, dtype).reshape(tuple(tensor.shape))


def _typed(tensor: pb.ModelInferRequest.InferInputTensor) -> Array:
    field = FIELDS[tensor.datatype]
    others = [descriptor.name for descriptor, _ in tensor.contents.ListFields() if descriptor.name != field]
    if others:
        raise InferRequestError(f"the input {tensor.name!r} is {tensor.datatype} and has {others[0]}; it takes {field}")
    values = getattr(tensor.contents, field)
    wanted = prod(tensor.shape)
    if len(values) != wanted:
        raise InferRequestError(f"the input {tensor.name!r} has {len(values)} values; its shape asks for {wanted}")
    array = np.fromiter(values, np.int64, wanted)
    if tensor.name == SYMBOLS and array.max() > 255:
        raise InferRequestError(f"the input {SYMBOLS!r} has the value {array.max()}, which is no UINT8")
    return array.reshape(tuple(tensor.shape))
