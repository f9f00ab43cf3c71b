"""The packet, bit by bit."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.transport.errors import (
    PacketChecksumError,
    PacketCodecError,
    PacketError,
    PacketFieldError,
    PacketKindError,
    PacketTrailingError,
    PacketTruncatedError,
    PacketVersionError,
)
from narrowcast.transport.packet import (
    HEADER_BYTES,
    IMAGE_CODECS,
    MAX_DISTANCE,
    MAX_PAYLOAD_BYTES,
    STREAM_HEADER_BYTES,
    CodecId,
    Kind,
    Packet,
    StreamContext,
)

CONTEXT = StreamContext(bytes(range(16)), bytes(range(16, 32)), 1_700_000_000_000_000)
PACKET = Packet(CodecId.RANS, 2, 77, CONTEXT.epoch_us + 123_456, b"payload", *CONTEXT[:2])


def sealed(header: bytes, payload: bytes = b"payload") -> bytes:
    """A header with a right checksum, however wrong its fields are."""
    return header + struct.pack("<I", zlib.crc32(header + payload)) + payload


def forms(packet: Packet = PACKET) -> list[tuple[bytes, object]]:
    """The packet in both forms, and what reads each."""
    return [
        (packet.to_stream_bytes(CONTEXT), lambda data: Packet.from_stream_bytes(data, CONTEXT)),
        (packet.to_bytes(), Packet.from_bytes),
    ]


shared = {
    "frame_id": st.integers(0, 2**32 - 1),
    "capture_us": st.integers(CONTEXT.epoch_us, CONTEXT.epoch_us + 2**48 - 1),
    "payload": st.binary(max_size=300),
    "stream_id": st.just(CONTEXT.stream_id),
    "fingerprint": st.just(CONTEXT.fingerprint),
}
BY_REFERENCE = {CodecId.NONE: Kind.SKIP, CodecId.RANS_PREDICTED: Kind.PREDICTED}
packets = st.builds(
    Packet,
    codec=st.sampled_from(sorted(set(CodecId) - IMAGE_CODECS - BY_REFERENCE.keys())),
    level=st.integers(0, 255),
    kind=st.just(Kind.SYMBOLS),
    reference=st.none(),
    **shared,
) | st.builds(
    Packet,
    codec=st.sampled_from(sorted(IMAGE_CODECS)),
    level=st.just(0),
    kind=st.just(Kind.IMAGE),
    reference=st.none(),
    **shared,
)


@st.composite
def by_reference(draw):
    codec = draw(st.sampled_from(sorted(BY_REFERENCE)))
    reference = draw(st.integers(0, 2**32 - 2**16))
    fields = {name: draw(value) for name, value in shared.items()}
    fields["frame_id"] = reference + draw(st.integers(1, MAX_DISTANCE))
    return Packet(codec, draw(st.integers(0, 255)), **fields, kind=BY_REFERENCE[codec], reference=reference)


@given(packets | by_reference())
@settings(max_examples=200, deadline=None)
def test_both_forms_round_trip(packet):
    for data, read in forms(packet):
        assert read(data) == packet


def test_header_sizes_are_those_of_the_document():
    assert len(PACKET.to_stream_bytes(CONTEXT)) == STREAM_HEADER_BYTES + 7 == 24 + 7
    assert len(PACKET.to_bytes()) == HEADER_BYTES + 7 == 60 + 7


@pytest.mark.parametrize("form", [0, 1], ids=["stream", "alone"])
def test_every_flipped_bit_is_an_error(form):
    data, read = forms()[form]
    for position in range(len(data) * 8):
        bent = bytearray(data)
        bent[position // 8] ^= 1 << position % 8
        with pytest.raises(PacketError):
            read(bytes(bent))


@pytest.mark.parametrize("form", [0, 1], ids=["stream", "alone"])
def test_every_truncation_is_an_error(form):
    data, read = forms()[form]
    for end in range(len(data)):
        with pytest.raises(PacketTruncatedError):
            read(data[:end])


@pytest.mark.parametrize("form", [0, 1], ids=["stream", "alone"])
def test_every_extension_is_an_error(form):
    data, read = forms()[form]
    for byte in range(256):
        with pytest.raises(PacketTrailingError):
            read(data + bytes([byte]))


@given(st.binary(max_size=120))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_packet_or_a_packet_error(data):
    for _, read in forms():
        try:
            read(data)
        except PacketError:
            continue


@pytest.mark.parametrize("form", [0, 1], ids=["stream", "alone"])
@pytest.mark.parametrize(
    ("offset", "value", "error", "said"),
    [
        (0, 0x42, PacketVersionError, "0x42"),
        (0, 0x00, PacketVersionError, "0x00"),
        (1, 0, PacketKindError, "kind 0"),
        (1, 3, PacketCodecError, "kind SKIP with codec RANS"),
        (1, 4, PacketCodecError, "kind PREDICTED with codec RANS"),
        (1, 5, PacketKindError, "kind 5"),
        (1, 2, PacketCodecError, "kind IMAGE with codec"),
        (1, 200, PacketKindError, "kind 200"),
        (2, 0, PacketCodecError, "kind SYMBOLS with codec NONE"),
        (2, 5, PacketCodecError, "kind SYMBOLS with codec RANS_PREDICTED"),
        (2, 6, PacketCodecError, "codec 6"),
        (2, 99, PacketCodecError, "codec 99"),
        (2, 16, PacketCodecError, "kind SYMBOLS with codec JPEG"),
    ],
)
def test_unknown_versions_kinds_and_codecs_say_which(form, offset, value, error, said):
    data, read = forms()[form]
    header = bytearray(data[: -len(PACKET.payload) - 4])
    header[offset] = value
    with pytest.raises(error, match=said):
        read(sealed(bytes(header)))


@pytest.mark.parametrize(("form", "at"), [(0, 16), (1, 52)], ids=["stream", "alone"])
def test_a_length_over_the_limit_is_refused_before_anything_else(form, at):
    data, read = forms()[form]
    header = bytearray(data[: -len(PACKET.payload) - 4])
    header[at : at + 4] = struct.pack("<I", MAX_PAYLOAD_BYTES + 1)
    with pytest.raises(PacketFieldError, match=str(MAX_PAYLOAD_BYTES)):
        read(sealed(bytes(header)))


@pytest.mark.parametrize(("form", "at"), [(0, 14), (1, 48)], ids=["stream", "alone"])
def test_a_reference_has_no_place_in_a_plain_packet(form, at):
    data, read = forms()[form]
    header = bytearray(data[: -len(PACKET.payload) - 4])
    header[at] = 1
    with pytest.raises(PacketFieldError, match="reference"):
        read(sealed(bytes(header)))


def test_a_payload_in_another_place_fails_the_checksum():
    with pytest.raises(PacketChecksumError, match="damaged"):
        Packet.from_bytes(PACKET.to_bytes()[:-7] + b"payloae")


@pytest.mark.parametrize(
    "change",
    [
        {"level": 256},
        {"level": -1},
        {"frame_id": 2**32},
        {"capture_us": -1},
        {"capture_us": 2**64},
        {"payload": bytes(MAX_PAYLOAD_BYTES + 1)},
        {"stream_id": b"short"},
        {"fingerprint": b""},
    ],
    ids=lambda change: next(iter(change)),
)
def test_fields_outside_their_limits_are_not_written(change):
    packet = PACKET._replace(**change)
    with pytest.raises(PacketFieldError):
        packet.to_bytes()
    with pytest.raises(PacketFieldError):
        packet.to_stream_bytes(CONTEXT)


@pytest.mark.parametrize(
    "change", [{"stream_id": bytes(16)}, {"capture_us": CONTEXT.epoch_us - 1}, {"capture_us": 2**63}]
)
def test_a_packet_of_another_stream_or_time_does_not_fit_this_one(change):
    with pytest.raises(PacketFieldError):
        PACKET._replace(**change).to_stream_bytes(CONTEXT)


def test_kinds_and_codecs_keep_their_numbers():
    assert {kind.name: kind.value for kind in Kind} == {"SYMBOLS": 1, "IMAGE": 2, "SKIP": 3, "PREDICTED": 4}
    assert {codec.name: codec.value for codec in CodecId} == {
        "NONE": 0, "RANS": 1, "ZSTD": 2, "RANS_CONTEXT": 3, "PACKED": 4, "RANS_PREDICTED": 5, "JPEG": 16, "WEBP": 17,
    }  # fmt: skip


def test_an_image_has_no_level():
    image = PACKET._replace(kind=Kind.IMAGE, codec=CodecId.WEBP, level=0)
    assert Packet.from_bytes(image.to_bytes()) == image
    with pytest.raises(PacketFieldError, match="level 1; images have none"):
        image._replace(level=1).to_bytes()
    with pytest.raises(PacketCodecError, match="kind IMAGE with codec RANS"):
        image._replace(codec=CodecId.RANS).to_bytes()
    header = bytearray(image.to_stream_bytes(CONTEXT)[: -len(PACKET.payload) - 4])
    header[3] = 1
    with pytest.raises(PacketFieldError, match="level 1; images have none"):
        Packet.from_stream_bytes(sealed(bytes(header)), CONTEXT)


@pytest.mark.parametrize("codec", sorted(BY_REFERENCE))
def test_a_reference_lies_before_its_frame(codec):
    packet = PACKET._replace(kind=BY_REFERENCE[codec], codec=codec, reference=70)
    assert Packet.from_stream_bytes(packet.to_stream_bytes(CONTEXT), CONTEXT) == packet
    for reference, said in (
        (None, "without a reference"),
        (77, "frame 77 refers to frame 77"),
        (-1, "refers to frame -1"),
    ):
        with pytest.raises(PacketFieldError, match=said):
            packet._replace(reference=reference).to_bytes()
    with pytest.raises(PacketFieldError, match="SYMBOLS with a reference"):
        PACKET._replace(reference=70).to_bytes()
    # Forged, with a right checksum.
    stream, alone = (bytearray(data[: -len(PACKET.payload) - 4]) for data, _ in forms(packet))
    for distance, said in ((0, "without a reference"), (78, "refers to frame -1")):
        stream[14:16] = distance.to_bytes(2, "little")
        with pytest.raises(PacketFieldError, match=said):
            Packet.from_stream_bytes(sealed(bytes(stream)), CONTEXT)
    for number, said in ((0, "without a reference"), (78, "frame 77 refers to frame 77")):
        alone[48:52] = number.to_bytes(4, "little")
        with pytest.raises(PacketFieldError, match=said):
            Packet.from_bytes(sealed(bytes(alone)))


def test_a_reference_that_a_stream_cannot_name_is_not_written():
    far = PACKET._replace(kind=Kind.PREDICTED, codec=CodecId.RANS_PREDICTED, reference=0, frame_id=MAX_DISTANCE + 1)
    assert Packet.from_bytes(far.to_bytes()) == far
    with pytest.raises(PacketFieldError, match="a reference 65536 frames back; in a stream it is 65535 at most"):
        far.to_stream_bytes(CONTEXT)
