"""Range coding of symbols with frozen tables: a C kernel, and the same in plain Python.

::

    coder = Coder(tables)
    payload = coder.encode(symbols, level=2)             # uint8 [C, H, W] -> bytes
    symbols = coder.decode(payload, level=2, shape=(C, H, W))

Whole frames, or batches of frames of mixed levels, go in one call; the C kernel runs it without the GIL. Any bytes at all
may be decoded: in bounded time and memory they give the frame's symbols or a :class:`PayloadError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from narrowcast.transport.coder.contexts import ContextReferenceCoder
from narrowcast.transport.coder.native import NativeCoder, NativeContextCoder, load
from narrowcast.transport.coder.reference import ReferenceCoder
from narrowcast.transport.contexts import ContextTables
from narrowcast.transport.errors import PayloadError, SymbolsError
from narrowcast.transport.tables import Tables

__all__ = ["Coder"]

Symbols = npt.NDArray[np.uint8]
Memories = npt.NDArray[np.int16]
Kernel = Literal["c", "python"]
# In 1/16 steps: what no symbol's distance from the tables' zero is beyond. Bounds the kernel's sums.
MOST_REMEMBERED = 16 * 255


class Coder:
    """Codes frames with one model's tables.

    Args:
        tables: the model's: a table per channel, or one per symbol, chosen by context (frames are ``[C, H, W]`` then).
        kernel: ``c`` or ``python``; the C kernel where it was built, if None.
        memory_weights: with context tables: int16 ``[levels, channels, 5]``; frames are predicted then, and every call takes
            the memories of their references.

    Attributes:
        kernel: which one is in use.
    """

    def __init__(
        self,
        tables: Tables | ContextTables,
        kernel: Kernel | None = None,
        *,
        memory_weights: npt.NDArray[np.int16] | None = None,
    ) -> None:
        library = load() if kernel in (None, "c") else None
        if kernel == "c" and library is None:
            raise RuntimeError("the C kernel was not built for this machine; reinstall with a C compiler at hand")
        self.tables = tables
        self._levels_there = tables.levels
        self.kernel: Kernel = "c" if library is not None else "python"
        self._coder: NativeCoder | NativeContextCoder | ReferenceCoder | ContextReferenceCoder
        if isinstance(tables, ContextTables):
            self._coder = (
                ContextReferenceCoder(tables, memory_weights)
                if library is None
                else NativeContextCoder(tables, library, memory_weights)
            )
        else:
            self._coder = ReferenceCoder(tables) if library is None else NativeCoder(tables, library)
        self._predicts = memory_weights is not None
        self._least_sides = 3 if isinstance(tables, ContextTables) else 2

    def encode(self, symbols: Symbols, level: int) -> bytes:
        """One frame.

        Args:
            symbols: uint8 ``[C, H, W]`` (or ``[C, ...]``), each below the tables' alphabet.
            level: which level's tables.

        Raises:
            SymbolsError: another type or shape, a symbol outside the alphabet, or no such level.
        """
        return self.encode_batch(symbols[None] if isinstance(symbols, np.ndarray) else symbols, [level])[0]

    def encode_batch(self, symbols: Symbols, levels: Sequence[int], memory: Memories | None = None) -> list[bytes]:
        """N frames, uint8 ``[N, C, ...]``, each with its level; see :meth:`encode`.

        Predicted ones go by the memories of their references, int16 of the symbols' shape.
        """
        if not isinstance(symbols, np.ndarray) or symbols.dtype != np.uint8:
            raise SymbolsError(f"symbols are uint8; these are {getattr(symbols, 'dtype', type(symbols).__name__)}")
        if symbols.ndim <= self._least_sides or symbols.shape[1] != self.tables.channels or len(symbols) != len(levels):
            raise SymbolsError(
                f"symbols of shape {list(symbols.shape)} for {len(levels)} levels and {self.tables.channels} channels"
            )
        if not len(symbols):
            return []
        recalled = self._recalled(memory, symbols.shape)
        return self._coder.encode(np.ascontiguousarray(symbols), self._levels(levels), recalled)

    def decode(self, payload: bytes, level: int, shape: Sequence[int]) -> Symbols:
        """One frame of ``shape`` ``(C, H, W)``.

        Raises:
            PayloadError: the payload is no frame of that shape and level.
            SymbolsError: no such level, or a shape of other channels than the tables'.
        """
        symbols, (error,) = self.decode_batch([payload], [level], shape)
        if error is not None:
            raise error
        frame: Symbols = symbols[0]
        return frame

    def decode_batch(
        self, payloads: Sequence[bytes], levels: Sequence[int], shape: Sequence[int], memory: Memories | None = None
    ) -> tuple[Symbols, list[PayloadError | None]]:
        """N frames of one shape, each with its level; predicted ones by their references' memories, int16 ``[N, *shape]``.

        Returns:
            uint8 ``[N, *shape]`` and, per frame, its error or None. A bad payload leaves the other frames alone.

        Raises:
            SymbolsError: no such level, or a shape of other channels than the tables'.
        """
        if len(shape) < self._least_sides or shape[0] != self.tables.channels or len(payloads) != len(levels):
            raise SymbolsError(
                f"{len(payloads)} payloads of shape {list(shape)} for {len(levels)} levels and "
                f"{self.tables.channels} channels"
            )
        if not payloads:
            return np.empty((0, *shape), np.uint8), []
        recalled = self._recalled(memory, (len(payloads), *shape))
        return self._coder.decode(list(map(bytes, payloads)), self._levels(levels), tuple(shape), recalled)

    def _recalled(self, memory: Memories | None, shape: tuple[int, ...]) -> Memories | None:
        """As the kernel reads it."""
        if (memory is not None) != self._predicts:
            raise SymbolsError("predicted frames, and no others, go by the memories of their references")
        if memory is None:
            return None
        if memory.dtype != np.int16 or memory.shape != shape:
            raise SymbolsError(f"memories are int16 {list(shape)}; these are {memory.dtype} {list(memory.shape)}")
        if memory.size and not -MOST_REMEMBERED <= int(memory.min()) <= int(memory.max()) <= MOST_REMEMBERED:
            raise SymbolsError(f"a memory is beyond {MOST_REMEMBERED}")
        return np.ascontiguousarray(memory)

    def _levels(self, levels: Sequence[int]) -> list[int]:
        for level in levels:
            if not 0 <= level < self._levels_there:
                raise SymbolsError(f"level {level}; the tables have levels 0..{self._levels_there - 1}")
        return [int(level) for level in levels]
