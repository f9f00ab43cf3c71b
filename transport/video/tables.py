"""Video tables: a bundle's part ``video`` (``docs/wire-format.md``)."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrowcast.transport.contexts import MEMORY_INPUTS, ContextTables
from narrowcast.transport.errors import TablesError
from narrowcast.transport.tables import MAX_CHANNELS, MAX_LEVELS

MAGIC = b"NCVT"
VERSION = 1
_HEADER = struct.Struct("<4sBBHII")


@dataclass(frozen=True, eq=False)
class VideoTables:
    """What predicted frames are coded with, and when a frame counts as unchanged.

    Attributes:
        unchanged: uint32 ``[levels]``: the largest change (:func:`narrowcast.transport.video.change_between`) with which a
            frame is skipped; 0 skips what is identical alone.
        memory_weights: int16 ``[levels, channels, 5]``, in 2^-12: of the reference's memory, here, left, right, up and down.
        contexts: everything else that decides on a symbol's table, and the tables.
    """

    unchanged: npt.NDArray[np.uint32]
    memory_weights: npt.NDArray[np.int16]
    contexts: ContextTables

    def __post_init__(self) -> None:
        levels, channels = self.contexts.levels, self.contexts.channels
        weights = self.memory_weights
        if weights.dtype != np.int16 or weights.shape != (levels, channels, MEMORY_INPUTS):
            raise TablesError(
                f"memory weights are int16 {[levels, channels, MEMORY_INPUTS]}; these are {weights.dtype} "
                f"{list(weights.shape)}"
            )
        if self.unchanged.dtype != np.uint32 or self.unchanged.shape != (levels,):
            raise TablesError(
                f"limits of change are uint32 {[levels]}; these are {self.unchanged.dtype} {list(self.unchanged.shape)}"
            )

    def to_bytes(self) -> bytes:
        """The tables in their byte format."""
        header = _HEADER.pack(MAGIC, VERSION, 0, self.contexts.levels, self.contexts.channels, 0)
        arrays = self.unchanged.astype("<u4").tobytes(), self.memory_weights.astype("<i2").tobytes()
        return header + b"".join(arrays) + self.contexts.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> VideoTables:
        """The tables from their byte format.

        Raises:
            TablesError: these bytes are no video tables.
        """
        if len(data) < _HEADER.size:
            raise TablesError(f"video tables have a header of {_HEADER.size} bytes; these are {len(data)} bytes")
        magic, version, reserved, levels, channels, also_reserved = _HEADER.unpack_from(data)
        if magic != MAGIC or version != VERSION or reserved or also_reserved:
            raise TablesError(f"not video tables of version {VERSION}: they start with {data[:8].hex()}")
        if not 0 < levels <= MAX_LEVELS or not 0 < channels <= MAX_CHANNELS:
            raise TablesError(f"video tables for (levels, channels) {[levels, channels]} are too large, or for nothing")
        weights = levels * channels * MEMORY_INPUTS
        end = _HEADER.size + 4 * levels + 2 * weights
        if end > len(data):
            raise TablesError(f"video tables of {len(data)} bytes are truncated")
        unchanged = np.frombuffer(data, "<u4", levels, _HEADER.size).astype(np.uint32)
        memory = np.frombuffer(data, "<i2", weights, _HEADER.size + 4 * levels).astype(np.int16)
        contexts = ContextTables.from_bytes(data[end:])
        if (contexts.levels, contexts.channels) != (levels, channels):
            raise TablesError(
                f"video tables for (levels, channels) {[levels, channels]} hold context tables for "
                f"{[contexts.levels, contexts.channels]}"
            )
        return cls(unchanged, memory.reshape(levels, channels, MEMORY_INPUTS), contexts)

    def fingerprint(self) -> bytes:
        """16 bytes that name them."""
        return hashlib.sha256(self.to_bytes()).digest()[:16]
