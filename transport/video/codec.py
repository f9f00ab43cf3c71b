"""Predicted frames: symbols and a reference's memory to a payload, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from narrowcast.transport.codec import SIZE_BYTES, CodecSpec
from narrowcast.transport.coder import Coder
from narrowcast.transport.errors import PayloadError, SymbolsError, TablesError
from narrowcast.transport.video.memory import Memory, change_between, memory_of_key, remembered
from narrowcast.transport.video.tables import VideoTables

Symbols = npt.NDArray[np.uint8]


class VideoCodec:
    """Codes frames by a reference. Safe to use from several threads.

    Args:
        spec: of the model's codec, whose symbols these are.
        data: the bundle's part ``video``.

    Attributes:
        fingerprint: 16 bytes: both ends must have the same.

    Raises:
        TablesError: the data are no video tables, or of another shape than the spec.
    """

    def __init__(self, spec: CodecSpec, data: bytes) -> None:
        tables = VideoTables.from_bytes(data)
        contexts = tables.contexts
        seen, wanted = (
            (contexts.levels, contexts.channels, contexts.alphabet),
            (spec.levels, spec.shape[0], spec.alphabet),
        )
        if seen != wanted:
            raise TablesError(f"video tables for (levels, channels, alphabet) {seen}; the codec has {wanted}")
        self.spec, self.tables = spec, tables
        self.fingerprint = tables.fingerprint()
        self._coder = Coder(contexts, memory_weights=tables.memory_weights)

    @property
    def frame_bytes(self) -> int:
        """What keeping one frame takes: symbols and memory."""
        channels, rows, columns = self.spec.shape
        return 3 * channels * rows * columns

    def is_unchanged(self, reference: Symbols, symbols: Symbols, level: int) -> bool:
        """Whether a frame shows nothing that its reference of the same level does not: the reference's answer is as good."""
        return change_between(reference, symbols) <= int(self.tables.unchanged[level])

    def memory(self, symbols: Symbols, before: Memory | None) -> Memory:
        """What is remembered of a frame: of a key frame (``before`` is None), or of one that was predicted."""
        zero = self.tables.contexts.zero
        return memory_of_key(symbols, zero) if before is None else remembered(before, symbols, zero)

    def skip_payload(self, shape: Sequence[int]) -> bytes:
        """Of a skip, whose reference has symbols of ``shape``."""
        return self._size(shape)

    def encode(self, symbols: Symbols, level: int, memory: Memory) -> bytes:
        """One frame uint8 ``[C, H, W]`` as a payload.

        Args:
            symbols: of the shape that its reference has.
            level: the same as its reference's.
            memory: the reference's.

        Raises:
            SymbolsError: wrong type, shape, alphabet or level.
        """
        if symbols.shape != memory.values.shape:
            raise SymbolsError(f"symbols {list(symbols.shape)} by a reference of {list(memory.values.shape)}")
        return self._size(symbols.shape) + self._coder.encode_batch(symbols[None], [level], memory.values[None])[0]

    def decode_batch(
        self, payloads: Sequence[bytes], levels: Sequence[int], memories: Sequence[Memory]
    ) -> tuple[Symbols, list[PayloadError | None]]:
        """Payloads whose references have one shape as uint8 ``[N, C, H, W]`` and, per payload, its error or None.

        Raises:
            SymbolsError: no such level, or references of several shapes.
        """
        shape = memories[0].values.shape
        if any(memory.values.shape != shape for memory in memories):
            raise SymbolsError("a batch of predicted payloads by references of several shapes: a batch has one")
        begin = self._size(shape)
        errors: list[PayloadError | None] = [
            None if payload.startswith(begin) else PayloadError("the payload is of another size than its reference")
            for payload in payloads
        ]
        sound = [row for row, error in enumerate(errors) if error is None]
        values = [memories[row].values for row in sound]
        found, problems = self._coder.decode_batch(
            [payloads[row][len(begin) :] for row in sound], [levels[row] for row in sound], shape,
            values[0][None] if len(values) == 1 else np.stack(values) if values else np.empty((0, *shape), np.int16),
        )  # fmt: skip
        if len(sound) == len(payloads):
            return found, problems
        symbols = np.zeros((len(payloads), *shape), np.uint8)
        for row, frame, problem in zip(sound, found, problems, strict=True):
            symbols[row], errors[row] = frame, problem
        return symbols, errors

    def _size(self, shape: Sequence[int]) -> bytes:
        """What payloads of a shape begin with."""
        if not isinstance(self.spec.step, tuple):
            return b""
        size = bytes(side // step for side, step in zip(shape[1:], self.spec.step, strict=True))
        assert len(size) == SIZE_BYTES
        return size
