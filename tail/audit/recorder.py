"""An observer that keeps samples of the frames that arrive, and asks clients that consent for the images behind them."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from narrowcast.tail.audit.sampler import Chosen, Sampler
from narrowcast.tail.audit.samples import SCHEMA, Reason, Sample
from narrowcast.tail.audit.store import AuditStore
from narrowcast.tail.drift.detector import Verdict
from narrowcast.tail.drift.watch import DriftEvent
from narrowcast.tail.observe import FrameRecord, Silent, StreamInfo
from narrowcast.transport.packet import Kind, Packet

MAX_SOURCE_BYTES = 4 * 1024 * 1024  # of an image that was asked for
MAX_ASKED = 64  # sources of one stream that have not come yet; the oldest are given up
MAX_ASKED_STREAMS = 4096


class _Asked(NamedTuple):
    release: int
    reason: Reason


class AuditRecorder(Silent):
    """Keeps what the sampler chooses. Frames that were refused are not kept: they may be anything.

    Also an :class:`~narrowcast.tail.observe.Auditor`: where a frame of symbols is kept and its client consents, the client
    is asked for the image, which is kept beside the symbols. What was not asked for is not kept.

    Args:
        sampler: chooses.
        store: keeps.

    Attributes:
        sources_asked, sources_kept: images so far.
        sources_refused: images that came and were not asked for, or are too large.
    """

    def __init__(self, sampler: Sampler, store: AuditStore) -> None:
        self._sampler, self._store = sampler, store
        self._open: Counter[StreamInfo] = Counter()  # a camera that moves has two for a moment
        self._wanted: dict[StreamInfo, list[int]] = {}
        self._asked: OrderedDict[StreamInfo, OrderedDict[int, _Asked]] = OrderedDict()
        self.sources_asked = self.sources_kept = self.sources_refused = 0

    def frame_done(self, record: FrameRecord) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        if record.result.code == 0:
            self._keep(self._sampler.frame(record))

    def drifted(self, event: DriftEvent) -> None:
        """Told of drift events: an alarm makes the frames around it worth keeping."""
        if event.verdict is Verdict.DRIFT:
            self._keep(self._sampler.alarm(event.camera.client, event.camera.stream_id))

    def stream_opened(self, stream: StreamInfo) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        self._open[stream] += 1

    def stream_closed(self, stream: StreamInfo, reason: str) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        self._open[stream] -= 1
        if self._open[stream] <= 0:
            del self._open[stream]
            self._wanted.pop(stream, None)

    def wanted(self, stream: StreamInfo) -> Sequence[int]:
        """See :class:`~narrowcast.tail.observe.Auditor`."""
        return self._wanted.pop(stream, ()) if self._wanted else ()

    def source(self, stream: StreamInfo, packet: Packet) -> None:
        """See :class:`~narrowcast.tail.observe.Auditor`."""
        asked = self._asked.get(stream, OrderedDict()).pop(packet.frame_id, None)
        if asked is None or len(packet.payload) > MAX_SOURCE_BYTES:
            self.sources_refused += 1
            return
        self.sources_kept += 1
        self._store_packet(stream, packet, asked.release, asked.reason)

    def _keep(self, chosen: Iterable[Chosen]) -> None:
        for record, reason in chosen:
            self._store_packet(record.stream, record.alone(), record.release, reason)
            if record.stream.audit and record.packet.kind is not Kind.IMAGE:
                self._ask(record.stream, record.packet.frame_id, _Asked(record.release, reason))

    def _ask(self, stream: StreamInfo, frame_id: int, asked: _Asked) -> None:
        frames = self._asked.setdefault(stream, OrderedDict())
        self._asked.move_to_end(stream)
        frames[frame_id] = asked
        self._wanted.setdefault(stream, []).append(frame_id)
        self.sources_asked += 1
        if len(frames) > MAX_ASKED:
            frames.popitem(last=False)
        if len(self._asked) > MAX_ASKED_STREAMS:
            forgotten, _ = self._asked.popitem(last=False)
            self._wanted.pop(forgotten, None)

    def _store_packet(self, stream: StreamInfo, packet: Packet, release: int, reason: Reason) -> None:
        now_us = time.time_ns() // 1000
        sample = Sample(SCHEMA, now_us, stream.client, stream.model, release, reason, packet.to_bytes())
        self._store.keep(sample, packet)

    def close(self) -> None:
        """Writes what waits."""
        self._store.close()
