"""From symbols to a packet's payload and back, by whichever codec the bundle says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import prod
from typing import Annotated, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import zstandard

from narrowcast.transport.coder import Coder
from narrowcast.transport.contexts import ContextTables
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


class CodecSpec(Settings, frozen=True):
    """What both ends share about a model's symbols.

    Attributes:
        name: ``rans`` (a coding table per channel), ``rans-context`` (a table per symbol, chosen by context), ``packed``
            (symbols of a fixed width: all packets of a level have one size) or ``zstd`` (perhaps with a dictionary).
        shape: of a frame's symbols, ``[C, H, W]``.
        alphabet: symbols are ``0 .. alphabet - 1``.
        levels: how many rate points.
        quantizer: SHA-256 in hex of everything that decides which symbols an image gets.
    """

    name: Literal["rans", "rans-context", "packed", "zstd"]
    shape: tuple[Side, Side, Side]
    alphabet: Annotated[int, msgspec.Meta(ge=1, le=MAX_ALPHABET)]
    levels: Annotated[int, msgspec.Meta(ge=1, le=MAX_LEVELS)]
    quantizer: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]

    def __post_init__(self) -> None:
        if prod(self.shape) > MAX_SYMBOLS:
            raise ValueError(f"shape is {list(self.shape)}; a frame has at most {MAX_SYMBOLS} symbols")

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
        """One frame uint8 ``spec.shape`` as a payload.

        Raises:
            SymbolsError: wrong type, shape, alphabet or level.
        """

    def decode_batch(
        self, payloads: Sequence[bytes], levels: Sequence[int]
    ) -> tuple[Symbols, list[PayloadError | None]]:
        """Payloads as uint8 ``[N, *spec.shape]`` and, per payload, its error or None.

        Raises:
            SymbolsError: no such level.
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


class RansCodec:
    """Learned tables and the range coder, with a table per channel or with contexts."""

    def __init__(self, spec: CodecSpec, data: bytes) -> None:
        self.spec = spec
        self.fingerprint = spec.fingerprint(data)
        contexts = spec.name == "rans-context"
        self.codec_id = CodecId.RANS_CONTEXT if contexts else CodecId.RANS
        tables = ContextTables.from_bytes(data) if contexts else Tables.from_bytes(data)
        _check_tables(tables, spec)
        self._coder = Coder(tables)

    def encode(self, symbols: Symbols, level: int) -> bytes:
        """See :class:`Codec`."""
        _check_shape(symbols, self.spec)
        return self._coder.encode(symbols, level)

    def decode_batch(
        self, payloads: Sequence[bytes], levels: Sequence[int]
    ) -> tuple[Symbols, list[PayloadError | None]]:
        """See :class:`Codec`."""
        return self._coder.decode_batch(payloads, levels, self.spec.shape)


class PackedCodec:
    """Symbols of a fixed width."""

    codec_id = CodecId.PACKED

    def __init__(self, spec: CodecSpec, data: bytes) -> None:
        self.spec = spec
        self.fingerprint = spec.fingerprint(data)
        self.tables = PackedTables.from_bytes(data)
        _check_tables(self.tables, spec)
        self.payload_bytes = [self.tables.payload_bytes(level, prod(spec.shape[1:])) for level in range(spec.levels)]
        if max(self.payload_bytes) > MAX_PAYLOAD_BYTES:
            raise TablesError(f"packed symbols of {max(self.payload_bytes)} bytes; a payload has {MAX_PAYLOAD_BYTES}")

    def encode(self, symbols: Symbols, level: int) -> bytes:
        """See :class:`Codec`; all payloads of a level have one size."""
        _check_shape(symbols, self.spec)
        _check_level(level, self.spec)
        return self.tables.pack(symbols, level)

    def decode_batch(
        self, payloads: Sequence[bytes], levels: Sequence[int]
    ) -> tuple[Symbols, list[PayloadError | None]]:
        """See :class:`Codec`."""
        symbols = np.zeros((len(payloads), *self.spec.shape), np.uint8)
        errors: list[PayloadError | None] = []
        for frame, payload, level in zip(symbols, payloads, levels, strict=True):
            _check_level(level, self.spec)
            try:
                frame[:] = self.tables.unpack(payload, level, self.spec.shape)
                errors.append(None)
            except PayloadError as error:
                errors.append(error)
        return symbols, errors


