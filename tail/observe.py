"""What the server tells those who watch it: metrics, traces, drift, sampling.

The service and the batcher know nothing of them; they tell an :class:`Observer`. All calls come from the event loop, and
must return at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from narrowcast.tail.frame import Frame
from narrowcast.tail.references import whole_answer
from narrowcast.transport.codec import Codec
from narrowcast.transport.packet import Kind, Packet
from narrowcast.transport.rpc import tail_pb2 as pb


class StreamInfo(NamedTuple):
    """One open stream, or one unary call.

    Attributes:
        client: its name, from :class:`narrowcast.tail.access.Gate`.
        model: what it asked for.
        stream_id: 16 bytes, chosen by the client; one camera keeps it over reconnects. Empty for a unary call.
        audit: whether the client consents to send sources of its frames where it is asked for them.
    """

    client: str
    model: str
    stream_id: bytes
    audit: bool = False


class KeyFrame(NamedTuple):
    """A frame's symbols uint8 ``[C, H, W]``, and what codes them."""

    codec: Codec
    symbols: npt.NDArray[np.uint8]

    def of(self, packet: Packet) -> Packet:
        """A key frame in place of a packet that refers to another frame."""
        payload = self.codec.encode(self.symbols, packet.level)
        return packet._replace(kind=Kind.SYMBOLS, codec=self.codec.codec_id, payload=payload, reference=None)


class FrameRecord(NamedTuple):
    """One frame, answered or refused.

    Attributes:
        stream: whose.
        release: of the model that answered it.
        packet: as it came.
        packet_bytes: its size on the wire, gRPC's framing left out.
        result: what goes back; ``result.code`` says what became of it.
        result_bytes: size of what goes back.
        encode_ms: time to put the result into bytes.
        profile: numbers about the symbols, for :mod:`narrowcast.tail.drift`; None where nobody wants them.
        key: of a frame that came by reference, what makes a key frame of it.
    """

    stream: StreamInfo
    release: int
    packet: Packet
    packet_bytes: int
    result: pb.Result
    result_bytes: int
    encode_ms: float
    profile: npt.NDArray[np.float64] | None = None
    key: KeyFrame | None = None

    def alone(self) -> Packet:
        """The frame as a packet that can be read without its stream."""
        return self.packet if self.key is None else self.key.of(self.packet)


def record_of(stream: StreamInfo, frame: Frame, codec: Codec | None = None) -> FrameRecord:
    """What observers are told of a frame; ``codec`` makes key frames of those that refer to others."""
    assert frame.response is not None
    result, key = frame.response.result, None
    if frame.reference is not None and codec is not None and not result.code:
        symbols = frame.reference.symbols if frame.kept is None else frame.kept[0]
        key = KeyFrame(codec, symbols)
        if frame.packet.kind is Kind.SKIP:
            result = whole_answer(frame.packet, result, frame.reference)
    return FrameRecord(
        stream, frame.release, frame.packet, frame.packet_bytes, result,
        frame.response.ByteSize(), frame.encode_ms, frame.profile, key,
    )  # fmt: skip


class Observer(Protocol):
    """Is told what happens. See the module.

    Attributes:
        wants_profiles: whether frames are to have their profiles, which cost some microseconds each.
    """

    @property
    def wants_profiles(self) -> bool:
        """See the class."""

    def stream_opened(self, stream: StreamInfo) -> None:
        """A stream was accepted."""

    def stream_closed(self, stream: StreamInfo, reason: str) -> None:
        """A stream that was accepted has ended; ``reason`` is the status' name, ``OK`` where all is well."""

    def refused(self, client: str, model: str, code: str) -> None:
        """A stream or call was turned away; ``model`` is what was asked for, known or not."""

    def frame_done(self, record: FrameRecord) -> None:
        """A frame's result goes out."""

    def batch_done(self, model: str, size: int, queued: int) -> None:
        """A batch was computed; ``queued`` frames wait behind it."""


class Auditor(Protocol):
    """Wants sources of frames (images), of clients that consent to send them. Called on the event loop; returns at once."""

    def wanted(self, stream: StreamInfo) -> Sequence[int]:
        """Frames whose sources to ask for now, with a result that goes out on a stream with consent; asked once each."""

    def source(self, stream: StreamInfo, packet: Packet) -> None:
        """A packet of kind IMAGE that came as a frame's source: asked for or not."""


class Silent:
    """An :class:`Observer` that listens to nothing; a base for those that listen to a part."""

    wants_profiles = False

    def stream_opened(self, stream: StreamInfo) -> None:
        """See :class:`Observer`."""

    def stream_closed(self, stream: StreamInfo, reason: str) -> None:
        """See :class:`Observer`."""

    def refused(self, client: str, model: str, code: str) -> None:
        """See :class:`Observer`."""

    def frame_done(self, record: FrameRecord) -> None:
        """See :class:`Observer`."""

    def batch_done(self, model: str, size: int, queued: int) -> None:
        """See :class:`Observer`."""


class Observers:
    """An :class:`Observer` that tells several."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = list(observers)

    def add(self, observer: Observer) -> None:
        """Tells one more from now on."""
        self._observers.append(observer)

    @property
    def wants_profiles(self) -> bool:
        """See :class:`Observer`."""
        return any(observer.wants_profiles for observer in self._observers)

    def stream_opened(self, stream: StreamInfo) -> None:
        """See :class:`Observer`."""
        for observer in self._observers:
            observer.stream_opened(stream)

    def stream_closed(self, stream: StreamInfo, reason: str) -> None:
        """See :class:`Observer`."""
        for observer in self._observers:
            observer.stream_closed(stream, reason)

    def refused(self, client: str, model: str, code: str) -> None:
        """See :class:`Observer`."""
        for observer in self._observers:
            observer.refused(client, model, code)

    def frame_done(self, record: FrameRecord) -> None:
        """See :class:`Observer`."""
        for observer in self._observers:
            observer.frame_done(record)

    def batch_done(self, model: str, size: int, queued: int) -> None:
        """See :class:`Observer`."""
        for observer in self._observers:
            observer.batch_done(model, size, queued)
