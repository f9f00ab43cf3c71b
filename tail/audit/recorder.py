"""An observer that keeps samples of the frames that arrive."""

from __future__ import annotations

import time
from collections.abc import Iterable

from narrowcast.tail.audit.sampler import Chosen, Sampler
from narrowcast.tail.audit.samples import SCHEMA, Sample
from narrowcast.tail.audit.store import AuditStore
from narrowcast.tail.drift.detector import Verdict
from narrowcast.tail.drift.watch import DriftEvent
from narrowcast.tail.observe import FrameRecord, Silent


class AuditRecorder(Silent):
    """Keeps what the sampler chooses. Frames that were refused are not kept: they may be anything.

    Args:
        sampler: chooses.
        store: keeps.
    """

    def __init__(self, sampler: Sampler, store: AuditStore) -> None:
        self._sampler, self._store = sampler, store

    def frame_done(self, record: FrameRecord) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        if record.result.code == 0:
            self._keep(self._sampler.frame(record))

    def drifted(self, event: DriftEvent) -> None:
        """Told of drift events: an alarm makes the frames around it worth keeping."""
        if event.verdict is Verdict.DRIFT:
            self._keep(self._sampler.alarm(event.camera.client, event.camera.stream_id))

    def _keep(self, chosen: Iterable[Chosen]) -> None:
        for record, reason in chosen:
            packet, stream = record.packet, record.stream
            sample = Sample(
                SCHEMA, time.time_ns() // 1000, stream.client, stream.model, record.release, reason, packet.to_bytes()
            )
            self._store.keep(sample, packet)

    def close(self) -> None:
        """Writes what waits."""
        self._store.close()
