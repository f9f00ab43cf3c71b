"""Records and segments of a spool as bytes, as in ``docs/spool-format.md``.

What is on disk may have been cut off or overwritten anywhere. A record counts only if its own checksum does; where one does
not, the next one that does is searched for by its mark.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from narrowcast.transport.packet import HEADER_BYTES, MAX_PAYLOAD_BYTES, Packet

VERSION = 1
MAGIC = b"NCSPOOL" + bytes([VERSION])
MARK = b"\xfaNCR"
_SEGMENT = struct.Struct("<8sQQI")
_RECORD = struct.Struct("<4sHHIQQ")
_CHECKSUM = struct.Struct("<I")
SEGMENT_HEADER_BYTES = _SEGMENT.size + _CHECKSUM.size
RECORD_HEADER_BYTES = _RECORD.size + _CHECKSUM.size
MAX_NOTE_BYTES = 0xFFFF
MAX_PACKET_BYTES = HEADER_BYTES + MAX_PAYLOAD_BYTES


class Record(NamedTuple):
    """One spooled packet.

    Attributes:
        number: counts the records of this spool.
        spooled_us: when, microseconds since 1970 UTC by the clock of the board.
        note: what the client keeps with it, at most 65,535 bytes.
        data: the packet standing alone.
    """

    number: int
    spooled_us: int
    note: bytes
    data: bytes

    def packet(self) -> Packet:
        """The packet.

        Raises:
            PacketError: it is none that this release reads.
        """
        return Packet.from_bytes(self.data)

    def to_bytes(self) -> bytes:
        """The record in a segment."""
        head = _RECORD.pack(MARK, len(self.note), 0, len(self.data), self.number, self.spooled_us)
        checksum = zlib.crc32(self.data, zlib.crc32(self.note, zlib.crc32(head)))
        return b"".join((head, _CHECKSUM.pack(checksum), self.note, self.data))


class SegmentHeader(NamedTuple):
    """What a segment begins with.

    Attributes:
        version: of the format.
        first: the number of its first record.
        created_us: microseconds since 1970 UTC.
    """

    version: int
    first: int
    created_us: int

    def to_bytes(self) -> bytes:
        """The first 32 bytes of a segment."""
        head = _SEGMENT.pack(MAGIC[:7] + bytes([self.version]), self.first, self.created_us, 0)
        return head + _CHECKSUM.pack(zlib.crc32(head))


def read_segment_header(data: bytes) -> SegmentHeader | None:
    """A segment's header; None where it is damaged. One of a newer version counts as a header."""
    if len(data) < SEGMENT_HEADER_BYTES or data[:7] != MAGIC[:7]:
        return None
    (checksum,) = _CHECKSUM.unpack_from(data, _SEGMENT.size)
    if zlib.crc32(data[: _SEGMENT.size]) != checksum:
        return None
    magic, first, created_us, _ = _SEGMENT.unpack_from(data)
    return SegmentHeader(magic[7], first, created_us)


def record_bytes(header: bytes) -> int | None:
    """How long the record is that begins with this header; None where that begins none."""
    if len(header) < RECORD_HEADER_BYTES or header[:4] != MARK:
        return None
    _, note_bytes, reserved, data_bytes, _, _ = _RECORD.unpack_from(header)
    if reserved or data_bytes > MAX_PACKET_BYTES:
        return None
    return int(RECORD_HEADER_BYTES + note_bytes + data_bytes)


def read_record(data: bytes, offset: int = 0) -> Record | None:
    """The record that begins at ``offset``; None where there is no whole, undamaged one."""
    size = record_bytes(data[offset : offset + RECORD_HEADER_BYTES])
    if size is None or offset + size > len(data):
        return None
    _, note_bytes, _, _, number, spooled_us = _RECORD.unpack_from(data, offset)
    (checksum,) = _CHECKSUM.unpack_from(data, offset + _RECORD.size)
    body = memoryview(data)[offset + RECORD_HEADER_BYTES : offset + size]
    if zlib.crc32(body, zlib.crc32(data[offset : offset + _RECORD.size])) != checksum:
        return None
    return Record(number, spooled_us, bytes(body[:note_bytes]), bytes(body[note_bytes:]))


def scan(data: bytes, offset: int, least: int) -> Iterator[tuple[int, int, Record]]:
    """The undamaged records from ``offset`` on, each with where it begins and ends.

    Args:
        data: a segment, or the beginning of one.
        offset: where to begin.
        least: the smallest number that the next record may have; numbers only grow.
    """
    while offset >= 0:
        record = read_record(data, offset)
        if record is None or record.number < least:
            offset = data.find(MARK, offset + 1)
            continue
        end = offset + RECORD_HEADER_BYTES + len(record.note) + len(record.data)
        yield offset, end, record
        least, offset = record.number + 1, end
