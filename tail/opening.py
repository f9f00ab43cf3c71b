"""What a client asks for, and whether it gets it."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from google.protobuf.message import DecodeError

from narrowcast.tail.access import Context, Gate
from narrowcast.tail.batcher import Batcher
from narrowcast.tail.errors import AccessError, FrameRefusedError, ModelUnavailableError
from narrowcast.tail.frame import MAIN_ALONE
from narrowcast.tail.models import ModelTable, Slot
from narrowcast.tail.references import MAX_REFERENCES, References, Room
from narrowcast.transport.packet import VERSION, Kind, Packet
from narrowcast.transport.rpc import tail_pb2 as pb

NO_MESSAGE = "bytes that are no message of this protocol"
_INVALID = grpc.StatusCode.INVALID_ARGUMENT.value[0]
_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


class EndedError(Exception):
    """A stream or call ends with this status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def admit(gate: Gate, context: Context, model: str | None = None) -> str:
    """The caller's name, where it may use ``model``.

    Raises:
        EndedError: it is not to be served.
    """
    try:
        client = gate.client(context)
        if model is not None:
            gate.check_model(client, model)
    except AccessError as error:
        raise EndedError(error.code, str(error)) from error
    return client


async def first_message(context: Context) -> pb.Open:
    """What a stream begins with.

    Raises:
        EndedError: it is something else, or nothing.
    """
    try:
        request = await context.read()
    except DecodeError as error:
        raise EndedError(grpc.StatusCode.INVALID_ARGUMENT, NO_MESSAGE) from error
    if request is grpc.aio.EOF or not request.HasField("open"):
        raise EndedError(grpc.StatusCode.INVALID_ARGUMENT, "the first message of a stream is `open`")
    wanted: pb.Open = request.open
    return wanted


def find_slot(models: ModelTable, model: str, fingerprint: bytes, packet_version: int) -> Slot:
    """The slot for a client's model.

    Raises:
        EndedError: no such model, another codec, or another packet version; says what the server has.
    """
    if packet_version != VERSION:
        raise EndedError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"the client speaks packet version {packet_version}, this server {VERSION}; update the older one",
        )
    try:
        return models.find(model, fingerprint)
    except ModelUnavailableError as error:
        raise EndedError(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from error


def choose_tails(batcher: Batcher, wanted: Sequence[str]) -> frozenset[str]:
    """The tails that a client asks for. One that names none has a bundle of an age that knew of the first one alone.

    Raises:
        EndedError: the model has no such tail.
    """
    unknown = sorted(set(wanted) - set(batcher.model.tails))
    if unknown:
        release, there = batcher.model.manifest.release, ", ".join(batcher.model.tails)
        raise EndedError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"no tail {unknown[0][:80]!r} in {batcher.model.name!r}, release {release}; it has {there}",
        )
    return frozenset(wanted) if wanted else MAIN_ALONE


def references_for(slot: Slot, wanted: pb.Open, room: Room, client: str) -> References | None:
    """What a client may refer to; None where it asks for nothing, or has other video tables than this server."""
    codec = slot.batcher.model.video
    if not wanted.references or codec is None or codec.fingerprint != wanted.video_fingerprint:
        return None
    return References(codec, min(wanted.references, MAX_REFERENCES), room, client)


def refusal_of(
    batcher: Batcher, packet: Packet, tails: frozenset[str], references: References | None = None
) -> FrameRefusedError | None:
    """Why a model cannot answer a packet; None where it may, as far as a packet's own fields say.

    Args:
        batcher: the model's.
        packet: as it came.
        tails: that are asked for.
        references: frames of its stream that a packet may refer to; None where it stands alone, or nothing was agreed.
    """
    model = batcher.model
    if packet.kind is Kind.IMAGE:
        if tails.issubset(model.image_tails):
            return None
        there = ", ".join(model.image_tails) or "none"
        message = (
            f"{model.name!r} cannot answer an image for {', '.join(sorted(tails))}: it has whole networks for {there}"
        )
    elif packet.kind.has_reference and references is None:
        message = (
            f"a packet of kind {packet.kind.name}, which refers to frame {packet.reference}: that takes a stream on which "
            "references were agreed (docs/protocol.md); send a key frame (kind SYMBOLS)"
        )
    elif not packet.kind.has_reference and packet.codec is not model.codec.codec_id:
        message = f"a packet with codec {packet.codec.name}; {model.name!r} has {model.codec.codec_id.name}"
    elif packet.level >= model.codec.spec.levels:
        message = f"a packet of level {packet.level}; {model.name!r} has levels 0..{model.codec.spec.levels - 1}"
    elif tails is MAIN_ALONE or tails.issubset(model.tails):
        return None
    else:  # another release has taken the place of the one that the stream was opened with
        message = f"release {model.manifest.release} of {model.name!r} has the tails {', '.join(model.tails)} only"
    return FrameRefusedError(_INVALID, message)


def rate_refusal(gate: Gate, client: str, packet_bytes: int, frames: int = 1) -> FrameRefusedError | None:
    """Why a client may not send a frame now, or so many together; None where it may."""
    retry_ms = gate.allow_frame(client, packet_bytes, frames)
    if not retry_ms:
        return None
    what = "this frame" if frames == 1 else f"these {frames} frames"
    message = f"{client} has used up its rate; send {what} again after {retry_ms} ms"
    return FrameRefusedError(_EXHAUSTED, message, retry_ms)


def resumed_behind(packet: Packet, resume_from: int) -> FrameRefusedError:
    """Why a packet is refused that lies before the frame from which its stream was resumed."""
    return FrameRefusedError(
        _INVALID,
        f"frame {packet.frame_id} lies before {resume_from}, from where the client resumed: it said that this frame is "
        "answered",
    )
