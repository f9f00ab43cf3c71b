"""Makes the packets of one stream: key frames, and what refers to other frames where its server keeps them."""

from __future__ import annotations

from narrowcast.head.unanswered import Waiting
from narrowcast.head.video.chain import Chain, Reference, SentAs
from narrowcast.transport.packet import Kind, Packet, StreamContext
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.video import VideoCodec


class Outgoing:
    """Of one stream.

    Args:
        codec: predicts frames; None: packets go out as they are.
    """

    def __init__(self, codec: VideoCodec | None) -> None:
        self._codec = codec
        self._chain: Chain | None = None
        self._context = StreamContext(b"", b"", 0)

    def ask(self, opening: pb.Open) -> None:
        """What the server is to keep: behind the last answered frame there are at most those under way."""
        if self._codec is not None:
            opening.references, opening.video_fingerprint = opening.window + 1, self._codec.fingerprint

    def agreed(self, opening: pb.Open, references: int, window: int) -> None:
        """What it keeps. With less than its window, answered frames might be gone before they are referred to."""
        if self._codec is not None and references > window:
            self._chain = Chain(self._codec)
            self._context = StreamContext(opening.stream_id, opening.codec_fingerprint, opening.epoch_us)

    async def made(self, waiting: Waiting) -> tuple[bytes, SentAs]:
        """A frame's packet for this stream, and what it is."""
        data, source = waiting.data, waiting.source
        if self._chain is None or source is None:
            return data, SentAs(Kind(data[1]), len(data))
        packet: Packet = source.packet
        reference: Reference | None = None
        if not waiting.by_itself:
            packet, reference = await self._chain.packet(source)
        if reference is not None:
            data = packet.to_stream_bytes(self._context)
        return data, SentAs(packet.kind, len(data), source, reference)

    def answered(self, sent: SentAs, result: pb.Result) -> None:
        """See :meth:`Chain.answered`."""
        if self._chain is not None:
            self._chain.answered(sent, result)
