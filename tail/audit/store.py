"""A folder of sealed samples, bounded by age and bytes, written on a thread of its own."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

from narrowcast.tail.audit.samples import Sample, Stored, file_name, samples_in, seal_sample
from narrowcast.tail.errors import AuditError
from narrowcast.tail.seldom import Seldom
from narrowcast.transport.files import forget_partials, replacing
from narrowcast.transport.packet import Packet
from narrowcast.transport.sealing import SealingKey

log = logging.getLogger(__name__)

PRUNE_SECONDS = 60.0
MAX_WAITING_BYTES = 64 * 1024 * 1024


class Retention(NamedTuple):
    """How long samples stay. The oldest go first.

    Attributes:
        max_age_s: seconds.
        max_bytes: of all files together.
    """

    max_age_s: float = 30 * 86_400.0
    max_bytes: int = 1 << 30


class AuditStore:
    """Keeps samples.

    Args:
        folder: made where it is not there; readable by its owner only.
        key: seals; whoever has its secret half can open the samples, the server cannot.
        retention: how long they stay. Also applied to what was in the folder before.
        capacity: samples that may wait to be written, of at most :data:`MAX_WAITING_BYTES`; more are dropped, and counted.

    Attributes:
        kept, dropped: samples so far.

    Raises:
        AuditError: the folder cannot be used.
    """

    def __init__(
        self, folder: Path, key: SealingKey, retention: Retention | None = None, *, capacity: int = 256
    ) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe = folder / ".writable"
            probe.touch(mode=0o600)
            probe.unlink()
            forget_partials(folder)
        except OSError as error:
            raise AuditError(f"samples cannot be kept in {folder}: {error}") from error
        self._folder, self._key, self._retention = folder, key, retention or Retention()
        self._files = deque(samples_in(folder))
        self._bytes = sum(one.size_bytes for one in self._files)
        self.kept = self.dropped = 0
        self._failures = Seldom()
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._queue: queue.Queue[tuple[Sample, Packet] | None] = queue.Queue(capacity)
        self._thread = threading.Thread(target=self._work, name="audit", daemon=True)
        self._thread.start()

    def keep(self, sample: Sample, packet: Packet) -> None:
        """Queues a sample; returns at once.

        Args:
            sample: what to keep.
            packet: the one that is in it: names the file.
        """
        size = len(sample.packet)
        try:
            if self._waiting_bytes + size > MAX_WAITING_BYTES:
                raise queue.Full
            self._queue.put_nowait((sample, packet))
            self._wait_for(size)
        except queue.Full:
            self.dropped += 1
            if self.dropped & (self.dropped - 1) == 0:
                log.warning("audit: the disk is too slow: %d samples dropped so far", self.dropped)

    def _wait_for(self, size: int) -> None:
        with self._lock:
            self._waiting_bytes += size

    def close(self, seconds: float = 5.0) -> None:
        """Writes what waits, for at most so long."""
        try:
            self._queue.put(None, timeout=seconds)
        except queue.Full:
            log.warning("audit: samples that were not yet written are dropped")
            return
        self._thread.join(seconds)

    def _work(self) -> None:
        self._prune()
        while True:
            try:
                item = self._queue.get(timeout=PRUNE_SECONDS)
            except queue.Empty:
                self._prune()
                continue
            if item is None:
                return
            self._wait_for(-len(item[0].packet))
            try:
                self._write(*item)
            except OSError as error:
                self.dropped += 1
                if (before := self._failures.take(str(error.errno))) is not None:
                    log.error("audit: a sample was not kept: %s%s", error, before)
            self._prune()

    def _write(self, sample: Sample, packet: Packet) -> None:
        data = seal_sample(sample, self._key)
        path = self._folder / file_name(sample, packet)
        with replacing(path) as out:
            out.write(data)
        stored = Stored(path, sample.time_us, packet.stream_id, packet.frame_id, sample.reason, len(data))
        self._files.append(stored)
        self._bytes += len(data)
        self.kept += 1

    def _prune(self) -> None:
        oldest = (time.time() - self._retention.max_age_s) * 1e6
        while self._files and (self._files[0].time_us < oldest or self._bytes > self._retention.max_bytes):
            gone = self._files.popleft()
            self._bytes -= gone.size_bytes
            try:
                gone.path.unlink(missing_ok=True)
            except OSError as error:
                log.error("audit: %s stays, although it is too old: %s", gone.path, error)
