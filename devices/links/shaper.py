"""One way of a link: what is handed to it is queued, sent at a rate, delayed, and perhaps lost.

Knows no clock and no socket: whoever drives it says what time it is. So a simulation drives it as packets on a wire do.

Each item waits its turn, takes ``size / rate`` to be sent (a lost one too: it was on the air), and arrives ``delay`` plus
jitter after that, never before the one in front of it.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Generic, NamedTuple, TypeVar

import msgspec

from narrowcast.devices.links.link import Direction

T = TypeVar("T")


class WayCounts(msgspec.Struct):
    """What one way has done.

    Attributes:
        offered: packets (of a relay: pieces) that were handed to it, and ``offered_bytes``.
        delivered: those that arrived, and ``delivered_bytes``.
        lost: on the way, by chance.
        overflowed: because the queue was full.
        cut: because the link was cut.
        waiting_bytes: that have not been sent yet.
        first_s: when the first item was begun to be sent, in seconds of the driver's clock; None before.
        last_s: when the newest one arrived there; None before.
        late_ms: by how much the driver delivered too late at worst: what its machine adds to the link.
        late_sum_ms: the same, of all that was delivered together.
    """

    offered: int = 0
    offered_bytes: int = 0
    delivered: int = 0
    delivered_bytes: int = 0
    lost: int = 0
    overflowed: int = 0
    cut: int = 0
    waiting_bytes: int = 0
    first_s: float | None = None
    last_s: float | None = None
    late_ms: float = 0.0
    late_sum_ms: float = 0.0


class _Item(NamedTuple, Generic[T]):
    item: T
    size: int
    at: float


class Way(Generic[T]):
    """One way.

    Args:
        settings: the link's.
        can_lose: False where what is handed over must arrive (a stream's bytes): then nothing is lost, whatever the settings
            say, the queue has no end (see :meth:`room_bytes`), and a cut holds everything.
        seed: of loss and jitter.
    """

    def __init__(self, settings: Direction, *, can_lose: bool, seed: int | None = None) -> None:
        self.settings = settings
        self.counts = WayCounts()
        self._can_lose = can_lose
        self._random = random.Random(seed)  # noqa: S311  (no secret)
        self._waiting: deque[_Item[T]] = deque()  # with the time at which each was handed over
        self._flying: deque[_Item[T]] = deque()  # with the time at which each arrives
        self._first: _Item[T] | None = None  # the one that is being sent
        self._free_at = 0.0
        self._is_cut = False

    @property
    def waiting_bytes(self) -> int:
        """What has not been sent yet."""
        return self.counts.waiting_bytes

    @property
    def room_bytes(self) -> int:
        """What the queue has room for."""
        return self.settings.queue_bytes - self.counts.waiting_bytes

    def offer(self, now: float, item: T, size: int) -> bool:
        """Hands an item over; whether there was room for it."""
        self._advance(now)
        self.counts.offered += 1
        self.counts.offered_bytes += size
        if self._can_lose and self._is_cut:
            self.counts.cut += 1
            return False
        if self._can_lose and size > self.room_bytes:
            self.counts.overflowed += 1
            return False
        if self.counts.first_s is None:
            self.counts.first_s = now
        self._waiting.append(_Item(item, size, now))
        self.counts.waiting_bytes += size
        self._advance(now)
        return True

    def next_at(self) -> float | None:
        """When there is something to do; None while there is nothing."""
        if self._is_cut:
            return None
        times = [self._free_at] if self._first is not None else []
        if self._flying:
            times.append(self._flying[0].at)
        return min(times, default=None)

    def take(self, now: float) -> list[T]:
        """What has arrived by now, in order."""
        self._advance(now)
        arrived = []
        while self._flying and self._flying[0].at <= now and not self._is_cut:
            one = self._flying.popleft()
            self.counts.delivered += 1
            self.counts.delivered_bytes += one.size
            self.counts.last_s = now
            late_ms = (now - one.at) * 1000
            self.counts.late_ms = max(self.counts.late_ms, late_ms)
            self.counts.late_sum_ms += late_ms
            arrived.append(one.item)
        return arrived

    def change(self, now: float, settings: Direction) -> None:
        """Another rate, delay and so on from now; what is being sent is sent to its end as before."""
        self._advance(now)
        self.settings = settings

    def cut(self, now: float) -> None:
        """Nothing passes from now; what was on the way is gone, where anything can be lost."""
        self._advance(now)
        self._is_cut = True
        if self._can_lose:
            gone = len(self._waiting) + len(self._flying) + (self._first is not None)
            self.counts.cut += gone
            self.counts.waiting_bytes = 0
            self._waiting.clear()
            self._flying.clear()
            self._first = None

    def mend(self, now: float) -> None:
        """Ends a cut."""
        if not self._is_cut:
            return
        self._is_cut = False
        if self._first is not None:
            self._free_at = max(self._free_at, now + self._first.size * 8 / self.settings.bits_per_second)
        self._flying = deque(one._replace(at=max(one.at, now)) for one in self._flying)

    def clear(self) -> None:
        """Forgets what is on the way: those who wanted it are gone."""
        self._waiting.clear()
        self._flying.clear()
        self._first = None
        self.counts.waiting_bytes = 0

    def _advance(self, now: float) -> None:
        """Sends what there was time to send."""
        while not self._is_cut:
            if self._first is None:
                if not self._waiting:
                    return
                self._first = self._waiting.popleft()
                begun = max(self._free_at, self._first.at)
                self._free_at = begun + self._first.size * 8 / self.settings.bits_per_second
            if self._free_at > now:
                return
            self._fly(self._first, self._free_at)
            self._first = None

    def _fly(self, one: _Item[T], at: float) -> None:
        self.counts.waiting_bytes -= one.size
        if self._can_lose and self._random.random() < self.settings.loss:
            self.counts.lost += 1
            return
        spread = self.settings.jitter_ms
        arrives = at + (self.settings.delay_ms + self._random.uniform(-spread, spread)) / 1000
        if self._flying:
            arrives = max(arrives, self._flying[-1].at)
        self._flying.append(one._replace(at=arrives))
