"""The packet: one frame on the wire, byte by byte as in ``docs/wire-format.md``.

In a stream, :meth:`Packet.to_stream_bytes` leaves out what opening the stream agreed; alone, in a file, a spool or a
single call, :meth:`Packet.to_bytes` carries all.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

from narrowcast.transport.errors import (
    PacketChecksumError,
    PacketCodecError,
    PacketFieldError,
    PacketKindError,
    PacketTrailingError,
    PacketTruncatedError,
    PacketVersionError,
)

VERSION = 1
MAX_PAYLOAD_BYTES = 16 * 1024 * 1024
_STREAM, _ALONE = 0x40 | VERSION, 0x80 | VERSION
_STREAM_HEADER = struct.Struct("<BBBBI6sHI")
_ALONE_HEADER = struct.Struct("<BBBB16s16sIQII")
_CHECKSUM = struct.Struct("<I")
_NO_REFERENCE = 0
# In a stream a reference is this many frames back, at most.
MAX_DISTANCE = (1 << 16) - 1
_CRC_PIECE, _CRC_WHOLE = 5 * 1024, 256 * 1024
STREAM_HEADER_BYTES = _STREAM_HEADER.size + _CHECKSUM.size
HEADER_BYTES = _ALONE_HEADER.size + _CHECKSUM.size


class Kind(IntEnum):
    """What a packet is: a frame's symbols by themselves (a key frame), an image, or something that goes by a reference."""

    SYMBOLS = 1
    IMAGE = 2
    SKIP = 3
    PREDICTED = 4

    @property
    def has_reference(self) -> bool:
        """Whether it means nothing without an earlier frame of its stream."""
        return self is Kind.SKIP or self is Kind.PREDICTED


class CodecId(IntEnum):
    """How a payload is coded: 1 to 15 are for symbols, from 16 on for images; 0 is for a skip."""

    NONE = 0
    RANS = 1
    ZSTD = 2
    RANS_CONTEXT = 3
    PACKED = 4
    RANS_PREDICTED = 5
    JPEG = 16
    WEBP = 17


IMAGE_CODECS = frozenset({CodecId.JPEG, CodecId.WEBP})


_KINDS = {kind.value: kind for kind in Kind}
# Which of them a kind may have; a key frame all that are left.
_CODECS_OF = {
    Kind.IMAGE: IMAGE_CODECS,
    Kind.SKIP: frozenset({CodecId.NONE}),
    Kind.PREDICTED: frozenset({CodecId.RANS_PREDICTED}),
}
_CODECS_OF[Kind.SYMBOLS] = frozenset(CodecId).difference(*_CODECS_OF.values())
_CODECS = {codec.value: codec for codec in CodecId}


class StreamContext(NamedTuple):
    """What opening a stream agreed, and its packets leave out.

    Attributes:
        stream_id: 16 bytes, chosen by the client.
        fingerprint: 16 bytes, of the model's codec.
        epoch_us: the stream's time zero, microseconds since 1970 UTC.
    """

    stream_id: bytes
    fingerprint: bytes
    epoch_us: int


class Packet(NamedTuple):
    """One frame.

    Attributes:
        codec: how the payload is coded.
        level: the rate point; 0 with an image.
        frame_id: of its stream; 0 .. 2^32 - 1.
        capture_us: when the frame was taken, microseconds since 1970 UTC.
        payload: the coded symbols, or an image file.
        stream_id: 16 bytes.
        fingerprint: 16 bytes: the codec that the payload is for.
        kind: what the packet is.
        reference: the frame id of its reference, which is less than its own; None for kinds without.
    """

    codec: CodecId
    level: int
    frame_id: int
    capture_us: int
    payload: bytes
    stream_id: bytes
    fingerprint: bytes
    kind: Kind = Kind.SYMBOLS
    reference: int | None = None

    def to_bytes(self) -> bytes:
        """The packet standing alone.

        Raises:
            PacketFieldError: a field outside its limits.
        """
        self._check()
        reference = _NO_REFERENCE if self.reference is None else self.reference + 1
        header = _ALONE_HEADER.pack(
            _ALONE, self.kind, self.codec, self.level, self.stream_id, self.fingerprint, self.frame_id,
            self.capture_us, reference, len(self.payload),
        )  # fmt: skip
        return _sealed(header, self.payload)

    def to_stream_bytes(self, context: StreamContext) -> bytes:
        """The packet in a stream that was opened with ``context``.

        Raises:
            PacketFieldError: a field outside its limits, or a packet of another stream.
        """
        self._check()
        if (self.stream_id, self.fingerprint) != context[:2]:
            raise PacketFieldError("the packet belongs to another stream or codec")
        since = self.capture_us - context.epoch_us
        if not 0 <= since < 1 << 48:
            raise PacketFieldError(f"a capture time {since} us after the stream's epoch; it lies in 0..2^48 - 1")
        distance = _NO_REFERENCE if self.reference is None else self.frame_id - self.reference
        if distance > MAX_DISTANCE:
            raise PacketFieldError(f"a reference {distance} frames back; in a stream it is {MAX_DISTANCE} at most")
        header = _STREAM_HEADER.pack(
            _STREAM, self.kind, self.codec, self.level, self.frame_id, since.to_bytes(6, "little"), distance,
            len(self.payload),
        )  # fmt: skip
        return _sealed(header, self.payload)

    @classmethod
    def from_bytes(cls, data: bytes) -> Packet:
        """A packet that stands alone.

        Raises:
            PacketError: one of its subclasses, by what is wrong.
        """
        _check_form(data, _ALONE, HEADER_BYTES)
        _, kind, codec, level, stream_id, fingerprint, frame_id, capture_us, reference, size = (
            _ALONE_HEADER.unpack_from(data)
        )
        payload = _opened(data, HEADER_BYTES, size)
        checked_kind, checked_codec = _known(kind, codec, level)
        found = None if reference == _NO_REFERENCE else reference - 1
        _check_reference(checked_kind, frame_id, found)
        return cls(checked_codec, level, frame_id, capture_us, payload, stream_id, fingerprint, checked_kind, found)

    @classmethod
    def from_stream_bytes(cls, data: bytes, context: StreamContext) -> Packet:
        """A packet from a stream that was opened with ``context``.

        Raises:
            PacketError: one of its subclasses, by what is wrong.
        """
        _check_form(data, _STREAM, STREAM_HEADER_BYTES)
        _, kind, codec, level, frame_id, since, distance, size = _STREAM_HEADER.unpack_from(data)
        payload = _opened(data, STREAM_HEADER_BYTES, size)
        checked_kind, checked_codec = _known(kind, codec, level)
        reference = None if distance == _NO_REFERENCE else frame_id - distance
        _check_reference(checked_kind, frame_id, reference)
        capture_us = context.epoch_us + int.from_bytes(since, "little")
        return cls(
            checked_codec, level, frame_id, capture_us, payload, context.stream_id, context.fingerprint, checked_kind,
            reference,
        )  # fmt: skip

    def _check(self) -> None:
        limits = (
            ("level", self.level, 1 << 8),
            ("frame id", self.frame_id, 1 << 32),
            ("capture time", self.capture_us, 1 << 64),
            ("payload length", len(self.payload), MAX_PAYLOAD_BYTES + 1),
        )
        for name, value, limit in limits:
            if not 0 <= value < limit:
                raise PacketFieldError(f"a packet's {name} is {value}; it lies in 0..{limit - 1}")
        _check_kind(self.kind, self.codec, self.level)
        _check_reference(self.kind, self.frame_id, self.reference)
        if len(self.stream_id) != 16 or len(self.fingerprint) != 16:
            raise PacketFieldError("a packet's stream id and codec fingerprint have 16 bytes each")


