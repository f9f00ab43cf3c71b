"""The C kernel, by ctypes: which releases the GIL for the length of a call and needs no Python headers to build."""

from __future__ import annotations

import ctypes
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowcast.transport.contexts import ContextTables
from narrowcast.transport.errors import PayloadError, SymbolsError, TablesError
from narrowcast.transport.tables import Tables

Memories = npt.NDArray[np.int16]

ABI = 3
LIBRARY = Path(__file__).with_name("_rans.so")

_SYMBOL_OUTSIDE_ALPHABET = -1
_OUT_OF_MEMORY = -7
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
    library.narrowcast_context_new.argtypes = [u32, u32, u32, u32, *[pointer] * 6]
    library.narrowcast_context_new.restype = pointer
    library.narrowcast_context_free.argtypes = [pointer]
    library.narrowcast_context_free.restype = None
    sides: list[Any] = [pointer, pointer, u32, pointer, u32, u32, u32]
    library.narrowcast_context_encode.argtypes = [*sides, pointer, pointer, pointer, u64, pointer]
    library.narrowcast_context_decode.argtypes = [*sides, pointer, pointer, pointer, pointer, pointer]
    return library


class _Kernel(ABC):
    """Frames to payloads and back by a pair of the library's functions."""

    _encode: Callable[..., int]
    _decode: Callable[..., int]
    _lanes: int
    _alphabet: int

    @abstractmethod
    def _arguments(self, levels: Sequence[int], shape: Sequence[int], memory: Memories | None) -> tuple[Any, ...]:
        """What both functions take first: tables, frames, and how frames of ``shape`` lie in memory."""

    def encode(
        self, symbols: npt.NDArray[np.uint8], levels: Sequence[int], memory: Memories | None = None
    ) -> list[bytes]:
        """uint8 ``[N, C, ...]`` and N levels (and int16 ``[N, C, H, W]``, where frames are predicted) to N payloads."""
        frames, shape = len(symbols), symbols.shape[1:]
        out = np.empty((frames, 4 * self._lanes + 4 * prod(shape)), np.uint8)  # no payload takes more
        sizes = (ctypes.c_uint64 * frames)()
        arguments = self._arguments(levels, shape, memory)
        status = self._encode(*arguments, symbols.ctypes.data, out.ctypes.data, out.shape[1], sizes)
        if status == _SYMBOL_OUTSIDE_ALPHABET:
            raise SymbolsError(f"symbol {int(symbols.max())} is outside the alphabet 0..{self._alphabet - 1}")
        _check(status)
        return [row[:size].tobytes() for row, size in zip(out, sizes, strict=True)]

    def decode(
        self, payloads: list[bytes], levels: Sequence[int], shape: Sequence[int], memory: Memories | None = None
    ) -> tuple[npt.NDArray[np.uint8], list[PayloadError | None]]:
        """N payloads (and the memories that they go by) to uint8 ``[N, *shape]`` and, per payload, its error or None."""
        frames = len(payloads)
        offsets = (ctypes.c_uint64 * (frames + 1))(0, *accumulate(map(len, payloads)))
        joined = payloads[0] if frames == 1 else b"".join(payloads)
        symbols = np.empty((frames, *shape), np.uint8)
        statuses = (ctypes.c_int32 * frames)()
        arguments = self._arguments(levels, shape, memory)
        status = self._decode(*arguments, joined, offsets, symbols.ctypes.data, statuses)
        _check(status)
        return symbols, [_problem(s, p) for s, p in zip(statuses, payloads, strict=True)]


class NativeCoder(_Kernel):
    """See :class:`narrowcast.transport.coder.Coder` for the interface.

    The kernel keeps no state between calls, so one coder serves any number of threads.

    Attributes:
        handle: the kernel's tables.
    """

    def __init__(self, tables: Tables, library: ctypes.CDLL) -> None:
        self._library = library
        self._encode, self._decode = library.narrowcast_rans_encode, library.narrowcast_rans_decode
        self._channels, self._lanes, self._alphabet = tables.channels, tables.lanes, tables.alphabet
        frequencies = np.ascontiguousarray(tables.frequencies)
        escapes = np.ascontiguousarray(tables.escapes)
        count = tables.levels * tables.channels
        self.handle = library.narrowcast_rans_new(
            tables.precision, tables.alphabet, count, frequencies.ctypes.data, escapes.ctypes.data
        )
        if not self.handle:
            raise TablesError("the coder refuses these tables, or memory is short")

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self._library.narrowcast_rans_free(self.handle)

    def _arguments(self, levels: Sequence[int], shape: Sequence[int], memory: Memories | None) -> tuple[Any, ...]:
        first = (ctypes.c_uint32 * len(levels))(*(level * self._channels for level in levels))
        return self.handle, len(levels), first, self._channels, prod(shape[1:]), self._lanes


class NativeContextCoder(_Kernel):
    """The same for context tables; frames are ``[C, H, W]``. With ``memory_weights``, frames are predicted."""

    def __init__(
        self, tables: ContextTables, library: ctypes.CDLL, memory_weights: npt.NDArray[np.int16] | None = None
    ) -> None:
        self._library = library
        self._encode, self._decode = library.narrowcast_context_encode, library.narrowcast_context_decode
        self._lanes, self._alphabet = tables.lanes, tables.alphabet
        self._bank = NativeCoder(tables.bank, library)
        arrays = (tables.mean_weights, tables.mean_bias, tables.scale_weights, tables.scale_bias, tables.class_of())
        kept = [np.ascontiguousarray(array) for array in arrays]  # until the kernel has its copies
        weights = None if memory_weights is None else np.ascontiguousarray(memory_weights)
        self._handle = library.narrowcast_context_new(
            tables.levels, tables.channels, tables.zero, tables.alphabet, *(array.ctypes.data for array in kept),
            None if weights is None else weights.ctypes.data,
        )  # fmt: skip
        if not self._handle:
            raise TablesError("the coder refuses these context tables, or memory is short")

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.narrowcast_context_free(self._handle)

    def _arguments(self, levels: Sequence[int], shape: Sequence[int], memory: Memories | None) -> tuple[Any, ...]:
        count = len(levels)
        recalled = None if memory is None else memory.ctypes.data
        sides = (ctypes.c_uint32 * count)(*levels), *shape[1:], self._lanes
        return self._handle, self._bank.handle, count, *sides, recalled


def _problem(status: int, payload: bytes) -> PayloadError | None:
    return None if status == 0 else PayloadError(_PROBLEMS[status].format(size=len(payload)))


def _check(status: Any) -> None:
    if status == _OUT_OF_MEMORY:
        raise MemoryError("the coder's work space")
    if status != 0:
        raise RuntimeError(f"the coder was called with arguments that it refuses (status {status})")
