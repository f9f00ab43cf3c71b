"""The context coder in NumPy and plain Python: the readable twin of ``context.c``, with the same bytes.

All positions of an encoder's frame are known, so its predictions are NumPy over whole channels; the decoder learns a symbol
at a time. See ``docs/wire-format.md``, codecs 3 and 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from narrowcast.transport.coder.reference import LOWEST_STATE, ReferenceCoder, Table, Words, pack_states, unpack_states
from narrowcast.transport.contexts import FRACTIONS, SCALES, ContextTables
from narrowcast.transport.errors import PayloadError, SymbolsError

Ints = npt.NDArray[np.int64]

_MEAN_SHIFT = 10
_SCALE_SHIFT = 8
_MEMORY_SHIFT = 4
_MOST_ERROR = 255


class Choice(NamedTuple):
    """What codes a channel: int64 ``[..., H, W]`` each.

    Attributes:
        table: which of the bank's.
        coded: the difference to the mean, as a symbol.
        mean: the prediction in quarter steps, clipped to the alphabet.
        scale: the predicted error, in 1/16 quarter steps, 0..1023.
        error: how far off the mean was, in quarter steps, at most 255.
    """

    table: Ints
    coded: Ints
    mean: Ints
    scale: Ints
    error: Ints


def neighbours(plane: Ints) -> list[Ints]:
    """Left, up, up-left and up-right of every place of ``[..., H, W]``; 0 outside."""
    border = [(0, 0)] * (plane.ndim - 2)
    p = np.pad(plane, [*border, (1, 0), (1, 1)])
    return [p[..., 1:, :-2], p[..., :-1, 1:-1], p[..., :-1, :-2], p[..., :-1, 2:]]


def around(plane: Ints) -> Ints:
    """The sum of the four places beside, above and below."""
    border = [(0, 0)] * (plane.ndim - 2)
    p = np.pad(plane, [*border, (1, 1), (1, 1)])
    total: Ints = p[..., 1:-1, :-2] + p[..., 1:-1, 2:] + p[..., :-2, 1:-1] + p[..., 2:, 1:-1]
    return total


def beside(plane: Ints) -> list[Ints]:
    """Every place of ``[..., H, W]`` itself, and left, right, up and down of it; 0 outside."""
    border = [(0, 0)] * (plane.ndim - 2)
    p = np.pad(plane, [*border, (1, 1), (1, 1)])
    return [plane, p[..., 1:-1, :-2], p[..., 1:-1, 2:], p[..., :-2, 1:-1], p[..., 2:, 1:-1]]


def recalled(memory: Ints, weights: Sequence[int]) -> Ints:
    """What a reference's memory adds to the sums for the means."""
    return _weighted(beside(memory), weights, 0) >> _MEMORY_SHIFT


def mean_of(
    values: Ints, weights: Sequence[int], bias: int, lowest: int, highest: int, recall: Ints | None = None
) -> Ints:
    """The predicted mean of every place in quarter steps, within ``lowest .. highest`` steps; by what is recalled, too."""
    total = _weighted(neighbours(values), weights, bias)
    if recall is not None:
        total += recall
    mean: Ints = np.clip((total + (1 << (_MEAN_SHIFT - 1))) >> _MEAN_SHIFT, 4 * lowest, 4 * highest)
    return mean


def _weighted(inputs: Sequence[Ints], weights: Sequence[int], bias: int) -> Ints:
    total = np.full_like(inputs[0], bias)
    for plane, weight in zip(inputs, weights, strict=True):
        total += weight * plane
    return total


def error_of(values: Ints, mean: Ints) -> Ints:
    """How far off the mean was, in quarter steps."""
    error: Ints = np.minimum(np.abs(4 * values - mean), _MOST_ERROR)
    return error


def scale_inputs(error: Ints, previous: Ints, recent: Ints) -> list[Ints]:
    """What the error of every place is predicted from."""
    return [*neighbours(error), previous, recent, around(recent)]


def scale_of(inputs: Sequence[Ints], weights: Sequence[int], bias: int) -> Ints:
    """The predicted error of every place in 1/16 quarter steps, 0..1023."""
    scale: Ints = np.clip(_weighted(inputs, weights, bias) >> _SCALE_SHIFT, 0, SCALES - 1)
    return scale


def add_recent(recent: Ints, error: Ints) -> Ints:
    """The moving sum of errors when a channel is over."""
    return recent - (recent >> 3) + error


def choose(
    symbols: npt.NDArray[np.uint8],
    level: int,
    tables: ContextTables,
    memory: npt.NDArray[np.int16] | None = None,
    memory_weights: npt.NDArray[np.int16] | None = None,
) -> Iterator[Choice]:
    """What codes uint8 ``[..., C, H, W]``, channel by channel; by the memories of references, where there are any."""
    zero, alphabet = tables.zero, tables.alphabet
    values = symbols.astype(np.int64) - zero
    class_of = tables.class_of().astype(np.int64)
    recent = np.zeros_like(values[..., 0, :, :])
    previous = np.zeros_like(recent)
    for channel in range(tables.channels):
        plane = values[..., channel, :, :]
        weights, bias = tables.mean_weights[level, channel], int(tables.mean_bias[level, channel])
        recall = _recall(memory, memory_weights, level, channel)
        mean = mean_of(plane, weights.tolist(), bias, -zero, alphabet - 1 - zero, recall)
        error = error_of(plane, mean)
        weights, bias = tables.scale_weights[level, channel], int(tables.scale_bias[level, channel])
        scale = scale_of(scale_inputs(error, previous, recent), weights.tolist(), bias)
        coded = (plane - ((mean + 2) >> 2) + (alphabet >> 1)) % alphabet
        yield Choice(class_of[scale] * FRACTIONS + ((mean + 2) & 3), coded, mean, scale, error)
        recent, previous = add_recent(recent, error), error


