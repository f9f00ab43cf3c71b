"""Frozen coding tables: how many of the ``2^precision`` slots each symbol has, per level and channel.

They are made once, at compile time, from the learned density. Both ends use these integers and nothing else: density
recomputed from floats in another precision would differ in a few entries, and decode to other symbols without an error.

A symbol with 0 slots is *escaped*: it costs the escape's slots and then its rank among the escaped symbols of its table in
raw bits. So every symbol of the alphabet can be coded, and the many symbols that hardly ever occur do not take slots from
those that do.

Byte format (little-endian), in full in ``docs/wire-format.md``: ``b"NCTB"``, u8 version, u8 precision, u8 lanes, u8 0,
u16 alphabet, u16 levels, u32 channels, u16 frequencies ``[levels, channels, alphabet]``, u16 escapes
``[levels, channels]``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrowcast.transport.errors import TablesError

MAGIC = b"NCTB"
VERSION = 1
MIN_PRECISION, MAX_PRECISION = 8, 12
MAX_ALPHABET = 256
MAX_LEVELS = 256
MAX_CHANNELS = 65_536
LANES = (1, 2, 4)
# Slots of all tables together. A coder's memory is a few bytes for each, and tables pack so well that a bundle of a few
# bytes could ask for all memory there is.
MAX_SLOTS = 1 << 25
_HEADER = struct.Struct("<4sBBBBHHI")


@dataclass(frozen=True, eq=False)
class Tables:
    """Coding tables of a model.

    Attributes:
        precision: every table's frequencies and escape sum to ``2 ** precision``.
        lanes: interleaved states of the coder: 1, 2 or 4. More is faster; each costs about 3 bytes a frame.
        frequencies: uint16 ``[levels, channels, alphabet]``; 0 for an escaped symbol.
        escapes: uint16 ``[levels, channels]``; 0 where no symbol is escaped.
    """

    precision: int
    lanes: int
    frequencies: npt.NDArray[np.uint16]
    escapes: npt.NDArray[np.uint16]

    def __post_init__(self) -> None:
        frequencies, escapes = self.frequencies, self.escapes
        if not MIN_PRECISION <= self.precision <= MAX_PRECISION or self.lanes not in LANES:
            raise TablesError(
                f"tables of precision {self.precision} with {self.lanes} lanes; precision lies in "
                f"{MIN_PRECISION}..{MAX_PRECISION}, lanes are one of {LANES}"
            )
        if frequencies.dtype != np.uint16 or escapes.dtype != np.uint16 or frequencies.ndim != 3:
            raise TablesError("frequencies are uint16 [levels, channels, alphabet], escapes uint16 [levels, channels]")
        if frequencies.shape[:2] != escapes.shape or not frequencies.size:
            raise TablesError(f"frequencies {list(frequencies.shape)} do not go with escapes {list(escapes.shape)}")
        levels, channels, alphabet = frequencies.shape
        if levels > MAX_LEVELS or channels > MAX_CHANNELS or alphabet > MAX_ALPHABET:
            raise TablesError(f"tables for {levels} levels, {channels} channels and {alphabet} symbols are too large")
        if levels * channels << self.precision > MAX_SLOTS:
            raise TablesError(
                f"{levels} x {channels} tables of 2^{self.precision} slots are too large; at most {MAX_SLOTS} slots in all"
            )
        totals = frequencies.sum(2, dtype=np.int64) + escapes
        if not (totals == 1 << self.precision).all():
            level, channel = (int(k[0]) for k in np.nonzero(totals != 1 << self.precision))
            raise TablesError(
                f"the table of level {level}, channel {channel} sums to {totals[level, channel]}, not {1 << self.precision}"
            )
        if not ((escapes > 0) == (frequencies == 0).any(2)).all():
            raise TablesError("a table has an escape where no symbol needs it, or lacks one where a symbol does")

    @property
    def levels(self) -> int:
        """How many rate points."""
        return int(self.frequencies.shape[0])

    @property
    def channels(self) -> int:
        """How many channels the symbols have."""
        return int(self.frequencies.shape[1])

    @property
    def alphabet(self) -> int:
        """Symbols are ``0 .. alphabet - 1``."""
        return int(self.frequencies.shape[2])

    def bits(self) -> npt.NDArray[np.float64]:
        """What each symbol costs, float64 ``[levels, channels, alphabet]``, in bits."""
        total = float(1 << self.precision)
        escaped = self.frequencies == 0
        ranks = np.ceil(np.log2(np.maximum(escaped.sum(2), 1)))
        with np.errstate(divide="ignore"):
            own = np.log2(total) - np.log2(self.frequencies)
            escape = np.log2(total) - np.log2(self.escapes) + ranks
        bits: npt.NDArray[np.float64] = np.where(escaped, escape[..., None], own)
        return bits

    def to_bytes(self) -> bytes:
        """The tables in their byte format."""
        header = _HEADER.pack(MAGIC, VERSION, self.precision, self.lanes, 0, self.alphabet, self.levels, self.channels)
        return header + self.frequencies.astype("<u2").tobytes() + self.escapes.astype("<u2").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Tables:
        """The tables from their byte format.

        Raises:
            TablesError: these bytes are no tables.
        """
        if len(data) < _HEADER.size:
            raise TablesError(f"coding tables have a header of {_HEADER.size} bytes; these are {len(data)} bytes")
        magic, version, precision, lanes, reserved, alphabet, levels, channels = _HEADER.unpack_from(data)
        if magic != MAGIC or version != VERSION or reserved:
            raise TablesError(f"not coding tables of version {VERSION}: they start with {data[:8].hex()}")
        expected = _HEADER.size + 2 * levels * channels * (alphabet + 1)
        if len(data) != expected:
            raise TablesError(f"coding tables of {len(data)} bytes; their header asks for {expected}")
        entries = np.frombuffer(data, "<u2", offset=_HEADER.size).astype(np.uint16)
        frequencies, escapes = np.split(entries, [levels * channels * alphabet])
        return cls(precision, lanes, frequencies.reshape(levels, channels, alphabet), escapes.reshape(levels, channels))
