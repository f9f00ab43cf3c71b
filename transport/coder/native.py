"""The C kernel, by ctypes: which releases the GIL for the length of a call and needs no Python headers to build."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowcast.transport.errors import PayloadError, SymbolsError, TablesError
from narrowcast.transport.tables import Tables

ABI = 1
LIBRARY = Path(__file__).with_name("_rans.so")

_SYMBOL_OUTSIDE_ALPHABET = -1
_PROBLEMS = {
    -2: "the payload of {size} bytes is truncated",
    -3: "the payload of {size} bytes has bytes too many",
    -4: "the payload is no output of the coder",
}


@functools.cache
def load(path: Path = LIBRARY) -> ctypes.CDLL | None:
    """The kernel, or None where it was not built for this machine."""
    try:
        library = ctypes.CDLL(str(path))
        if library.narrowcast_rans_abi() != ABI:
            return None
    except (OSError, AttributeError):
        return None
    pointer, u32, u64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    library.narrowcast_rans_new.argtypes = [u32, u32, u32, pointer, pointer]
    library.narrowcast_rans_new.restype = pointer
    library.narrowcast_rans_free.argtypes = [pointer]
    library.narrowcast_rans_free.restype = None
    library.narrowcast_rans_encode.argtypes = [pointer, u32, pointer, u32, u32, u32, pointer, pointer, u64, pointer]
    library.narrowcast_rans_decode.argtypes = [pointer, u32, pointer, u32, u32, u32, pointer, pointer, pointer, pointer]
    return library


class NativeCoder:
    """See :class:`narrowcast.transport.coder.Coder` for the interface.

    The kernel keeps no state between calls, so one coder serves any number of threads.
    """

    def __init__(self, tables: Tables, library: ctypes.CDLL) -> None:
        self._library = library
        self._channels, self._lanes, self._alphabet = tables.channels, tables.lanes, tables.alphabet
        frequencies = np.ascontiguousarray(tables.frequencies)
        escapes = np.ascontiguousarray(tables.escapes)
        count = tables.levels * tables.channels
        self._handle = library.narrowcast_rans_new(
            tables.precision, tables.alphabet, count, frequencies.ctypes.data, escapes.ctypes.data
        )
        if not self._handle:
            raise TablesError("the coder refuses these tables, or memory is short")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.narrowcast_rans_free(self._handle)

    def encode(self, symbols: npt.NDArray[np.uint8], levels: Sequence[int]) -> list[bytes]:
        """uint8 ``[N, C, M]`` and N levels to N payloads."""
        frames, per_channel = len(symbols), symbols.shape[2]
        stride = 4 * self._lanes + 4 * self._channels * per_channel
        out = np.empty((frames, stride), np.uint8)
        sizes = (ctypes.c_uint64 * frames)()
        status = self._library.narrowcast_rans_encode(
            self._handle, frames, self._first(levels), self._channels, per_channel, self._lanes,
            symbols.ctypes.data, out.ctypes.data, stride, sizes,
        )  # fmt: skip
        if status == _SYMBOL_OUTSIDE_ALPHABET:
            raise SymbolsError(f"symbol {int(symbols.max())} is outside the alphabet 0..{self._alphabet - 1}")
        _check(status)
        return [row[:size].tobytes() for row, size in zip(out, sizes, strict=True)]

    def decode(
        self, payloads: list[bytes], levels: Sequence[int], per_channel: int
    ) -> tuple[npt.NDArray[np.uint8], list[PayloadError | None]]:
        """N payloads to uint8 ``[N, C, M]`` and, per payload, its error or None."""
        frames = len(payloads)
        offsets = (ctypes.c_uint64 * (frames + 1))(0, *accumulate(map(len, payloads)))
        symbols = np.empty((frames, self._channels, per_channel), np.uint8)
        statuses = (ctypes.c_int32 * frames)()
        joined = payloads[0] if frames == 1 else b"".join(payloads)
        status = self._library.narrowcast_rans_decode(
            self._handle, frames, self._first(levels), self._channels, per_channel, self._lanes,
            joined, offsets, symbols.ctypes.data, statuses,
        )  # fmt: skip
        _check(status)
        return symbols, [_problem(s, p) for s, p in zip(statuses, payloads, strict=True)]

    def _first(self, levels: Sequence[int]) -> ctypes.Array[ctypes.c_uint32]:
        """The number of each frame's first table."""
        return (ctypes.c_uint32 * len(levels))(*(level * self._channels for level in levels))


def _problem(status: int, payload: bytes) -> PayloadError | None:
    return None if status == 0 else PayloadError(_PROBLEMS[status].format(size=len(payload)))


def _check(status: Any) -> None:
    if status != 0:
        raise RuntimeError(f"the coder was called with arguments that it refuses (status {status})")
