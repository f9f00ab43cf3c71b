"""Tensors and times between NumPy and the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import numpy.typing as npt
import zstandard

from narrowcast.transport.bundle.manifest import OutputSpec
from narrowcast.transport.errors import TransportError
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.tasks.answers import SentOutput

Array = npt.NDArray[np.generic]

# Outputs from this size on (masks, feature maps) are packed; small ones would not get smaller.
PACK_FROM_BYTES = 4096
PACK_LEVEL = 3
MAX_TENSOR_BYTES = 256 * 1024 * 1024
_TYPES: dict[pb.DataType, np.dtype[np.generic]] = {
    pb.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    pb.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    pb.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    pb.DATA_TYPE_INT64: np.dtype("<i8"),
    pb.DATA_TYPE_INT32: np.dtype("<i4"),
    pb.DATA_TYPE_INT8: np.dtype("i1"),
    pb.DATA_TYPE_UINT8: np.dtype("u1"),
    pb.DATA_TYPE_BOOL: np.dtype("?"),
}
_NUMBERS = {dtype: number for number, dtype in _TYPES.items()}


def to_tensor(name: str, array: Array) -> pb.Tensor:
    """An array as it goes over the wire; large ones are packed where that helps.

    Raises:
        TransportError: its dtype has no place on the wire.
    """
    number = _NUMBERS.get(array.dtype.newbyteorder("<"))
    if number is None:
        raise TransportError(f"output {name!r} is {array.dtype}; the wire carries {', '.join(map(str, _NUMBERS))}")
    data, packing = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes(), pb.PACKING_RAW
    if len(data) >= PACK_FROM_BYTES:
        packed = zstandard.ZstdCompressor(level=PACK_LEVEL).compress(data)
        if len(packed) < len(data):
            data, packing = packed, pb.PACKING_ZSTD
    return pb.Tensor(name=name, data_type=number, shape=array.shape, packing=packing, data=data)


def from_tensor(tensor: pb.Tensor) -> Array:
    """The array in a tensor.

    Raises:
        TransportError: an unknown type or packing, a size over 256 MiB, or data that do not fill the shape.
    """
    dtype = _TYPES.get(tensor.data_type)
    if dtype is None:
        raise TransportError(f"output {tensor.name!r} has the unknown data type {tensor.data_type}")
    size = prod(tensor.shape) * dtype.itemsize
    if size > MAX_TENSOR_BYTES:
        raise TransportError(
            f"output {tensor.name!r} of shape {list(tensor.shape)[:8]} has {size} bytes; the limit is {MAX_TENSOR_BYTES}"
        )
    if tensor.packing == pb.PACKING_ZSTD:
        data = _unpack(tensor, size)
    elif tensor.packing == pb.PACKING_RAW:
        data = tensor.data
    else:
        raise TransportError(f"output {tensor.name!r} has the unknown packing {tensor.packing}")
    if len(data) != size:
        raise TransportError(f"output {tensor.name!r} has {len(data)} bytes; its shape asks for {size}")
    return np.frombuffer(data, dtype).reshape(tuple(tensor.shape))


def from_tensors(tensors: Sequence[pb.Tensor], expected: Sequence[OutputSpec | SentOutput]) -> dict[str, Array]:
    """Arrays by name.

    Args:
        tensors: a result's.
        expected: what the bundle says. Nothing else is unpacked, so that a server cannot fill a board's memory.

    Raises:
        TransportError: other outputs than expected, or see :func:`from_tensor`.
    """
    found = {tensor.name: (_TYPES.get(tensor.data_type), list(tensor.shape)) for tensor in tensors}
    wanted = {spec.name: (np.dtype(spec.dtype).newbyteorder("<"), spec.shape) for spec in expected}
    limits = {spec.name: spec.shape[0] for spec in expected if isinstance(spec, SentOutput) and spec.up_to}
    seen = {
        name: (dtype, [limits[name], *shape[1:]] if name in limits and shape and shape[0] <= limits[name] else shape)
        for name, (dtype, shape) in found.items()
    }
    if seen != wanted or len(tensors) != len(wanted):
        raise TransportError(
            f"the server answers with {_listed(found) or 'no outputs'}; the bundle says {_listed(wanted)}"
        )
    return {tensor.name: from_tensor(tensor) for tensor in tensors}


def _listed(outputs: Mapping[str, tuple[object, Sequence[int]]]) -> str:
    return ", ".join(f"{name!r}: {dtype} {list(shape)}" for name, (dtype, shape) in list(outputs.items())[:8])


def _unpack(tensor: pb.Tensor, size: int) -> bytes:
    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(tensor.data) as reader:
            return reader.read(size + 1)
    except zstandard.ZstdError as error:
        raise TransportError(f"output {tensor.name!r} does not unpack: {error}") from error
