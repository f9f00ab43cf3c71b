"""What a stream's client may refer to: its last answered frames, in bounded memory (``docs/protocol.md``, *Video*)."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from narrowcast.tail.errors import FrameRefusedError, NeedKeyError
from narrowcast.tail.frame import Frame
from narrowcast.transport.packet import Kind, Packet
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.video import Memory, VideoCodec

# A client refers to the last frame that it knows to be answered; behind it there are at most those of its window.
MAX_REFERENCES = 80
# One stream's frames, and those of all streams together.
MAX_STREAM_BYTES = 16 * 1024 * 1024
MAX_ALL_BYTES = 256 * 1024 * 1024
# Larger answers are not kept: a skip's client has its own, and those that watch the server are told of it without outputs.
MAX_ANSWER_BYTES = 1024 * 1024


class Kept(NamedTuple):
    """One answered frame.

    Attributes:
        level: of its symbols.
        symbols: uint8 ``[C, H, W]``.
        memory: what both ends remember of it.
        release: of the model that answered it.
        result: its answer; None where that is too large to be kept.
        size: bytes of all this.
    """

    level: int
    symbols: npt.NDArray[np.uint8]
    memory: Memory
    release: int
    result: pb.Result | None
    size: int


class _Share:
    """What of the room is one client's: bytes, and the streams that keep something."""

    __slots__ = ("streams", "used")

    def __init__(self) -> None:
        self.streams: dict[References, None] = {}
        self.used = 0


class Room:
    """Bytes that the references of all streams share, fairly among clients, and then among a client's streams.

    While there is room, anybody may have it. Where there is none, whoever holds the most, the wanted frame included, gives
    up what is oldest: of the clients, by name, the one with the most bytes; of its streams the one with the most. So a
    client that opens many streams gets no more than another that wants as much, and all that the others leave.

    Args:
        limit: bytes.

    Attributes:
        used: bytes, of all streams.
    """

    def __init__(self, limit: int = MAX_ALL_BYTES) -> None:
        self.limit = limit
        self.used = 0
        self._shares: dict[str, _Share] = {}

    @property
    def clients(self) -> dict[str, int]:
        """Bytes by client, of those that hold any."""
        return {client: share.used for client, share in self._shares.items()}

    def make(self, size: int, stream: References) -> bool:
        """Finds room for so many bytes of a stream; False where it is the stream itself that would hold the most by them."""
        while self.used + size > self.limit:
            own = self._shares.get(stream.client)
            share = max(self._shares.values(), key=lambda one: one.used, default=None)
            if share is None or share.used <= size + (0 if own is None else own.used):
                share = own
            if share is None:
                return False
            most = max(share.streams, key=lambda one: one.bytes)
            if share is own and most.bytes <= size + stream.bytes:
                most = stream
            if not most.forget_oldest():
                return False
        return True

    def count(self, stream: References, size: int) -> None:
        """A stream keeps so many bytes more, or fewer; its own ``bytes`` say so already."""
        self.used += size
        share = self._shares.get(stream.client)
        if share is None:
            share = self._shares[stream.client] = _Share()
        share.used += size
        if stream.bytes:
            share.streams[stream] = None
            return
        share.streams.pop(stream, None)
        if not share.streams:
            del self._shares[stream.client]


class References:
    """One stream's last answered frames. Must be used on one event loop.

    Args:
        codec: predicts frames.
        count: how many frames are kept, at most.
        room: for all streams.
        client: whose stream it is: clients share the room.

    Attributes:
        bytes: of what is kept.
    """

    def __init__(self, codec: VideoCodec, count: int, room: Room, client: str = "") -> None:
        self.codec = codec
        self.count = count
        self.client = client
        self.bytes = 0
        self._room = room
        self._kept: OrderedDict[int, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, frame: Frame) -> None:
        """A frame is answered. Where there is no room for it, its client is told so when it refers to it."""
        assert frame.kept is not None
        assert frame.response is not None
        symbols, memory = frame.kept
        result: pb.Result | None = frame.response.result
        size, answer_bytes = symbols.nbytes + memory.values.nbytes, frame.response.ByteSize()
        if answer_bytes > MAX_ANSWER_BYTES:
            result, answer_bytes = None, 0
        size += answer_bytes
        self._forget(frame.packet.frame_id)
        while self._kept and (len(self._kept) >= self.count or self.bytes + size > MAX_STREAM_BYTES):
            self.forget_oldest()
        if self.bytes + size > MAX_STREAM_BYTES or not self._room.make(size, self):
            return
        self._kept[frame.packet.frame_id] = Kept(frame.packet.level, symbols, memory, frame.release, result, size)
        self._count(size)

    def find(self, packet: Packet, codec: VideoCodec | None, release: int) -> Kept:
        """What a packet refers to.

        Args:
            packet: of a kind that has a reference.
            codec: of the model that is to answer it; another release than before may have taken its place.
            release: of that model.

        Raises:
            NeedKeyError: it is not there, or not what the packet takes it for.
        """
        kept = None if packet.reference is None else self._kept.get(packet.reference)
        if kept is None:
            raise NeedKeyError(f"frame {packet.reference} is not kept (any more)")
        if kept.level != packet.level:
            raise NeedKeyError(f"frame {packet.reference} is of level {kept.level}, its successor of {packet.level}")
        if codec is None or codec.fingerprint != self.codec.fingerprint:
            raise NeedKeyError("the model's new release has other video tables")
        if packet.kind is Kind.SKIP and kept.release != release:
            raise NeedKeyError(f"frame {packet.reference} was answered by release {kept.release}; now it is {release}")
        size = self.codec.skip_payload(kept.symbols.shape)  # what a predicted payload begins with, too
        if not packet.payload.startswith(size) or (packet.kind is Kind.SKIP and packet.payload != size):
            raise NeedKeyError(f"frame {packet.reference} is of another size")
        return kept

    def refer(self, frame: Frame, codec: VideoCodec | None, release: int) -> FrameRefusedError | None:
        """Finds what a frame refers to, and answers it where it is the same; why that is not possible.

        Args:
            frame: of any kind of packet.
            codec: see :meth:`find`.
            release: see there.
        """
        packet = frame.packet
        frame.keep = packet.kind in (Kind.SYMBOLS, Kind.PREDICTED)
        if not packet.kind.has_reference:
            return None
        try:
            frame.reference = self.find(packet, codec, release)
        except NeedKeyError as error:
            return error
        if packet.kind is Kind.SKIP:
            frame.release = release
            frame.finish(same_answer(packet))
        return None

    def close(self) -> None:
        """The stream has ended."""
        while self.forget_oldest():
            pass

    def forget_oldest(self) -> bool:
        """Makes room by one frame; False where none is kept."""
        if not self._kept:
            return False
        self._forget(next(iter(self._kept)))
        return True

    def _forget(self, frame_id: int) -> None:
        kept = self._kept.pop(frame_id, None)
        if kept is not None:
            self._count(-kept.size)

    def _count(self, size: int) -> None:
        self.bytes += size
        self._room.count(self, size)


def same_answer(packet: Packet) -> pb.StreamResponse:
    """What goes back for a skip: the client has the outputs."""
    return pb.StreamResponse(result=pb.Result(frame_id=packet.frame_id, same_as=packet.reference))


def whole_answer(packet: Packet, result: pb.Result, kept: Kept) -> pb.Result:
    """The same for those that watch the server: with the outputs, where they were kept."""
    outputs = () if kept.result is None else kept.result.outputs
    whole = pb.Result(frame_id=packet.frame_id, same_as=packet.reference, outputs=outputs)
    whole.times.CopyFrom(result.times)
    return whole
