"""Context tables: which coding table a symbol gets, decided from the symbols before it.

Two integer predictions are made from what both ends know: a symbol's mean, and how far off it will be. What is coded is the
difference to the mean, with one of a small bank of tables: by the predicted scale's class, and by the mean's fraction.
Weights, thresholds and tables are frozen integers, so both ends get the same on every machine.

The method is the classical one of lossless image coders (context modelling by a linear predictor and quantized activity: Wu
and Memon, CALIC, IEEE Trans. Communications 1997), put on a learned latent; the arithmetic and the byte format are written
down in ``docs/wire-format.md``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowcast.transport.errors import TablesError
from narrowcast.transport.tables import MAX_CHANNELS, MAX_LEVELS, Tables

MAGIC = b"NCCX"
VERSION = 1
MEAN_INPUTS = 4
SCALE_INPUTS = 7
# Of a reference's memory, where a frame is predicted from one (see transport/video/).
MEMORY_INPUTS = 5
FRACTIONS = 4
MAX_CLASSES = 64
SCALES = 1024
MAX_BIAS = 1 << 24
_HEADER = struct.Struct("<4sBBBBHHI")


@dataclass(frozen=True, eq=False)
class ContextTables:
    """What decides on a symbol's table, and the tables.

    Attributes:
        zero: a symbol's value is symbol - zero.
        mean_weights: int16 ``[levels, channels, 4]``, in 2^-12 steps per step: left, up, up-left, up-right neighbour.
        mean_bias: int32 ``[levels, channels]``, in 2^-12 steps.
        scale_weights: int16 ``[levels, channels, 7]``, in 2^-12 per quarter step: the errors of the same four neighbours,
            of the previous channel, the moving sum of all channels before, and that sum around the place.
        scale_bias: int32 ``[levels, channels]``.
        thresholds: uint16 ``[classes - 1]``, ascending: a predicted scale (in 1/16 quarter steps, 0..1023) belongs to
            class k where k of them are at most as large.
        bank: the coding tables: one level, ``classes * 4`` "channels": class after class, fraction after fraction.
    """

    zero: int
    mean_weights: npt.NDArray[np.int16]
    mean_bias: npt.NDArray[np.int32]
    scale_weights: npt.NDArray[np.int16]
    scale_bias: npt.NDArray[np.int32]
    thresholds: npt.NDArray[np.uint16]
    bank: Tables

    def __post_init__(self) -> None:
        places = self.mean_bias.shape
        shapes: dict[str, tuple[npt.NDArray[Any], Any, tuple[int, ...]]] = {
            "mean_weights": (self.mean_weights, np.int16, (*places, MEAN_INPUTS)),
            "mean_bias": (self.mean_bias, np.int32, places),
            "scale_weights": (self.scale_weights, np.int16, (*places, SCALE_INPUTS)),
            "scale_bias": (self.scale_bias, np.int32, places),
            "thresholds": (self.thresholds, np.uint16, (self.classes - 1,)),
        }
        for name, (array, dtype, shape) in shapes.items():
            if array.dtype != dtype or array.shape != shape:
                raise TablesError(
                    f"{name} are {np.dtype(dtype).name} {list(shape)}; these are {array.dtype} {list(array.shape)}"
                )
        if len(places) != 2 or not 0 < self.levels <= MAX_LEVELS or not 0 < self.channels <= MAX_CHANNELS:
            raise TablesError(f"context tables for (levels, channels) {list(places)} are too large, or for nothing")
        if self.bank.levels != 1 or self.bank.channels != self.classes * FRACTIONS or self.classes > MAX_CLASSES:
            raise TablesError(
                f"a bank of {self.bank.levels} x {self.bank.channels} tables for {self.classes} classes; it has 1 x "
                f"{FRACTIONS} a class, for at most {MAX_CLASSES} classes"
            )
        if not 0 <= self.zero < self.alphabet:
            raise TablesError(f"zero is {self.zero}, outside the alphabet 0..{self.alphabet - 1}")
        if (
            max(np.abs(self.mean_bias.astype(np.int64)).max(), np.abs(self.scale_bias.astype(np.int64)).max())
            > MAX_BIAS
        ):
            raise TablesError(f"a bias is larger than {MAX_BIAS}")
        steps = np.diff(self.thresholds.astype(np.int64))
        if len(self.thresholds) and (int(self.thresholds[-1]) >= SCALES or (steps <= 0).any()):
            raise TablesError(f"thresholds ascend and are less than {SCALES}; these are {self.thresholds.tolist()}")

    @property
    def levels(self) -> int:
        """How many rate points."""
        return int(self.mean_bias.shape[0])

    @property
    def channels(self) -> int:
        """How many channels the symbols have."""
        return int(self.mean_bias.shape[1])

    @property
    def classes(self) -> int:
        """How many classes of scale."""
        return len(self.thresholds) + 1

    @property
    def alphabet(self) -> int:
        """Symbols are ``0 .. alphabet - 1``."""
        return self.bank.alphabet

    @property
    def lanes(self) -> int:
        """Of the coder (see :class:`Tables`)."""
        return self.bank.lanes

    def class_of(self) -> npt.NDArray[np.uint8]:
        """The class of every predicted scale, uint8 ``[1024]``."""
        return np.searchsorted(self.thresholds, np.arange(SCALES), side="right").astype(np.uint8)

    def to_bytes(self) -> bytes:
        """The tables in their byte format."""
        header = _HEADER.pack(MAGIC, VERSION, self.zero, self.classes, 0, self.levels, 0, self.channels)
        arrays = (
            self.mean_weights.astype("<i2"), self.mean_bias.astype("<i4"), self.scale_weights.astype("<i2"),
            self.scale_bias.astype("<i4"), self.thresholds.astype("<u2"),
        )  # fmt: skip
        return header + b"".join(array.tobytes() for array in arrays) + self.bank.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> ContextTables:
        """The tables from their byte format.

        Raises:
            TablesError: these bytes are no context tables.
        """
        if len(data) < _HEADER.size:
            raise TablesError(f"context tables have a header of {_HEADER.size} bytes; these are {len(data)} bytes")
        magic, version, zero, classes, reserved, levels, also_reserved, channels = _HEADER.unpack_from(data)
        if magic != MAGIC or version != VERSION or reserved or also_reserved:
            raise TablesError(f"not context tables of version {VERSION}: they start with {data[:8].hex()}")
        sizes = [
            ("<i2", (levels, channels, MEAN_INPUTS)), ("<i4", (levels, channels)),
            ("<i2", (levels, channels, SCALE_INPUTS)), ("<i4", (levels, channels)), ("<u2", (max(classes, 1) - 1,)),
        ]  # fmt: skip
        at, arrays = _HEADER.size, []
        for dtype, shape in sizes:
            count = int(np.prod(shape, dtype=np.int64))
            end = at + count * np.dtype(dtype).itemsize
            if end > len(data):
                raise TablesError(f"context tables of {len(data)} bytes are truncated")
            native = np.dtype(dtype).newbyteorder("=")
            arrays.append(np.frombuffer(data, dtype, count, at).astype(native).reshape(shape))
            at = end
        mean_weights, mean_bias, scale_weights, scale_bias, thresholds = arrays
        return cls(zero, mean_weights, mean_bias, scale_weights, scale_bias, thresholds, Tables.from_bytes(data[at:]))