class ZstdCodec:
    """zstandard, for symbols that have no learned tables."""

    codec_id = CodecId.ZSTD

    def __init__(self, spec: CodecSpec, data: bytes) -> None:
        self.spec = spec
        self.fingerprint = spec.fingerprint(data)
        dictionary = zstandard.ZstdCompressionDict(data, zstandard.DICT_TYPE_FULLDICT) if data else None
        size = prod(spec.shape)
        # Magicless, and without what the packet already says: every byte counts.
        parameters = zstandard.ZstdCompressionParameters.from_level(
            ZSTD_LEVEL, source_size=size, format=zstandard.FORMAT_ZSTD1_MAGICLESS,
            write_content_size=False, write_checksum=False, write_dict_id=False,
        )  # fmt: skip
        self._parameters, self._dictionary, self._size = parameters, dictionary, size

    def encode(self, symbols: Symbols, level: int) -> bytes:
        """See :class:`Codec`."""
        _check_shape(symbols, self.spec)
        _check_level(level, self.spec)
        if int(symbols.max()) >= self.spec.alphabet:
            raise SymbolsError(f"symbol {int(symbols.max())} is outside the alphabet 0..{self.spec.alphabet - 1}")
        # A compressor is not to be shared between threads; making one is cheap beside using it.
        compressor = zstandard.ZstdCompressor(compression_params=self._parameters, dict_data=self._dictionary)
        return compressor.compress(np.ascontiguousarray(symbols).tobytes())

    def decode_batch(
        self, payloads: Sequence[bytes], levels: Sequence[int]
    ) -> tuple[Symbols, list[PayloadError | None]]:
        """See :class:`Codec`."""
        symbols = np.zeros((len(payloads), self._size), np.uint8)
        errors: list[PayloadError | None] = []
        decompressor = zstandard.ZstdDecompressor(
            dict_data=self._dictionary, format=zstandard.FORMAT_ZSTD1_MAGICLESS, max_window_size=MAX_PAYLOAD_BYTES
        )
        for row, payload, level in zip(symbols, payloads, levels, strict=True):
            _check_level(level, self.spec)
            try:
                row[:] = np.frombuffer(self._unpack(decompressor, payload), np.uint8)
                errors.append(None)
            except PayloadError as error:
                errors.append(error)
        return symbols.reshape(len(payloads), *self.spec.shape), errors

    def _unpack(self, decompressor: zstandard.ZstdDecompressor, payload: bytes) -> bytes:
        try:
            with decompressor.stream_reader(payload, read_across_frames=False) as reader:
                data = reader.read(self._size + 1)
                rest = reader.read(1) if len(data) == self._size else b"x"
        except zstandard.ZstdError as error:
            raise PayloadError(f"the payload of {len(payload)} bytes is no zstandard frame: {error}") from error
        if rest:
            raise PayloadError(f"the payload unpacks to another size than {self._size} bytes")
        if data and max(data) >= self.spec.alphabet:
            raise PayloadError(f"the payload has symbol {max(data)}, outside the alphabet 0..{self.spec.alphabet - 1}")
        return data


def _check_tables(tables: Tables | ContextTables | PackedTables, spec: CodecSpec) -> None:
    seen, wanted = (tables.levels, tables.channels, tables.alphabet), (spec.levels, spec.shape[0], spec.alphabet)
    if seen != wanted:
        raise TablesError(f"tables for (levels, channels, alphabet) {seen}; the codec has {wanted}")


def _check_level(level: int, spec: CodecSpec) -> None:
    if not 0 <= level < spec.levels:
        raise SymbolsError(f"level {level}; the codec has levels 0..{spec.levels - 1}")


def _check_shape(symbols: Symbols, spec: CodecSpec) -> None:
    if symbols.dtype != np.uint8 or symbols.shape != spec.shape:
        raise SymbolsError(f"symbols are uint8 {list(spec.shape)}; these are {symbols.dtype} {list(symbols.shape)}")
