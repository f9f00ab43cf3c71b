"""The coder in plain Python: the readable reference, and what serves where the C kernel could not be built.

Same format, same bytes as ``rans.c``; about 300 times slower. The method, in short: an integer x holds the message.
Coding a symbol that owns slots ``start .. start + frequency`` of ``total`` maps x to
``x // frequency * total + start + x % frequency``; decoding looks at ``x % total`` to see whose slot it is and undoes that.
x is kept in 32 bits by moving 16-bit words to and from the payload. See ``docs/wire-format.md``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from narrowcast.transport.errors import PayloadError, SymbolsError
from narrowcast.transport.tables import Tables

LOWEST_STATE = 1 << 16


class _Table:
    """One level's and channel's table, laid out for coding."""

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
            [_Table(row.tolist(), int(escape)) for row, escape in zip(rows, escapes, strict=True)]
            for rows, escapes in zip(tables.frequencies, tables.escapes, strict=True)
        ]

    def encode(self, symbols: npt.NDArray[np.uint8], levels: Sequence[int]) -> list[bytes]:
        """uint8 ``[N, C, M]`` and N levels to N payloads."""
        return [self._encode(frame.tolist(), self._tables[level]) for frame, level in zip(symbols, levels, strict=True)]

    def decode(
        self, payloads: list[bytes], levels: Sequence[int], per_channel: int
    ) -> tuple[npt.NDArray[np.uint8], list[PayloadError | None]]:
        """N payloads to uint8 ``[N, C, M]`` and, per payload, its error or None."""
        frames: list[list[list[int]]] = []
        errors: list[PayloadError | None] = []
        for payload, level in zip(payloads, levels, strict=True):
            try:
                frames.append(self._decode(payload, self._tables[level], per_channel))
                errors.append(None)
            except PayloadError as error:
                frames.append([[0] * per_channel for _ in self._tables[level]])
                errors.append(error)
        return np.array(frames, np.uint8).reshape(len(payloads), len(self._tables[0]), per_channel), errors

    def _encode(self, channels: list[list[int]], tables: list[_Table]) -> bytes:
        states = [LOWEST_STATE] * self._lanes
        words: list[int] = []  # the decoder reads them backwards
        for symbols, table in zip(reversed(channels), reversed(tables), strict=True):
            for j in range(len(symbols) - 1, -1, -1):
                lane, symbol = j % self._lanes, symbols[j]
                if symbol >= table.escape:
                    raise SymbolsError(f"symbol {symbol} is outside the alphabet 0..{table.escape - 1}")
                if table.frequencies[symbol] == 0:
                    rank, total = table.escaped.index(symbol), 1 << table.rank_bits
                    states[lane] = self._put(states[lane], rank, 1, total.bit_length() - 1, words)
                    symbol = table.escape
                start, frequency = table.starts[symbol], table.frequencies[symbol]
                states[lane] = self._put(states[lane], start, frequency, self._precision, words)
        return struct.pack(f"<{self._lanes}I", *states) + struct.pack(f"<{len(words)}H", *reversed(words))

    @staticmethod
    def _put(state: int, start: int, frequency: int, precision: int, words: list[int]) -> int:
        if state >= frequency << (32 - precision):
            words.append(state & 0xFFFF)
            state >>= 16
        return (state // frequency << precision) + start + state % frequency

    def _decode(self, payload: bytes, tables: list[_Table], per_channel: int) -> list[list[int]]:
        header = 4 * self._lanes
        if len(payload) < header:
            raise PayloadError(f"the payload of {len(payload)} bytes is truncated")
        states = list(struct.unpack_from(f"<{self._lanes}I", payload))
        if min(states) < LOWEST_STATE:
            raise PayloadError("the payload is no output of the coder")
        reader = _Words(payload, header)
        channels = [
            [self._symbol(states, j % self._lanes, table, reader) for j in range(per_channel)] for table in tables
        ]
        if reader.at != len(payload):
            raise PayloadError(f"the payload has {len(payload) - reader.at} bytes too many")
        if any(state != LOWEST_STATE for state in states):
            raise PayloadError("the payload is no output of the coder")
        return channels

    def _symbol(self, states: list[int], lane: int, table: _Table, reader: _Words) -> int:
        state = states[lane]
        slot = state & ((1 << self._precision) - 1)
        entry = table.slots[slot]
        frequency = table.frequencies[entry]
        state = reader.refill(frequency * (state >> self._precision) + slot - table.starts[entry])
        if entry == table.escape:
            rank = state & ((1 << table.rank_bits) - 1)
            if rank >= len(table.escaped):
                raise PayloadError("the payload is no output of the coder")
            entry = table.escaped[rank]
            state = reader.refill(state >> table.rank_bits)
        states[lane] = state
        return entry


class _Words:
    """The payload's 16-bit words, one after the other."""

    def __init__(self, payload: bytes, at: int) -> None:
        self.payload = payload
        self.at = at

    def refill(self, state: int) -> int:
        if state >= LOWEST_STATE:
            return state
        if self.at + 2 > len(self.payload):
            raise PayloadError(f"the payload of {len(self.payload)} bytes is truncated")
        word = self.payload[self.at] | self.payload[self.at + 1] << 8
        self.at += 2
        return state << 16 | word