def _sealed(header: bytes, payload: bytes) -> bytes:
    return b"".join((header, _CHECKSUM.pack(_checksum(header, payload)), payload))


def _checksum(header: bytes, payload: bytes) -> int:
    """CRC-32 of both, in pieces: beyond 5 kB zlib lets go of Python's lock, and on a busy loop waits to have it back."""
    value = zlib.crc32(header)
    if len(payload) <= _CRC_PIECE or len(payload) > _CRC_WHOLE:
        return zlib.crc32(payload, value)
    view = memoryview(payload)
    for start in range(0, len(payload), _CRC_PIECE):
        value = zlib.crc32(view[start : start + _CRC_PIECE], value)
    return value


def _check_form(data: bytes, form: int, header_bytes: int) -> None:
    if not data:
        raise PacketTruncatedError("a packet of 0 bytes")
    if data[0] != form:
        raise PacketVersionError(
            f"a packet that starts with 0x{data[0]:02x}; this release reads 0x{form:02x} here "
            f"({'alone' if form == _ALONE else 'in a stream'}, version {VERSION})"
        )
    if len(data) < header_bytes:
        raise PacketTruncatedError(f"a packet of {len(data)} bytes; its header alone has {header_bytes}")


def _opened(data: bytes, header_bytes: int, size: int) -> bytes:
    """The payload, once length and checksum are right."""
    if size > MAX_PAYLOAD_BYTES:
        raise PacketFieldError(f"a packet announces a payload of {size} bytes; the limit is {MAX_PAYLOAD_BYTES}")
    if len(data) < header_bytes + size:
        raise PacketTruncatedError(f"a packet of {len(data)} bytes announces {header_bytes + size}")
    if len(data) > header_bytes + size:
        raise PacketTrailingError(f"a packet of {len(data)} bytes announces {header_bytes + size}")
    payload = data[header_bytes:]
    (wanted,) = _CHECKSUM.unpack_from(data, header_bytes - _CHECKSUM.size)
    if _checksum(data[: header_bytes - _CHECKSUM.size], payload) != wanted:
        raise PacketChecksumError("a packet's checksum does not match: it was damaged on its way")
    return payload


def _known(kind: int, codec: int, level: int) -> tuple[Kind, CodecId]:
    try:
        checked_kind = _KINDS[kind]
    except KeyError:
        raise PacketKindError(f"a packet of kind {kind}; this release reads {list(_KINDS)}") from None
    try:
        checked_codec = _CODECS[codec]
    except KeyError:
        raise PacketCodecError(f"a packet with codec {codec}; this release reads {list(_CODECS)}") from None
    _check_kind(checked_kind, checked_codec, level)
    return checked_kind, checked_codec


def _check_kind(kind: Kind, codec: CodecId, level: int) -> None:
    if codec not in _CODECS_OF[kind]:
        raise PacketCodecError(f"a packet of kind {kind.name} with codec {codec.name}")
    if level and kind is Kind.IMAGE:
        raise PacketFieldError(f"a packet of kind IMAGE with level {level}; images have none: 0")


def _check_reference(kind: Kind, frame_id: int, reference: int | None) -> None:
    if not kind.has_reference:
        if reference is not None:
            raise PacketFieldError(f"a packet of kind {kind.name} with a reference frame")
    elif reference is None:
        raise PacketFieldError(f"a packet of kind {kind.name} without a reference frame")
    elif not 0 <= reference < frame_id:
        raise PacketFieldError(f"frame {frame_id} refers to frame {reference}; a reference lies before its frame")
