"""Tensors of the Open Inference Protocol: what a model takes and gives (``docs/scale-out.md``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from narrowcast.tail.backends import Array
from narrowcast.transport.bundle import Manifest
from narrowcast.transport.codec import CodecSpec
from narrowcast.transport.rpc import open_inference_pb2 as pb
from narrowcast.transport.tasks import MAIN
from narrowcast.transport.tasks.answers import SentOutput, sent_outputs

SYMBOLS, LEVEL, COUNT = "symbols", "level", "num_detections"
_NAMES: dict[np.dtype[np.generic], str] = {
    np.dtype("?"): "BOOL",
    np.dtype("u1"): "UINT8",
    np.dtype("i1"): "INT8",
    np.dtype("<i4"): "INT32",
    np.dtype("<i8"): "INT64",
    np.dtype("<f2"): "FP16",
    np.dtype("<f4"): "FP32",
    np.dtype("<f8"): "FP64",
}
# FP16 has no field of its own: it travels raw.
FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "INT8": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
Metadata = pb.ModelMetadataResponse.TensorMetadata


class Offered(NamedTuple):
    """One output that a model has.

    Attributes:
        tail: whose.
        name: of the output; ``TAIL/NAME`` for a further tail's.
        counted: how many of each frame's rows are real is an output itself, of this name; None where all are.
        spec: dtype and shape, per frame.
    """

    tail: str
    name: str
    counted: str | None
    spec: SentOutput


def offered(manifest: Manifest, size: tuple[int, int] | None = None) -> list[Offered]:
    """Every output of every tail, in order; the counts of rows behind those that they belong to.

    Args:
        manifest: whose.
        size: of the network's input, rows and columns; None: the one that the manifest gives shapes for.
    """
    reference = manifest.input.size
    found: list[Offered] = []
    for tail in manifest.all_tails():
        prefix = "" if tail.name == MAIN else f"{tail.name}/"
        count = prefix + COUNT
        specs = sent_outputs(tail.task, [output.at(size or reference, reference) for output in tail.outputs])
        found += [Offered(tail.name, prefix + spec.name, count if spec.up_to else None, spec) for spec in specs]
        if any(spec.up_to for spec in specs):
            found.append(Offered(tail.name, count, None, SentOutput(count, "int32", [])))
    return found


def inputs_metadata(spec: CodecSpec) -> list[Metadata]:
    """What a model takes."""
    return [
        Metadata(
            name=SYMBOLS, datatype="UINT8", shape=[-1, spec.shape[0], *([-1, -1] if spec.is_free else spec.shape[1:])]
        ),
        Metadata(name=LEVEL, datatype="INT64", shape=[-1]),
    ]


def outputs_metadata(manifest: Manifest) -> list[Metadata]:
    """What a model gives; a side of -1 varies."""
    rows, columns = manifest.input.size
    # Sides that follow the input's differ for one of twice the size.
    pairs = zip(offered(manifest), offered(manifest, (2 * rows, 2 * columns)), strict=True)
    return [
        Metadata(
            name=output.name,
            datatype=_NAMES[np.dtype(output.spec.dtype).newbyteorder("<")],
            shape=[-1, *_sides(output.spec, other.spec)],
        )
        for output, other in pairs
    ]


def _sides(spec: SentOutput, other: SentOutput) -> list[int]:
    sides = [side if side == of_other else -1 for side, of_other in zip(spec.shape, other.shape, strict=True)]
    return [-1, *sides[1:]] if spec.up_to else sides


def to_outputs(
    response: pb.ModelInferResponse, answers: Sequence[Mapping[str, Array]], wanted: Sequence[Offered], raw: bool
) -> None:
    """Puts answers into a response.

    Args:
        response: gets an output for each of ``wanted``, with the frames stacked.
        answers: each frame's arrays by name.
        wanted: which of them, in this order.
        raw: as raw contents; else as typed ones, where all the types have such.
    """
    arrays = [_stacked(output, answers) for output in wanted]
    raw = raw or any(array.dtype == np.float16 for array in arrays)
    for output, array in zip(wanted, arrays, strict=True):
        datatype = _NAMES[array.dtype.newbyteorder("<")]
        tensor = response.outputs.add(name=output.name, datatype=datatype, shape=array.shape)
        if raw:
            little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            response.raw_output_contents.append(little.tobytes())
        else:
            getattr(tensor.contents, FIELDS[datatype]).extend(array.ravel().tolist())


def _stacked(output: Offered, answers: Sequence[Mapping[str, Array]]) -> Array:
    """``[N, ...]``; rows of detections are filled up with zeros to the most that a frame has."""
    if output.name.rpartition("/")[2] == COUNT and output.name not in answers[0]:
        of = output.name[: -len(COUNT)] + "scores"
        return np.array([len(answer[of]) for answer in answers], np.int32)
    frames = [answer[output.name] for answer in answers]
    if output.counted is None:
        return np.stack(frames)
    most = max(len(frame) for frame in frames)
    stacked = np.zeros((len(frames), most, *frames[0].shape[1:]), frames[0].dtype)
    for row, frame in zip(stacked, frames, strict=True):
        row[: len(frame)] = frame
    return stacked
