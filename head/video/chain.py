"""One stream's frames, each by the last one that its server has answered.

What a packet becomes is decided when it is sent, on the stream that it is sent on: a new stream has answered nothing, so
after an outage, a failover or a resend frames begin with a key frame by themselves.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from narrowcast.transport.packet import MAX_DISTANCE, CodecId, Kind, Packet
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.video import Memory, VideoCodec

# Frames with more symbols are compared and coded on another thread: on the event loop they would take milliseconds.
MAX_SYMBOLS_ON_LOOP = 1 << 16
# After references that the server did not have, one upon the other, so many frames are key frames: 0, 2, 6, ... 254.
MOST_MISSES = 8


class Source(NamedTuple):
    """What a frame's packet is made from.

    Attributes:
        packet: as a key frame.
        symbols: uint8 ``[C, H, W]``.
    """

    packet: Packet
    symbols: npt.NDArray[np.uint8]


class Reference(NamedTuple):
    """A frame that the server has answered.

    Attributes:
        source: the frame.
        memory: what both ends remember of it.
        result: its answer.
    """

    source: Source
    memory: Memory
    result: pb.Result


class SentAs(NamedTuple):
    """How a frame went out.

    Attributes:
        kind: of the packet.
        size: bytes of the packet.
        source: what it was made from; None where nothing may refer to it.
        reference: what it refers to.
    """

    kind: Kind
    size: int
    source: Source | None = None
    reference: Reference | None = None


class Chain:
    """Of one stream. Must be used on one event loop.

    Args:
        codec: the bundle's, which the server has as well.
    """

    def __init__(self, codec: VideoCodec) -> None:
        self._codec = codec
        self._last: Reference | None = None
        self._misses = self._rest = 0

    async def packet(self, source: Source) -> tuple[Packet, Reference | None]:
        """What to send of a frame: a skip, a predicted packet, or its key frame where nothing else is possible."""
        last = self._last
        if last is None or not self._fits(source, last):
            return source.packet, None
        if self._rest:
            self._rest -= 1
            return source.packet, None
        if source.symbols.size > MAX_SYMBOLS_ON_LOOP:
            packet = await asyncio.to_thread(self._by, source, last)
        else:
            packet = self._by(source, last)
        return packet, last if packet.kind.has_reference else None

    def _fits(self, source: Source, last: Reference) -> bool:
        packet, before = source.packet, last.source.packet
        return (
            packet.level == before.level
            and source.symbols.shape == last.source.symbols.shape
            and 0 < packet.frame_id - before.frame_id <= MAX_DISTANCE
        )

    def _by(self, source: Source, last: Reference) -> Packet:
        codec, packet, symbols = self._codec, source.packet, source.symbols
        reference = last.source.packet.frame_id
        if codec.is_unchanged(last.source.symbols, symbols, packet.level):
            payload = codec.skip_payload(symbols.shape)
            return packet._replace(kind=Kind.SKIP, codec=CodecId.NONE, payload=payload, reference=reference)
        payload = codec.encode(symbols, packet.level, last.memory)
        if len(payload) >= len(packet.payload):
            return packet
        return packet._replace(kind=Kind.PREDICTED, codec=CodecId.RANS_PREDICTED, payload=payload, reference=reference)

    def answered(self, sent: SentAs, result: pb.Result) -> None:
        """The server's word on a frame. A skip's outputs, which the server does not repeat, are put into ``result``."""
        if result.need_key:
            if (
                self._last is not None and self._last is sent.reference
            ):  # others that were under way say no more than this
                self._last = None
                self._misses = min(self._misses + 1, MOST_MISSES)  # a server may forget everything for months
                self._rest = 2**self._misses - 2
        elif result.code == 0 and sent.source is not None:
            if sent.reference is not None:
                self._misses = 0
            if sent.kind is not Kind.SKIP:
                before = None if sent.reference is None else sent.reference.memory
                self._last = Reference(sent.source, self._codec.memory(sent.source.symbols, before), result)
            elif sent.reference is not None and not result.outputs:
                result.outputs.extend(sent.reference.result.outputs)