def _recall(
    memory: npt.NDArray[np.int16] | None, weights: npt.NDArray[np.int16] | None, level: int, channel: int
) -> Ints | None:
    """Of one channel; None without a reference."""
    if memory is None or weights is None:
        return None
    return recalled(memory[..., channel, :, :].astype(np.int64), weights[level, channel].tolist())


class ContextReferenceCoder:
    """See :class:`narrowcast.transport.coder.Coder` for the interface. With ``memory_weights``, frames are predicted."""

    def __init__(self, tables: ContextTables, memory_weights: npt.NDArray[np.int16] | None = None) -> None:
        self._tables, self._memory_weights = tables, memory_weights
        self._class_of = tables.class_of().tolist()
        self._lanes, self._precision = tables.lanes, tables.bank.precision
        rows = zip(tables.bank.frequencies[0], tables.bank.escapes[0], strict=True)
        self._bank = [Table(row.tolist(), int(escape)) for row, escape in rows]

    def encode(
        self,
        symbols: npt.NDArray[np.uint8],
        levels: Sequence[int],
        memory: npt.NDArray[np.int16] | None = None,
    ) -> list[bytes]:
        """uint8 ``[N, C, H, W]`` and N levels (and int16 memories, where frames are predicted) to N payloads."""
        memories = [None] * len(symbols) if memory is None else list(memory)
        return [self._encode(*frame) for frame in zip(symbols, levels, memories, strict=True)]

    def decode(
        self,
        payloads: list[bytes],
        levels: Sequence[int],
        shape: Sequence[int],
        memory: npt.NDArray[np.int16] | None = None,
    ) -> tuple[npt.NDArray[np.uint8], list[PayloadError | None]]:
        """N payloads (and the memories that they go by) to uint8 ``[N, C, H, W]`` and, per payload, its error or None."""
        frames = np.zeros((len(payloads), *shape), np.uint8)
        errors: list[PayloadError | None] = []
        memories = [None] * len(payloads) if memory is None else list(memory)
        for frame, payload, level, before in zip(frames, payloads, levels, memories, strict=True):
            try:
                frame[:] = self._decode(payload, level, shape, before)
                errors.append(None)
            except PayloadError as error:
                errors.append(error)
        return frames, errors

    def _encode(self, frame: npt.NDArray[np.uint8], level: int, memory: npt.NDArray[np.int16] | None) -> bytes:
        if int(frame.max()) >= self._tables.alphabet:
            raise SymbolsError(f"symbol {int(frame.max())} is outside the alphabet 0..{self._tables.alphabet - 1}")
        states, words = [LOWEST_STATE] * self._lanes, list[int]()
        for choice in reversed(list(choose(frame, level, self._tables, memory, self._memory_weights))):
            coded, chosen = choice.coded.ravel().tolist(), choice.table.ravel().tolist()
            for j in range(len(coded) - 1, -1, -1):
                lane = j % self._lanes
                table = self._bank[chosen[j]]
                states[lane] = ReferenceCoder.put_symbol(states[lane], coded[j], table, self._precision, words)
        return pack_states(states, words)

    def _decode(
        self, payload: bytes, level: int, shape: Sequence[int], memory: npt.NDArray[np.int16] | None
    ) -> npt.NDArray[np.uint8]:
        tables, (channels, height, width) = self._tables, shape
        states, reader = unpack_states(payload, self._lanes)
        frame = np.zeros(shape, np.uint8)
        recent, previous = np.zeros((height, width), np.int64), np.zeros((height, width), np.int64)
        for channel in range(channels):
            values = np.zeros((height, width), np.int64)
            error = np.zeros((height, width), np.int64)
            recall = _recall(memory, self._memory_weights, level, channel)
            for j in range(height * width):
                self._place(channel, level, j, values, error, previous, recent, recall, states, reader)
            frame[channel] = values + tables.zero
            recent, previous = add_recent(recent, error), error
        reader.end(states)
        return frame

    def _place(
        self, channel: int, level: int, j: int, values: Ints, error: Ints, previous: Ints, recent: Ints,
        recall: Ints | None, states: list[int], reader: Words,
    ) -> None:  # fmt: skip
        """Decodes place ``j`` of a channel into ``values`` and ``error``."""
        tables = self._tables
        zero, alphabet = tables.zero, tables.alphabet
        y, x = divmod(j, values.shape[1])
        rows, columns = slice(max(0, y - 1), y + 2), slice(max(0, x - 1), x + 2)
        here = min(1, y), min(1, x)  # of the place, in the window around it: what is not decoded yet there is 0
        weights, bias = tables.mean_weights[level, channel], int(tables.mean_bias[level, channel])
        near = None if recall is None else recall[rows, columns]
        mean = int(mean_of(values[rows, columns], weights.tolist(), bias, -zero, alphabet - 1 - zero, near)[here])
        weights, bias = tables.scale_weights[level, channel], int(tables.scale_bias[level, channel])
        inputs = scale_inputs(error[rows, columns], previous[rows, columns], recent[rows, columns])
        scale = int(scale_of(inputs, weights.tolist(), bias)[here])
        table = self._bank[self._class_of[scale] * FRACTIONS + ((mean + 2) & 3)]
        coded = ReferenceCoder.get_symbol(states, j % self._lanes, table, self._precision, reader)
        value = (coded - (alphabet >> 1) + ((mean + 2) >> 2) + zero) % alphabet - zero
        values[y, x], error[y, x] = value, min(abs(4 * value - mean), _MOST_ERROR)
