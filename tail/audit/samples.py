"""What a sample is, in memory and as a file.

A file is one sealed box (``transport/sealing.py``) around one msgpack map; its name tells when it was taken, which stream
and frame it is of and why it was kept: ``TIME_US-STREAM-FRAME-REASON.sealed``. Nothing else about it can be read without
the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from narrowcast.tail.errors import AuditError
from narrowcast.transport.errors import PacketError, SealError
from narrowcast.transport.packet import MAX_PAYLOAD_BYTES, Packet
from narrowcast.transport.sealing import OpeningKey, SealingKey

SCHEMA = 1
MAX_BYTES = MAX_PAYLOAD_BYTES + 4096  # of a file
Reason = Literal["every", "alarm"]
_NAME = re.compile(
    r"(?P<time>[0-9]{16,20})-(?P<stream>[0-9a-f]{32})-(?P<frame>[0-9]{1,10})-(?P<reason>every|alarm)\.sealed"
)


class Sample(msgspec.Struct, frozen=True):
    """One frame as it arrived.

    Attributes:
        schema: :data:`SCHEMA`.
        time_us: when it was kept, microseconds since 1970 UTC.
        client, model, release: whose frame it is and what answered it.
        reason: ``every`` (one in N) or ``alarm`` (around one).
        packet: standing alone (``docs/wire-format.md``): symbols, or an image.
    """

    schema: int
    time_us: int
    client: str
    model: str
    release: int
    reason: Reason
    packet: bytes

    def unpacked(self) -> Packet:
        """The packet.

        Raises:
            AuditError: it is none.
        """
        try:
            return Packet.from_bytes(self.packet)
        except PacketError as error:
            raise AuditError(f"a sample of {self.client!r} holds no packet that this release reads: {error}") from error


class Stored(NamedTuple):
    """A sample's file, as its name tells it."""

    path: Path
    time_us: int
    stream_id: bytes
    frame_id: int
    reason: str
    size_bytes: int


def file_name(sample: Sample, packet: Packet) -> str:
    """What its file is called."""
    return f"{sample.time_us:016d}-{packet.stream_id.hex()}-{packet.frame_id}-{sample.reason}.sealed"


def seal_sample(sample: Sample, key: SealingKey) -> bytes:
    """A file's content."""
    return key.seal(msgspec.msgpack.encode(sample))


def open_sample(path: Path, key: OpeningKey) -> Sample:
    """Reads a file.

    Raises:
        AuditError: no file, no sample, or one for another key.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise AuditError(f"{path} is no sample: it has more than {MAX_BYTES} bytes")
        sample = msgspec.msgpack.decode(key.open(path.read_bytes()), type=Sample)
    except (OSError, SealError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise AuditError(f"{path} is no sample that key {key.public.id} opens: {error}") from error
    if sample.schema != SCHEMA:
        raise AuditError(f"{path} is a sample of schema {sample.schema}; this release reads {SCHEMA}")
    return sample


def samples_in(folder: Path) -> Iterator[Stored]:
    """The samples in a folder, oldest first; other files are left alone.

    Raises:
        AuditError: no such folder.
    """
    if not folder.is_dir():
        raise AuditError(f"no folder {folder}")
    found = []
    for path in folder.iterdir():
        if match := _NAME.fullmatch(path.name):
            try:
                size = path.stat().st_size
            except FileNotFoundError:  # a server that runs has just removed it
                continue
            time_us, frame = int(match["time"]), int(match["frame"])
            found.append(Stored(path, time_us, bytes.fromhex(match["stream"]), frame, match["reason"], size))
    yield from sorted(found, key=lambda one: (one.time_us, one.path.name))
