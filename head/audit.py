"""Sources of frames for the server's operator: those that the server asks for, where the user of the client has consented.

A server sees symbols; whether its answers are right can be told from images alone. With consent, the last few frames are
held here as the network sees them, and one that a result asks for is sent as an image file, behind everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from narrowcast.head.unanswered import LinkCounters
from narrowcast.transport.contract import Image
from narrowcast.transport.errors import ConfigError, NarrowcastError
from narrowcast.transport.images import encode_image
from narrowcast.transport.packet import CodecId, Kind, Packet, StreamContext

ImageCodec = Literal["jpeg", "webp"]
# Images that budgets keep back ask again so often.
LIMIT_SECONDS = 0.2
_CODECS: dict[str, CodecId] = {"jpeg": CodecId.JPEG, "webp": CodecId.WEBP}


@dataclass(frozen=True)
class AuditConsent:
    """How a client that consents sends sources.

    Attributes:
        codec: ``jpeg`` or ``webp``.
        quality: 1..100, as Pillow understands it.
        frames_per_second: at most; what is asked for beyond that waits, and the oldest of it is forgotten.
        max_frames, max_bytes: of the latest frames that are held (uint8 RGB of the network's input), and once more of those
            that are asked for.

    Raises:
        ConfigError: a value that cannot be.
    """

    codec: ImageCodec = "jpeg"
    quality: int = 90
    frames_per_second: float = 1.0
    max_frames: int = 64
    max_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.codec not in get_args(ImageCodec) or not 1 <= self.quality <= 100:
            raise ConfigError(
                f"images for audit as {self.codec!r} of quality {self.quality}; one of {', '.join(_CODECS)}; 1..100"
            )
        if not 0 < self.frames_per_second < math.inf or min(self.max_frames, self.max_bytes) < 1:
            raise ConfigError(
                f"{self.frames_per_second} frames a second for audit, {self.max_frames} frames and {self.max_bytes} bytes "
                "held: above 0, and at least 1 of each"
            )


class _Source(NamedTuple):
    frame_id: int
    capture_us: int
    image: Image


class _Held:
    """Frames by id, the latest ones, within bounds."""

    def __init__(self, max_frames: int, max_bytes: int) -> None:
        self._max_frames, self._max_bytes = max_frames, max_bytes
        self._frames: OrderedDict[int, _Source] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, source: _Source) -> int:
        """Returns how many had to go."""
        self._frames[source.frame_id] = source
        self._bytes += source.image.nbytes
        gone = 0
        while len(self._frames) > self._max_frames or self._bytes > self._max_bytes:
            self.take(next(iter(self._frames)))
            gone += 1
        return gone

    def take(self, frame_id: int) -> _Source | None:
        source = self._frames.pop(frame_id, None)
        if source is not None:
            self._bytes -= source.image.nbytes
        return source

    def first(self) -> _Source:
        source = self.take(next(iter(self._frames)))
        assert source is not None
        return source


class AuditFrames:
    """The sources of one link's frames. Must be used on one event loop.

    Args:
        consent: how much is held and sent.
        context: of the link's packets.
        counters: are kept up.
        changed: called when there is something to send.
        may_send: whether a packet of so many bytes is within budgets and caps now, and charged; may wait for the disk.
    """

    def __init__(
        self,
        consent: AuditConsent,
        context: StreamContext,
        counters: LinkCounters,
        changed: Callable[[], None],
        may_send: Callable[[int], bool] | None = None,
    ) -> None:
        self._consent, self._context, self._counters, self._changed = consent, context, counters, changed
        self._may_send = may_send
        self._recent = _Held(consent.max_frames, consent.max_bytes)
        self._asked = _Held(consent.max_frames, consent.max_bytes)
        self._ready: deque[bytes] = deque()
        self._taken = asyncio.Event()
        self._working: asyncio.Task[None] | None = None

    def remember(self, frame_id: int, capture_us: int, image: Image) -> None:
        """A frame as the network sees it, uint8 ``[H, W, 3]``; it must not change any more."""
        self._recent.put(_Source(frame_id, capture_us, image))

    def ask(self, frame_ids: Iterable[int]) -> None:
        """A server asks for these; those that are no longer held are counted and left out."""
        for frame_id in frame_ids:
            source = self._recent.take(frame_id)
            if source is None:
                self._counters.audit_missed += 1
            else:
                self._counters.audit_missed += self._asked.put(source)
        if len(self._asked) and self._working is None:
            self._working = asyncio.create_task(self._work())

    def ready(self) -> bytes | None:
        """The next packet to be sent, in stream form, if there is one and it may go now; it then counts as sent."""
        if not self._ready:
            return None
        self._taken.set()
        self._counters.audit_sent += 1
        return self._ready.popleft()

    async def close(self) -> None:
        """Forgets everything."""
        if self._working is not None:
            self._working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._working

    async def _work(self) -> None:
        """Images to files, off the event loop, one by one and no faster than was consented to."""
        try:
            while len(self._asked):
                data = await asyncio.to_thread(self._packet, self._asked.first())
                if data is None:
                    self._counters.audit_missed += 1
                    continue
                await self._come_within_limits(len(data))
                self._ready.append(data)
                self._taken.clear()
                self._changed()
                await self._taken.wait()
                await asyncio.sleep(1 / self._consent.frames_per_second)
        finally:
            self._working = None

    async def _come_within_limits(self, size: int) -> None:
        """Images wait, as spooled frames do: for what live frames leave of budgets and caps."""
        while self._may_send is not None and not await asyncio.to_thread(self._may_send, size):
            await asyncio.sleep(LIMIT_SECONDS)

    def _packet(self, source: _Source) -> bytes | None:
        codec = _CODECS[self._consent.codec]
        try:
            payload = encode_image(source.image, codec, self._consent.quality)
        except NarrowcastError:  # an input that is no image file's size: nothing that a frame should suffer for
            return None
        packet = Packet(
            codec, 0, source.frame_id, source.capture_us, payload, self._context.stream_id, self._context.fingerprint,
            Kind.IMAGE,
        )  # fmt: skip
        return packet.to_stream_bytes(self._context)
