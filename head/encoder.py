"""A client's frames before the network: what is sent of each one, or the answer that makes sending needless."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

from narrowcast.head.accounting import Ledger
from narrowcast.head.ahead import Ready, made_ready
from narrowcast.head.offload import OffloadControl, Way
from narrowcast.head.rate.control import RateControl
from narrowcast.head.session import Encoded, HeadSession
from narrowcast.head.timing import FrameTimes
from narrowcast.transport.contract import Image
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.packet import CodecId

WAYS = get_args(Way)
ImageCodec = Literal["jpeg", "webp"]
IMAGE_CODECS: dict[str, CodecId] = {"jpeg": CodecId.JPEG, "webp": CodecId.WEBP}


class Sending(NamedTuple):
    """What a client sends where nobody says otherwise.

    Attributes:
        way: ``symbols``, or each frame as an ``image``.
        image_codec: of images.
        image_quality: of theirs.
        level: of symbols.
        deadline_ms: how long a frame's answer is wanted; None for ever.
        exit_after_seconds: when the local exit answers; None where there is none.
        keep_source: whether the scaled frames are kept, for audit.
    """

    way: Way
    image_codec: ImageCodec
    image_quality: int
    level: int
    deadline_ms: float | None
    exit_after_seconds: float | None
    keep_source: bool


def check_images(way: Way, image_codec: ImageCodec, image_quality: int) -> None:
    """Whether there is such a way, and such an image.

    Raises:
        ConfigError: there is not.
    """
    if way not in WAYS or image_codec not in IMAGE_CODECS or not 1 <= image_quality <= 100:
        raise ConfigError(
            f"way {way!r}, image codec {image_codec!r}, quality {image_quality}: one of {', '.join(WAYS)}; one of "
            f"{', '.join(IMAGE_CODECS)}; 1..100"
        )


class FrameEncoder:
    """Encodes for one client. Safe to call on any thread.

    Args:
        session: the head.
        sending: what is wanted.
        named_level: the level that the client was given; None where it was given none, or ``auto``.
        rate: chooses levels and drops frames; None where nothing limits them.
        offload: decides where frames are answered; None where that is settled.
        ledger: is told of frames that cannot be encoded.
    """

    def __init__(
        self,
        session: HeadSession,
        sending: Sending,
        *,
        named_level: int | None,
        rate: RateControl | None,
        offload: OffloadControl | None,
        ledger: Ledger,
    ) -> None:
        self._session, self._sending, self._named_level = session, sending, named_level
        self._rate, self._offload, self._ledger = rate, offload, ledger

    def encode(self, frame: Image | Ready, level: int | None = None) -> Encoded:
        """What is to be sent of a frame, whatever rate control and the offload decision say."""
        with self._accounted():
            return self._encode(frame, level)

    @contextmanager
    def _accounted(self) -> Iterator[None]:
        """A frame that nothing can be made of has its end here, whichever way it was to go."""
        try:
            yield
        except Exception:
            self._ledger.drop("not encoded")
            raise

    def _encode(self, frame: Image | Ready, level: int | None) -> Encoded:
        sending = self._sending
        if sending.way == "image":
            return self._encode_image(frame)
        level = sending.level if level is None else level
        return self._session.encode(frame, level, keep_source=sending.keep_source)

    def _encode_image(self, frame: Image | Ready) -> Encoded:
        codec = IMAGE_CODECS[self._sending.image_codec]
        return self._session.encode_image(frame, codec, self._sending.image_quality)

    def prepare(
        self, frame: Image | Ready, level: int | None, started: float, deadline_ms: float | None = None
    ) -> Encoded:
        """As :meth:`encode`, by rate control where there is any: at the level that it chooses, or as a dropped frame.

        A call that names a level has it, within the limits.
        """
        limit_ms = self._limit_ms(deadline_ms)
        with self._accounted():
            if self._offload is None:
                return self._split(frame, level, started, limit_ms)
            wanted = self._named_level if level is None else level
            return self._offload.prepare(
                frame, started, limit_ms, split=lambda one: self._split(one, wanted, started, limit_ms),
                image=self._as_image,
            )  # fmt: skip

    def _limit_ms(self, deadline_ms: float | None) -> float | None:
        """By when a frame's answer is wanted, or is given here."""
        exit_after = self._sending.exit_after_seconds
        limits = [
            self._sending.deadline_ms if deadline_ms is None else deadline_ms,
            None if exit_after is None else exit_after * 1000,
        ]
        return min((one for one in limits if one is not None), default=None)

    def _split(self, frame: Image | Ready, level: int | None, started: float, limit_ms: float | None) -> Encoded:
        if self._rate is None:
            return self._encode(frame, level)
        return self._rate.encode(
            frame, level, self._sending.level, started, limit_ms, encode=self._encode, drop=self._dropped
        )  # fmt: skip

    def _as_image(self, frame: Image | Ready) -> Encoded:
        assert self._rate is not None
        return self._rate.encode_image(frame, encode=self._encode_image, drop=self._dropped)

    def _dropped(self, frame: Image | Ready, reason: str) -> Encoded:
        """What stands for a frame that is not sent: for the local exit, its symbols."""
        ready = made_ready(frame, self._session.contract)
        prepared, resized, times = ready.prepared, time.perf_counter(), FrameTimes(resize_ms=ready.resize_ms)
        symbols, level = None, self._sending.level
        if self._sending.exit_after_seconds is not None:
            symbols = self._session.symbols(prepared.image, level)
            times.head_ms = (time.perf_counter() - resized) * 1000
        return Encoded(
            b"", level, prepared.placement, times, symbols, self._session.codec.codec_id, dropped=reason
        )  # fmt: skip
