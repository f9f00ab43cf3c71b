"""What a client would send of a clip, by each way: for the bundle's figures and the benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from narrowcast.transport.codec import Codec
from narrowcast.transport.packet import STREAM_HEADER_BYTES, Kind
from narrowcast.transport.video import Memory, VideoCodec

Symbols = npt.NDArray[np.uint8]


class Step(NamedTuple):
    """One frame.

    Attributes:
        kind: of its packet.
        size: bytes of the packet in a stream.
        answered_by: the frame whose answer it gets: itself, or an earlier one.
    """

    kind: Kind
    size: int
    answered_by: int


class _Answered(NamedTuple):
    number: int
    symbols: Symbols
    memory: Memory


def follow(
    codec: Codec,
    video: VideoCodec,
    frames: Sequence[Symbols] | Symbols,
    level: int,
    *,
    skip: bool = True,
    behind: int = 1,
) -> Iterator[Step]:
    """The packets of frames uint8 ``[T, C, H, W]``, as :class:`narrowcast.head.video.chain.Chain` chooses them.

    Args:
        codec: of key frames.
        video: of the others.
        frames: one after the other.
        level: theirs.
        skip: whether frames that show nothing new are skipped.
        behind: how many frames later a frame's answer is known: 1 where the link is faster than the camera.
    """
    answered: list[_Answered] = []
    for number, symbols in enumerate(frames):
        last = next((one for one in reversed(answered) if one.number + behind <= number), None)
        if skip and last is not None and video.is_unchanged(last.symbols, symbols, level):
            yield Step(Kind.SKIP, STREAM_HEADER_BYTES + len(video.skip_payload(symbols.shape)), last.number)
            continue
        key = codec.encode(symbols, level)
        kind, payload, before = Kind.SYMBOLS, key, None
        if last is not None and len(predicted := video.encode(symbols, level, last.memory)) < len(key):
            kind, payload, before = Kind.PREDICTED, predicted, last.memory
        answered.append(_Answered(number, symbols, video.memory(symbols, before)))
        yield Step(kind, STREAM_HEADER_BYTES + len(payload), number)
        del answered[: -behind - 1]
