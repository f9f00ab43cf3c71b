"""The coder in plain Python: the readable reference, and what serves where the C kernel could not be built.

Same format, same bytes as ``rans.c``; about 300 times slower. The method, in short: an integer x holds the message.
Coding a symbol that owns slots ``start .. start + frequency`` of ``total`` maps x to
``x // frequency * total + start + x % frequency``; decoding looks at ``x % total`` to see whose slot it is and undoes that.
x is kept in 32 bits by moving 16-bit words to and from the payload. See ``docs/wire-format.md``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from narrowcast.transport.errors import PayloadError, SymbolsError
from narrowcast.transport.tables import Tables

Memories = npt.NDArray[np.int16]

LOWEST_STATE = 1 << 16


class Table:
    """One table, laid out for coding."""

    def __init__(self, frequencies: list[int], escape: int) -> None:
        self.escaped = [symbol for symbol, frequency in enumerate(frequencies) if frequency == 0]
        self.rank_bits = max(0, len(self.escaped) - 1).bit_length()
        self.frequencies = [*frequencies, escape]
        self.escape = len(frequencies)  # the escape stands behind the last symbol
        self.starts = [0] * len(self.frequencies)
        self.slots: list[int] = []
        for entry, frequency in enumerate(self.frequencies):
            self.starts[entry] = len(self.slots)
            self.slots += [entry] * frequency


class ReferenceCoder:
    """See :class:`narrowcast.transport.coder.Coder` for the interface."""

    def __init__(self, tables: Tables) -> None:
        self._precision = tables.precision
        self._lanes = tables.lanes
        self._tables = [
            [Table(row.tolist(), int(escape)) for row, escape in zip(rows, escapes, strict=True)]
            for rows, escapes in zip(tables.frequencies, tables.escapes, strict=True)
        ]

    def encode(
        self, symbols: npt.NDArray[np.uint8], levels: Sequence[int], memory: Memories | None = None
    ) -> list[bytes]:
        """uint8 ``[N, C, ...]`` and N levels to N payloads; without contexts nothing is predicted."""
        flat = symbols.reshape(*symbols.shape[:2], -1)
        return [self._encode(frame.tolist(), self._tables[level]) for frame, level in zip(flat, levels, strict=True)]

    def decode(
        self, payloads: list[bytes], levels: Sequence[int], shape: Sequence[int], memory: Memories | None = None
    ) -> tuple[npt.NDArray[np.uint8], list[PayloadError | None]]:
        """N payloads to uint8 ``[N, *shape]`` and, per payload, its error or None."""
        per_channel = prod(shape[1:])
        frames: list[list[list[int]]] = []
        errors: list[PayloadError | None] = []
        for payload, level in zip(payloads, levels, strict=True):
            try:
                frames.append(self._decode(payload, self._tables[level], per_channel))
                errors.append(None)
            except PayloadError as error:
                frames.append([[0] * per_channel for _ in self._tables[level]])
                errors.append(error)
        return np.array(frames, np.uint8).reshape(len(payloads), *shape), errors

    def _encode(self, channels: list[list[int]], tables: list[Table]) -> bytes:
        states = [LOWEST_STATE] * self._lanes
        words: list[int] = []  # the decoder reads them backwards
        for symbols, table in zip(reversed(channels), reversed(tables), strict=True):
            for j in range(len(symbols) - 1, -1, -1):
                lane, symbol = j % self._lanes, symbols[j]
                if symbol >= table.escape:
                    raise SymbolsError(f"symbol {symbol} is outside the alphabet 0..{table.escape - 1}")
                states[lane] = self.put_symbol(states[lane], symbol, table, self._precision, words)
        return pack_states(states, words)

    @classmethod
    def put_symbol(cls, state: int, symbol: int, table: Table, precision: int, words: list[int]) -> int:
        """A lane's state with the symbol; a word that it gives up goes to ``words``."""
        if table.frequencies[symbol] == 0:
            state = cls._put(state, table.escaped.index(symbol), 1, table.rank_bits, words)
            symbol = table.escape
        return cls._put(state, table.starts[symbol], table.frequencies[symbol], precision, words)

    @staticmethod
    def _put(state: int, start: int, frequency: int, precision: int, words: list[int]) -> int:
        if state >= frequency << (32 - precision):
            words.append(state & 0xFFFF)
            state >>= 16
        return (state // frequency << precision) + start + state % frequency

    def _decode(self, payload: bytes, tables: list[Table], per_channel: int) -> list[list[int]]:
        states, reader = unpack_states(payload, self._lanes)
        channels = [
            [self.get_symbol(states, j % self._lanes, table, self._precision, reader) for j in range(per_channel)]
            for table in tables
        ]
        reader.end(states)
        return channels

    @staticmethod
    def get_symbol(states: list[int], lane: int, table: Table, precision: int, reader: Words) -> int:
        """The next symbol; changes its lane's state.

        Raises:
            PayloadError: the words are over, or are no output of the coder.
        """
        state = states[lane]
        slot = state & ((1 << precision) - 1)
        entry = table.slots[slot]
        frequency = table.frequencies[entry]
        state = reader.refill(frequency * (state >> precision) + slot - table.starts[entry])
        if entry == table.escape:
            rank = state & ((1 << table.rank_bits) - 1)
            if rank >= len(table.escaped):
                raise PayloadError("the payload is no output of the coder")
            entry = table.escaped[rank]
            state = reader.refill(state >> table.rank_bits)
        states[lane] = state
        return entry


def pack_states(states: list[int], words: list[int]) -> bytes:
    """The payload: final states, then the words, last one first."""
    return struct.pack(f"<{len(states)}I", *states) + struct.pack(f"<{len(words)}H", *reversed(words))


def unpack_states(payload: bytes, lanes: int) -> tuple[list[int], Words]:
    """The states that a decoder starts with, and the words behind them.

    Raises:
        PayloadError: the payload is truncated, or no output of the coder.
    """
    if len(payload) < 4 * lanes:
        raise PayloadError(f"the payload of {len(payload)} bytes is truncated")
    states = list(struct.unpack_from(f"<{lanes}I", payload))
    if min(states) < LOWEST_STATE:
        raise PayloadError("the payload is no output of the coder")
    return states, Words(payload, 4 * lanes)


class Words:
    """The payload's 16-bit words, one after the other."""

    def __init__(self, payload: bytes, at: int) -> None:
        self.payload = payload
        self.at = at

    def refill(self, state: int) -> int:
        """The state, with the next word where it is low.

        Raises:
            PayloadError: the words are over.
        """
        if state >= LOWEST_STATE:
            return state
        if self.at + 2 > len(self.payload):
            raise PayloadError(f"the payload of {len(self.payload)} bytes is truncated")
        word = self.payload[self.at] | self.payload[self.at + 1] << 8
        self.at += 2
        return state << 16 | word

    def end(self, states: list[int]) -> None:
        """Checks that everything was read and that every lane is where its encoder began.

        Raises:
            PayloadError: it is not so.
        """
        if self.at != len(self.payload):
            raise PayloadError(f"the payload has {len(self.payload) - self.at} bytes too many")
        if any(state != LOWEST_STATE for state in states):
            raise PayloadError("the payload is no output of the coder")
