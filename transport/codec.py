"""From symbols to a packet's payload and back, by whichever codec the bundle says."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Annotated, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import zstandard

from narrowcast.transport.coder import Coder
from narrowcast.transport.contexts import ContextTables
from narrowcast.transport.contract import MAX_UNITS
from narrowcast.transport.errors import PayloadError, SymbolsError, TablesError
from narrowcast.transport.packed import PackedTables
from narrowcast.transport.packet import MAX_PAYLOAD_BYTES, CodecId
from narrowcast.transport.structs import Settings, to_json
from narrowcast.transport.tables import MAX_ALPHABET, MAX_LEVELS, Tables

Symbols = npt.NDArray[np.uint8]
Side = Annotated[int, msgspec.Meta(ge=1, le=65_536)]

ZSTD_LEVEL = 12
# A frame has at most this many symbols; it bounds what a decoder allocates.
MAX_SYMBOLS = 64 * 1024 * 1024
# What payloads of frames that differ in size begin with.
SIZE_BYTES = 2


class CodecSpec(Settings, frozen=True):
    """What both ends share about a model's symbols.

    Attributes:
        name: ``rans`` (a coding table per channel), ``rans-context`` (a table per symbol, chosen by context), ``packed``
            (symbols of a fixed width: all packets of a level have one size) or ``zstd`` (perhaps with a dictionary).
        shape: of a frame's symbols, ``[C, H, W]``; of the largest frame's, where frames differ in size.
        alphabet: symbols are ``0 .. alphabet - 1``.
        levels: how many rate points.
        quantizer: SHA-256 in hex of everything that decides which symbols an image gets.
        step: where frames differ in size: rows and columns of every frame's symbols are a multiple of these, and its payload
            begins with the multiples, a byte each. Missing where all frames have one size.
    """

    name: Literal["rans", "rans-context", "packed", "zstd"]
    shape: tuple[Side, Side, Side]
    alphabet: Annotated[int, msgspec.Meta(ge=1, le=MAX_ALPHABET)]
    levels: Annotated[int, msgspec.Meta(ge=1, le=MAX_LEVELS)]
    quantizer: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    # Missing, not null: the fingerprint of a codec for one size is what it always was.
    step: tuple[Side, Side] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if prod(self.shape) > MAX_SYMBOLS:
            raise ValueError(f"shape is {list(self.shape)}; a frame has at most {MAX_SYMBOLS} symbols")
        if isinstance(self.step, msgspec.UnsetType):
            return
        parts = [divmod(side, step) for side, step in zip(self.shape[1:], self.step, strict=True)]
        if any(rest or not 1 <= units <= MAX_UNITS for units, rest in parts):
            raise ValueError(
                f"shape is {list(self.shape)} and step {list(self.step)}; rows and columns are 1 to {MAX_UNITS} steps"
            )

    @property
    def is_free(self) -> bool:
        """Whether frames differ in size."""
        return not isinstance(self.step, msgspec.UnsetType)

    def shape_of(self, units: Sequence[int]) -> tuple[int, int, int]:
        """The shape of symbols with ``units`` times :attr:`step` rows and columns; the only one, where frames have one size.

        Raises:
            SymbolsError: that is none, or more than :attr:`shape`.
        """
        if isinstance(self.step, msgspec.UnsetType):
            return self.shape
        rows, columns = units[0] * self.step[0], units[1] * self.step[1]
        if not 0 < rows <= self.shape[1] or not 0 < columns <= self.shape[2]:
            raise SymbolsError(f"symbols of {rows} x {columns}; there are 1 x 1 to {self.shape[1]} x {self.shape[2]}")
        return self.shape[0], rows, columns

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether a frame's symbols may have this shape."""
        if isinstance(self.step, msgspec.UnsetType):
            return tuple(shape) == self.shape
        return (
            len(shape) == 3
            and shape[0] == self.shape[0]
            and all(
                0 < side <= most and side % step == 0
                for side, most, step in zip(shape[1:], self.shape[1:], self.step, strict=True)
            )
        )

    def fingerprint(self, data: bytes) -> bytes:
        """16 bytes that name this codec with its tables or dictionary ``data`` (see ``docs/wire-format.md``)."""
        return hashlib.sha256(to_json(self) + b"\0" + data).digest()[:16]


class Codec(Protocol):
    """Codes the symbols of one model.

    Attributes:
        spec: what the symbols are.
        codec_id: what packets say.
        fingerprint: 16 bytes.
    """

    spec: CodecSpec
    codec_id: CodecId
    fingerprint: bytes

    def encode(self, symbols: Symbols, level: int) -> bytes:
        """One frame uint8 ``[C, H, W]``, of a shape that :attr:`spec` takes, as a payload.

        Raises:
            SymbolsError: wrong type, shape, alphabet or level.
        """

    def decode_batch(
        self, payloads: Sequence[bytes], levels: Sequence[int]
    ) -> tuple[Symbols, list[PayloadError | None]]:
        """Payloads of one shape as uint8 ``[N, C, H, W]`` and, per payload, its error or None.

        Raises:
            SymbolsError: no such level, or the payloads are of several shapes (see :meth:`shape_of`).
        """

    def shape_of(self, payload: bytes) -> tuple[int, int, int]:
        """``(C, H, W)`` of a payload's symbols: frames that share it can share a batch.

        Raises:
            PayloadError: the payload announces none that :attr:`spec` takes.
        """


