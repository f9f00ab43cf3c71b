"""What both ends remember of a stream's frames, in integers that are the same on every machine."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Symbols = npt.NDArray[np.uint8]

# A memory is in 1/16 steps.
UNIT = 16
# What is further off than this was not noise: something is there now that was not there before.
FAR = 24
OLDEST = 6


class Memory(NamedTuple):
    """Of one frame.

    Attributes:
        values: int16 ``[..., C, H, W]``: what its symbols would be without the sensor's noise, less the tables' zero, in
            1/16 steps.
        age: how many predicted frames lie between it and its key frame, 6 at most.
    """

    values: npt.NDArray[np.int16]
    age: int


def memory_of_key(symbols: Symbols, zero: int) -> Memory:
    """After a key frame, uint8 ``[..., C, H, W]``: its symbols."""
    return Memory((symbols.astype(np.int16) - np.int16(zero)) * np.int16(UNIT), 0)


def remembered(before: Memory, symbols: Symbols, zero: int) -> Memory:
    """After a frame that was predicted from one with the memory ``before``: their mean, or the frame where it is far off."""
    seen = (symbols.astype(np.int32) - zero) * UNIT
    away = seen - before.values
    gain = 256 // (before.age + 2)
    values = np.where(np.abs(away) > FAR, seen, before.values + ((away * gain + 128) >> 8))
    return Memory(values.astype(np.int16), min(before.age + 1, OLDEST))


def change_between(reference: Symbols, symbols: Symbols) -> int:
    """How much has changed where most has: the largest sum of differences over a square of 3 x 3 places and all channels.

    A sum over the whole frame would say less: a small thing that moves changes it no more than noise does.

    Args:
        reference: uint8 ``[C, H, W]``.
        symbols: of the same shape.
    """
    larger, smaller = np.maximum(reference, symbols), np.minimum(reference, symbols)
    rows, columns = symbols.shape[1:]
    around = np.zeros((rows + 2, columns + 2), np.int64)
    around[1:-1, 1:-1] = (larger - smaller).sum(0, dtype=np.int64)
    across = around[:, :-2] + around[:, 1:-1] + around[:, 2:]
    return int((across[:-2] + across[1:-1] + across[2:]).max())
