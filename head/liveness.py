"""Whether the other end still lives: judged by what comes back for what was sent, not by pings at intervals.

Pings at intervals cost a metered link bytes all day, and on a thin link they wait behind the frames until they are late:
healthy links would be torn down, and everything sent again. So nothing is sent while no frame is under way. While one is,
every *sign of life* counts: a message, bytes that arrived at the socket, bytes of packets that the other end's kernel took,
or the answer to a question (a ping on the stream) that is asked after half the time. Only where all of them
are missing for longer than this link's own answers let expect, the server counts as hung.
"""

from __future__ import annotations

import time
from typing import NamedTuple

# Without any sign of life and with frames under way, a server counts as hung after so long; longer where answers take
# their time on this link.
HUNG_SECONDS = 3.0
# Answers may take so many times what was expected of them.
MARGIN = 1.5
# What the client promises the server: to be heard so often while frames are under way.
PROMISE_SECONDS = 4.0
# No link is waited for longer, however long its answers took.
LONGEST_SECONDS = 600.0
# What a link carries until it has been measured: 128 kbit/s. A frame of 32 kB is then due within HUNG_SECONDS.
ASSUMED_BYTES_PER_SECOND = 16_000
TICK_SECONDS = 0.25
# So many bytes must be taken by the other end's kernel to count: a question of ours is smaller, and a kernel takes it for a
# process that stands still as well.
LEAST_ACKNOWLEDGED_BYTES = 1024


class Pace:
    """What an answer takes on a link, apart from the server's own time, for frames of their size.

    Smoothed as RFC 6298 (section 2) smooths round trips: the mean of the last times and their deviation. A time is the
    lesser of two: from sending the frame to its answer without the time that the server says it took, and from the answer
    before. The first leaves out the server's work; the second, frames that were ahead in the queue.
    """

    def __init__(self) -> None:
        self._mean_seconds: float | None = None
        self._deviation_seconds = 0.0
        self._mean_bytes = 0.0
        self._ahead_seconds_per_byte = 1 / ASSUMED_BYTES_PER_SECOND

    def carried(self, seconds: float, size: int) -> None:
        """An image for audit and the frame behind it, so many bytes together, took so long to that frame's answer."""
        self._ahead_seconds_per_byte += (seconds / size - self._ahead_seconds_per_byte) / 2

    def answered(self, seconds: float, frame_bytes: int) -> None:
        """A frame of so many bytes took so long."""
        if self._mean_seconds is None:
            self._mean_seconds, self._deviation_seconds, self._mean_bytes = seconds, seconds / 2, frame_bytes
            return
        self._deviation_seconds += (abs(self._mean_seconds - seconds) - self._deviation_seconds) / 4
        self._mean_seconds += (seconds - self._mean_seconds) / 8
        self._mean_bytes += (frame_bytes - self._mean_bytes) / 8

    def expected_seconds(self, frame_bytes: int) -> float:
        """By when the answer to a frame of so many bytes should be there, after the one before it."""
        if self._mean_seconds is None:
            return frame_bytes / ASSUMED_BYTES_PER_SECOND
        scale = max(1.0, frame_bytes / max(1.0, self._mean_bytes))
        return (self._mean_seconds + 4 * self._deviation_seconds) * scale

    def bound_seconds(self, frame_bytes: int, patience: float = 1.0, ahead_bytes: int = 0) -> float:
        """How long there may be no sign of life while such a frame is the oldest without an answer.

        Args:
            frame_bytes: of the frame.
            patience: for this server, at least 1.
            ahead_bytes: images for audit that it has to wait behind.
        """
        expected = self.expected_seconds(frame_bytes) + ahead_bytes * self._ahead_seconds_per_byte
        return min(max(HUNG_SECONDS, MARGIN * expected) * patience, LONGEST_SECONDS)

    def promise_seconds(self, frame_bytes: int, patience: float = 1.0) -> float:
        """How long the server may hear nothing from here while such a frame is on its way."""
        return min(max(PROMISE_SECONDS, MARGIN * self.expected_seconds(frame_bytes)) * patience, LONGEST_SECONDS)


class Moved(NamedTuple):
    """Bytes of one connection so far, by the kernel.

    Attributes:
        acknowledged: that the other end's kernel has taken.
        received: that have arrived here.
    """

    acknowledged: int
    received: int


class Silence:
    """How long nothing was heard, while there was something to hear.

    Counted in ticks, so that time in which this process itself stood still (a suspended board, a held-up event loop) does
    not speak against the other end.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._ticked = time.monotonic()
        self._moved: Moved | None = None

    def broken(self) -> None:
        """A sign of life, or the first frame after a rest."""
        self.seconds = 0.0
        self._ticked = time.monotonic()

    def tick(self, moved: Moved | None) -> None:
        """Some time has passed.

        Args:
            moved: what the kernel has counted; None where it cannot be asked.
        """
        now = time.monotonic()
        self.seconds += min(now - self._ticked, 2 * TICK_SECONDS)
        self._ticked = now
        before = self._moved
        if moved is None or before is None:
            self._moved = moved
        elif moved.received > before.received or moved.acknowledged - before.acknowledged >= LEAST_ACKNOWLEDGED_BYTES:
            self._moved = moved
            self.broken()