def open_codec(spec: CodecSpec, data: bytes) -> Codec:
    """The codec of a bundle.

    Args:
        spec: the manifest's.
        data: the tables, or the zstandard dictionary (may be empty).

    Raises:
        TablesError: the data are no tables, or of another shape than the spec.
    """
    if spec.name == "zstd":
        return ZstdCodec(spec, data)
    return PackedCodec(spec, data) if spec.name == "packed" else RansCodec(spec, data)


class _Coding(ABC):
    """What all codecs have in common: the two bytes before the payload of frames that differ in size."""

    codec_id: CodecId

    def __init__(self, spec: CodecSpec, data: bytes) -> None:
        self.spec = spec
        self.fingerprint = spec.fingerprint(data)

    @abstractmethod
    def _encode(self, symbols: Symbols, level: int) -> bytes:
        """Symbols of a shape that the spec takes."""

    @abstractmethod
    def _decode(
        self, payloads: Sequence[bytes], levels: Sequence[int], shape: tuple[int, int, int]
    ) -> tuple[Symbols, list[PayloadError | None]]:
        """Payloads of frames of ``shape``."""

    def encode(self, symbols: Symbols, level: int) -> bytes:
        """See :class:`Codec`."""
        _check_shape(symbols, self.spec)
        _check_level(level, self.spec)
        coded = self._encode(symbols, level)
        if isinstance(self.spec.step, msgspec.UnsetType):
            return coded
        rows, columns = (side // step for side, step in zip(symbols.shape[1:], self.spec.step, strict=True))
        return bytes((rows, columns)) + coded

    def decode_batch(
        self, payloads: Sequence[bytes], levels: Sequence[int]
    ) -> tuple[Symbols, list[PayloadError | None]]:
        """See :class:`Codec`."""
        for level in levels:
            _check_level(level, self.spec)
        if not self.spec.is_free:
            return self._decode(payloads, levels, self.spec.shape)
        shapes, errors = set(), list[PayloadError | None]()
        for payload in payloads:
            try:
                shapes.add(self.shape_of(payload))
                errors.append(None)
            except PayloadError as error:
                errors.append(error)
        if len(shapes) > 1:
            raise SymbolsError(f"a batch of payloads of {len(shapes)} shapes: a batch has one")
        shape = shapes.pop() if shapes else self.spec.shape_of((1, 1))
        sound = [k for k, error in enumerate(errors) if error is None]
        symbols = np.zeros((len(payloads), *shape), np.uint8)
        if sound:
            coded, at = [payloads[k][SIZE_BYTES:] for k in sound], [levels[k] for k in sound]
            found, problems = self._decode(coded, at, shape)
            for k, frame, problem in zip(sound, found, problems, strict=True):
                symbols[k], errors[k] = frame, problem
        return symbols, errors

    def shape_of(self, payload: bytes) -> tuple[int, int, int]:
        """See :class:`Codec`."""
        if not self.spec.is_free:
            return self.spec.shape
        if len(payload) < SIZE_BYTES:
            raise PayloadError(f"the payload of {len(payload)} bytes does not say its frame's size")
        try:
            return self.spec.shape_of(payload[:SIZE_BYTES])
        except SymbolsError as error:
            raise PayloadError(f"the payload announces {error}") from error


class RansCodec(_Coding):
    """Learned tables and the range coder, with a table per channel or with contexts."""

    def __init__(self, spec: CodecSpec, data: bytes) -> None:
        super().__init__(spec, data)
        contexts = spec.name == "rans-context"
        self.codec_id = CodecId.RANS_CONTEXT if contexts else CodecId.RANS
        tables = ContextTables.from_bytes(data) if contexts else Tables.from_bytes(data)
        _check_tables(tables, spec)
        self._coder = Coder(tables)

    def _encode(self, symbols: Symbols, level: int) -> bytes:
        return self._coder.encode(symbols, level)

    def _decode(
        self, payloads: Sequence[bytes], levels: Sequence[int], shape: tuple[int, int, int]
    ) -> tuple[Symbols, list[PayloadError | None]]:
        return self._coder.decode_batch(payloads, levels, shape)


class PackedCodec(_Coding):
    """Symbols of a fixed width; all payloads of a level and a shape have one size."""

    codec_id = CodecId.PACKED

    def __init__(self, spec: CodecSpec, data: bytes) -> None:
        super().__init__(spec, data)
        self.tables = PackedTables.from_bytes(data)
        _check_tables(self.tables, spec)
        self.payload_bytes = [self.tables.payload_bytes(level, prod(spec.shape[1:])) for level in range(spec.levels)]
        if max(self.payload_bytes) > MAX_PAYLOAD_BYTES:
            raise TablesError(f"packed symbols of {max(self.payload_bytes)} bytes; a payload has {MAX_PAYLOAD_BYTES}")

    def _encode(self, symbols: Symbols, level: int) -> bytes:
        return self.tables.pack(symbols, level)

    def _decode(
        self, payloads: Sequence[bytes], levels: Sequence[int], shape: tuple[int, int, int]
    ) -> tuple[Symbols, list[PayloadError | None]]:
        symbols = np.zeros((len(payloads), *shape), np.uint8)
        errors: list[PayloadError | None] = []
        for frame, payload, level in zip(symbols, payloads, levels, strict=True):
            try:
                frame[:] = self.tables.unpack(payload, level, shape)
                errors.append(None)
            except PayloadError as error:
                errors.append(error)
        return symbols, errors


class ZstdCodec(_Coding):
    """zstandard, for symbols that have no learned tables."""

    codec_id = CodecId.ZSTD

    def __init__(self, spec: CodecSpec, data: bytes) -> None:
        super().__init__(spec, data)
        dictionary = zstandard.ZstdCompressionDict(data, zstandard.DICT_TYPE_FULLDICT) if data else None
        size = prod(spec.shape)
        # Magicless, and without what the packet already says: every byte counts.
        parameters = zstandard.ZstdCompressionParameters.from_level(
            ZSTD_LEVEL, source_size=size, format=zstandard.FORMAT_ZSTD1_MAGICLESS,
            write_content_size=False, write_checksum=False, write_dict_id=False,
        )  # fmt: skip
        self._parameters, self._dictionary = parameters, dictionary

    def _encode(self, symbols: Symbols, level: int) -> bytes:
        if int(symbols.max()) >= self.spec.alphabet:
            raise SymbolsError(f"symbol {int(symbols.max())} is outside the alphabet 0..{self.spec.alphabet - 1}")
        # A compressor is not to be shared between threads; making one is cheap beside using it.
        compressor = zstandard.ZstdCompressor(compression_params=self._parameters, dict_data=self._dictionary)
        return compressor.compress(np.ascontiguousarray(symbols).tobytes())

    def _decode(
        self, payloads: Sequence[bytes], levels: Sequence[int], shape: tuple[int, int, int]
    ) -> tuple[Symbols, list[PayloadError | None]]:
        symbols = np.zeros((len(payloads), prod(shape)), np.uint8)
        errors: list[PayloadError | None] = []
        decompressor = zstandard.ZstdDecompressor(
            dict_data=self._dictionary, format=zstandard.FORMAT_ZSTD1_MAGICLESS, max_window_size=MAX_PAYLOAD_BYTES
        )
        for row, payload in zip(symbols, payloads, strict=True):
            try:
                row[:] = self._unpack(decompressor, payload, row.size)
                errors.append(None)
            except PayloadError as error:
                errors.append(error)
        return symbols.reshape(len(payloads), *shape), errors

    def _unpack(self, decompressor: zstandard.ZstdDecompressor, payload: bytes, size: int) -> Symbols:
        try:
            with decompressor.stream_reader(payload, read_across_frames=False) as reader:
                data = reader.read(size + 1)
            # A reader bounds what is unpacked, but does not say where the frame ends, which the second one does.
            whole = decompressor.decompressobj()
            if len(data) == size:
                whole.decompress(payload)
        except zstandard.ZstdError as error:
            raise PayloadError(f"the payload of {len(payload)} bytes is no zstandard frame: {error}") from error
        if len(data) != size:
            raise PayloadError(f"the payload unpacks to another size than {size} bytes")
        if not whole.eof or whole.unused_data:
            seen = f"has {len(whole.unused_data)} bytes behind its frame" if whole.eof else "ends within its frame"
            raise PayloadError(f"the payload of {len(payload)} bytes is no zstandard frame: it {seen}")
        symbols = np.frombuffer(data, np.uint8)
        if self.spec.alphabet <= np.iinfo(np.uint8).max and (most := int(symbols.max())) >= self.spec.alphabet:
            raise PayloadError(f"the payload has symbol {most}, outside the alphabet 0..{self.spec.alphabet - 1}")
        return symbols


def _check_tables(tables: Tables | ContextTables | PackedTables, spec: CodecSpec) -> None:
    seen, wanted = (tables.levels, tables.channels, tables.alphabet), (spec.levels, spec.shape[0], spec.alphabet)
    if seen != wanted:
        raise TablesError(f"tables for (levels, channels, alphabet) {seen}; the codec has {wanted}")


def _check_level(level: int, spec: CodecSpec) -> None:
    if not 0 <= level < spec.levels:
        raise SymbolsError(f"level {level}; the codec has levels 0..{spec.levels - 1}")


def _check_shape(symbols: Symbols, spec: CodecSpec) -> None:
    if symbols.dtype != np.uint8 or not spec.takes(symbols.shape):
        most = "up to " if spec.is_free else ""
        raise SymbolsError(
            f"symbols are uint8 {most}{list(spec.shape)}; these are {symbols.dtype} {list(symbols.shape)}"
        )
