"""Symbols of a fixed width: what a link wants that carries packets of one size.

Every symbol takes the same number of bits, whatever its value, and a level may leave channels out: how long a payload is
follows from its level alone. The byte format is in ``docs/wire-format.md``, codec 4.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrowcast.transport.errors import PayloadError, SymbolsError, TablesError
from narrowcast.transport.tables import MAX_ALPHABET, MAX_CHANNELS, MAX_LEVELS

MAGIC = b"NCPK"
VERSION = 1
_HEADER = struct.Struct("<4sBBHHHI")


def width_of(alphabet: int) -> int:
    """The bits that hold every symbol of ``0 .. alphabet - 1``; at least 1."""
    return max(1, (alphabet - 1).bit_length())


@dataclass(frozen=True)
class PackedTables:
    """What both ends share about packed symbols.

    Attributes:
        alphabet: symbols are ``0 .. alphabet - 1``.
        channels: of a frame's symbols.
        sent: by level: so many of the first channels are sent; symbols of the others are 0.
    """

    alphabet: int
    channels: int
    sent: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 < self.alphabet <= MAX_ALPHABET or not 0 < self.channels <= MAX_CHANNELS:
            raise TablesError(
                f"packed symbols of an alphabet of {self.alphabet} in {self.channels} channels; at most "
                f"{MAX_ALPHABET} and {MAX_CHANNELS}, and none is 0"
            )
        if not 0 < self.levels <= MAX_LEVELS:
            raise TablesError(f"packed symbols of {self.levels} levels; 1 to {MAX_LEVELS}")
        if wrong := [sent for sent in self.sent if not 0 < sent <= self.channels]:
            raise TablesError(f"a level sends {wrong[0]} channels; there are {self.channels}, and one is the least")

    @property
    def levels(self) -> int:
        """How many rate points."""
        return len(self.sent)

    @property
    def width(self) -> int:
        """Bits of a symbol."""
        return width_of(self.alphabet)

    def payload_bytes(self, level: int, cells: int) -> int:
        """The size of every payload of a level, for frames of ``cells`` symbols a channel."""
        return (self.sent[level] * cells * self.width + 7) // 8

    def to_bytes(self) -> bytes:
        """The tables in their byte format."""
        header = _HEADER.pack(MAGIC, VERSION, self.width, self.alphabet, self.levels, 0, self.channels)
        return header + struct.pack(f"<{self.levels}I", *self.sent)

    @classmethod
    def from_bytes(cls, data: bytes) -> PackedTables:
        """The tables from their byte format.

        Raises:
            TablesError: these bytes are no such tables.
        """
        if len(data) < _HEADER.size:
            raise TablesError(f"tables of packed symbols have a header of {_HEADER.size} bytes; these are {len(data)}")
        magic, version, width, alphabet, levels, reserved, channels = _HEADER.unpack_from(data)
        if magic != MAGIC or version != VERSION or reserved:
            raise TablesError(f"not tables of packed symbols of version {VERSION}: they start with {data[:8].hex()}")
        if len(data) != _HEADER.size + 4 * levels:
            raise TablesError(f"tables of packed symbols with {levels} levels in {len(data)} bytes")
        tables = cls(alphabet, channels, struct.unpack_from(f"<{levels}I", data, _HEADER.size))
        if width != tables.width:
            raise TablesError(f"symbols of an alphabet of {alphabet} in {width} bits; they take {tables.width}")
        return tables

    def pack(self, symbols: npt.NDArray[np.uint8], level: int) -> bytes:
        """One frame, uint8 ``[C, H, W]``.

        Raises:
            SymbolsError: a symbol outside the alphabet, or one other than 0 in a channel that the level leaves out.
        """
        sent = self.sent[level]
        largest = int(symbols.max())
        if largest >= self.alphabet:
            raise SymbolsError(f"symbol {largest} is outside the alphabet 0..{self.alphabet - 1}")
        if symbols[sent:].any():
            raise SymbolsError(
                f"level {level} sends {sent} of {self.channels} channels; the others hold symbols above 0"
            )
        flat = np.ascontiguousarray(symbols[:sent]).reshape(-1)
        if self.width == 8:
            return flat.tobytes()
        bits = np.unpackbits(flat[:, None], axis=1, count=self.width, bitorder="little")
        return np.packbits(bits.reshape(-1), bitorder="little").tobytes()

    def unpack(self, payload: bytes, level: int, shape: Sequence[int]) -> npt.NDArray[np.uint8]:
        """One frame of ``shape`` ``(C, H, W)``.

        Raises:
            PayloadError: the payload is no frame of that shape and level.
        """
        sent, cells = self.sent[level], int(np.prod(shape[1:]))
        wanted = self.payload_bytes(level, cells)
        if len(payload) != wanted:
            raise PayloadError(f"the payload has {len(payload)} bytes; one of level {level} has {wanted}")
        frame = np.zeros(shape, np.uint8)
        packed = np.frombuffer(payload, np.uint8)
        if self.width == 8:
            symbols = packed
        else:
            count = sent * cells * self.width
            bits = np.unpackbits(packed, bitorder="little")
            if bits[count:].any():
                raise PayloadError("the payload has bits set behind its last symbol")
            symbols = np.packbits(bits[:count].reshape(-1, self.width), axis=1, bitorder="little")[:, 0]
        if symbols.size and int(symbols.max()) >= self.alphabet:
            raise PayloadError(
                f"the payload has symbol {int(symbols.max())}, outside the alphabet 0..{self.alphabet - 1}"
            )
        frame[:sent] = symbols.reshape(sent, *shape[1:])
        return frame
