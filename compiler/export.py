"""From torch modules to self-contained ONNX. The head takes one frame, the tail any number; both of any size, if wanted."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import onnx
import onnx.version_converter
import torch
from torch import Tensor, nn

from narrowcast.compiler.collector import collector_paused
from narrowcast.compiler.errors import ExportError, first_line
from narrowcast.compiler.exit import ExitNetwork
from narrowcast.compiler.exporter_library import parse_once
from narrowcast.compiler.modules import Head, Tail, Whole
from narrowcast.transport.codec import CodecSpec
from narrowcast.transport.contract import InputContract

OPSET = 18  # what torch's exporter has implementations for
HEAD_OPSET = 17  # the newest that TensorRT 8.6 (JetPack 6.0) parses
# ONNX itself ends at 2 GiB, which is protobuf's limit.
MAX_BYTES = 2**31 - 1
_BATCH = 2  # torch.export takes a batch of one for a constant


class Sides(NamedTuple):
    """How far rows and columns are free.

    Attributes:
        step: both are a multiple of these.
        most: the largest multiples.
    """

    step: tuple[int, int]
    most: tuple[int, int]

    def example(self) -> tuple[int, int]:
        """Rows and columns to trace with: torch.export takes a dimension of one unit for a constant."""
        rows, columns = (step * min(2, most) for step, most in zip(self.step, self.most, strict=True))
        return rows, columns

    def dims(self, first: int) -> dict[int, Any]:
        """What is free, by axis; rows are axis ``first``."""
        found: dict[int, Any] = {}
        for k, name in enumerate(("rows", "columns")):
            if self.most[k] > 1:
                units = torch.export.Dim(name, min=1, max=self.most[k])
                found[first + k] = units if self.step[k] == 1 else self.step[k] * units
        return found


def free_sides(contract: InputContract, spec: CodecSpec) -> tuple[Sides | None, Sides | None]:
    """How far images and symbols are free; None where they are not."""
    free = contract.free
    if free is None or isinstance(spec.step, msgspec.UnsetType):
        return None, None
    most = free.most[0] // free.multiple, free.most[1] // free.multiple
    return Sides((free.multiple, free.multiple), most), Sides(spec.step, most)


def export_head(head: Head, size: tuple[int, int], levels: int, free: Sides | None = None) -> bytes:
    """The head as ONNX: ``image`` uint8 ``[1, H, W, 3]``, with several levels ``level`` int64 ``[1]``; ``symbols`` uint8.

    ``free`` lets height and width differ from frame to frame.
    """
    image = torch.zeros(1, *(size if free is None else free.example()), 3, dtype=torch.uint8)
    level = (torch.zeros(1, dtype=torch.int64),) if levels > 1 else ()
    names = ["image", "level"] if levels > 1 else ["image"]
    dynamic = None if free is None else {"image": free.dims(1), **({"level": None} if level else {})}
    return _for_boards(_export(head, (image, *level), names, ["symbols"], dynamic, "head"), "head")


def export_exit(network: ExitNetwork, shape: tuple[int, int, int], levels: int, output: str) -> bytes:
    """The local exit as ONNX: ``symbols`` uint8 ``[1, C, h, w]`` (and ``level``, as for the head); the task's output."""
    symbols = torch.zeros(1, *shape, dtype=torch.uint8)
    level = (torch.zeros(1, dtype=torch.int64),) if levels > 1 else ()
    names = ["symbols", "level"] if levels > 1 else ["symbols"]
    return _for_boards(_export(network, (symbols, *level), names, [output], None, "local exit"), "local exit")


def _for_boards(data: bytes, what: str) -> bytes:
    """The same network in the oldest opset that a board may read."""
    try:
        model = onnx.version_converter.convert_version(onnx.load_from_string(data), HEAD_OPSET)
    except RuntimeError as error:
        raise ExportError(f"the {what} cannot be written for opset {HEAD_OPSET}: {error}") from error
    for node in model.graph.node:  # an attribute of opset 18, which the converter leaves behind; at 0 it says nothing
        for attribute in [a for a in node.attribute if a.name == "noop_with_empty_axes" and not a.i]:
            node.attribute.remove(attribute)
    older: bytes = model.SerializeToString()
    return older


def export_tail(tail: Tail, shape: tuple[int, int, int], outputs: Sequence[str], free: Sides | None = None) -> bytes:
    """The tail as ONNX: ``symbols`` uint8 ``[N, C, h, w]`` and ``level`` int64 ``[N]``; the task's outputs.

    ``free`` lets ``h`` and ``w`` differ from batch to batch.
    """
    grid = shape[1:] if free is None else free.example()
    symbols = torch.zeros(_BATCH, shape[0], *grid, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=4096)
    level = torch.zeros(_BATCH, dtype=torch.int64)
    shapes = {"symbols": {0: batch, **({} if free is None else free.dims(2))}, "level": {0: batch}}
    return _export(tail, (symbols, level), ["symbols", "level"], outputs, shapes, "tail")


def export_whole(whole: Whole, size: tuple[int, int], outputs: Sequence[str], free: Sides | None = None) -> bytes:
    """The uncut network as ONNX: ``image`` uint8 ``[N, H, W, 3]``; the task's outputs. ``free`` as for the head."""
    image = torch.zeros(_BATCH, *(size if free is None else free.example()), 3, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = {0: batch, **({} if free is None else free.dims(1))}
    return _export(whole, (image,), ["image"], outputs, {"image": shapes}, "whole network")


def export_network(module: nn.Module, images: Tensor, outputs: Sequence[str]) -> bytes:
    """Any network as ONNX for images like ``images``: ``images`` float32 ``[N, 3, H, W]`` in; ``outputs``, by name."""
    return _export(module, (images,), ["images"], outputs, None, "network")


def _export(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic: dict[str, Any] | None,
    what: str,
) -> bytes:
    module = module.cpu().eval()
    parse_once()
    try:
        with _quiet(), collector_paused():
            program = torch.onnx.export(
                module, inputs, input_names=list(input_names), output_names=list(output_names),
                opset_version=OPSET, dynamo=True, dynamic_shapes=dynamic, verbose=False,
            )  # fmt: skip
            assert program is not None
            model = program.model_proto
    except Exception as error:
        raise ExportError(f"the {what} does not export to ONNX: {first_line(error)}") from error
    _drop_metadata(model)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    if len(data) > MAX_BYTES:
        raise ExportError(f"the {what} has {len(data)} bytes; ONNX ends at {MAX_BYTES}")
    return data


def _drop_metadata(model: onnx.ModelProto) -> None:
    """Drops what only tells of the exporting machine: source files, stack traces, torch's own names."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    entries: list[Any] = [model, graph, *graph.node, *values]
    for entry in entries:
        del entry.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's chatter; errors still come as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
