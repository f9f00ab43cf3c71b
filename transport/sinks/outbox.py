"""A bounded queue in front of a sink, with a thread that delivers: whoever puts something in never waits."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import msgspec

from narrowcast.transport.sinks.errors import SinkRejectedError, SinkUnavailableError
from narrowcast.transport.sinks.records import Record

log = logging.getLogger(__name__)

Item = TypeVar("Item")
MAX_WAITING_BYTES = 256 * 1024 * 1024
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


class Sink(Protocol):
    """Where records go.

    Attributes:
        name: for logs and counts, without secrets.
    """

    name: str

    def deliver(self, records: Sequence[Record]) -> None:
        """Hands records over. They count as delivered once this returns.

        Raises:
            SinkUnavailableError: none or only some were taken; all are tried again.
            SinkRejectedError: they will never be taken.
        """

    def close(self) -> None:
        """Lets go of connections."""


class SinkCounts(msgspec.Struct, frozen=True):
    """What became of what was put in. ``waiting`` are in the queue or being delivered."""

    delivered: int
    dropped: int
    rejected: int
    retries: int
    waiting: int


class Outbox(Generic[Item]):
    """Delivers items to a sink, at least once, in order. Where the queue overflows, the oldest are dropped, and counted.

    Args:
        sink: where to. Used on this outbox's thread only.
        to_record: makes a record of an item, on the same thread; None leaves the item out.
        capacity: items that may wait.
        weigh: bytes of memory that an item takes; of them at most ``max_bytes`` wait, one item excepted.
        batch: records per delivery, at most.
        linger_s: how long a lone record waits for company.
    """

    def __init__(
        self,
        sink: Sink,
        to_record: Callable[[Item], Record | None],
        *,
        capacity: int = 10_000,
        weigh: Callable[[Item], int] = lambda item: 0,
        max_bytes: int = MAX_WAITING_BYTES,
        batch: int = 100,
        linger_s: float = 0.2,
    ) -> None:
        self.sink = sink
        self._next_sink: Sink | None = None
        self._to_record = to_record
        self._capacity, self._batch, self._linger_s = capacity, batch, linger_s
        self._weigh, self._max_bytes, self._bytes = weigh, max_bytes, 0
        self._items: deque[Item] = deque()
        self._under_way: list[Item] = []  # the batch that is being delivered
        self._taken_back = False  # whether the end has taken that batch from a sink that hangs
        self._delivered = self._dropped = self._rejected = self._retries = 0
        self._changed = threading.Condition()
        self._closing = False
        self._give_up = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"sink-{sink.name}", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Queues an item; returns at once."""
        with self._changed:
            if self._closing:
                self._dropped += 1
                return
            self._bytes += self._weigh(item)
            while self._items and (len(self._items) >= self._capacity or self._bytes > self._max_bytes):
                self._bytes -= self._weigh(self._items.popleft())
                self._dropped += 1
                if self._dropped & (self._dropped - 1) == 0:  # 1, 2, 4, ...: a line now and then, not one each
                    log.warning("%s is too slow: %d records dropped so far", self.sink.name, self._dropped)
            self._items.append(item)
            self._changed.notify()

    @property
    def counts(self) -> SinkCounts:
        """What became of what was put in, so far."""
        with self._changed:
            waiting = len(self._items) + len(self._under_way)
            return SinkCounts(self._delivered, self._dropped, self._rejected, self._retries, waiting)

    def replace_sink(self, sink: Sink) -> None:
        """Delivers to another one, from the next try on; the one before is closed. What waits goes on waiting."""
        with self._changed:
            self._next_sink = sink

    def end(self, seconds: float = 5.0) -> list[Item]:
        """Delivers what waits, for at most so long; what is left then, in its order, which is for the caller to count.

        What a sink that hangs has in its hands is left too: it may still be delivered, and is not counted for that.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        self._give_up.set()
        self._thread.join(1.0)
        if not self._thread.is_alive():
            self.sink.close()
        with self._changed:
            left = [*self._under_way, *self._items]
            self._taken_back = bool(self._under_way)
            self._under_way = []
            self._items.clear()
        return left

    def close(self, seconds: float = 5.0) -> SinkCounts:
        """Delivers what waits, for at most so long; what is left then is dropped, and counted."""
        left = self.end(seconds)
        with self._changed:
            self._dropped += len(left)
        counts = self.counts
        if counts.dropped:
            log.warning("%s: %d records dropped, %d delivered", self.sink.name, counts.dropped, counts.delivered)
        return counts

    def _work(self) -> None:
        while (items := self._take()) is not None:
            told = [(item, record) for item in items if (record := self._converted(item)) is not None]
            with self._changed:
                if self._under_way:  # the end has not taken them
                    self._under_way = [item for item, _ in told]
            if not told or self._deliver([record for _, record in told]):
                self._settled()
            else:
                self._left([item for item, _ in told])

    def _settled(self) -> None:
        """The batch that was taken last need not be kept any more. For outboxes that keep it."""

    def _take(self) -> list[Item] | None:
        """The next batch; None at the end."""
        with self._changed:
            while not self._items:
                if self._closing:
                    return None
                self._changed.wait()
            until = time.monotonic() + self._linger_s
            while len(self._items) < self._batch and not self._closing:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            if self._give_up.is_set():
                return None
            taken = [self._items.popleft() for _ in range(min(self._batch, len(self._items)))]
            self._bytes -= sum(map(self._weigh, taken))
            self._under_way = taken
            return taken

    def _converted(self, item: Item) -> Record | None:
        try:
            return self._to_record(item)
        except Exception:
            log.exception("%s: a result that cannot be told is left out", self.sink.name)
            with self._changed:
                self._rejected += 1
            return None

    def _deliver(self, records: list[Record]) -> bool:
        """Tries until it is delivered or refused; False where the end comes first."""
        pause = FIRST_PAUSE_S
        while True:
            with self._changed:
                before, self.sink, self._next_sink = self.sink, self._next_sink or self.sink, None
            if before is not self.sink:
                before.close()
            try:
                self.sink.deliver(records)
                self._count(delivered=len(records))
            except SinkRejectedError as error:
                log.error("%s: %d records rejected: %s", self.sink.name, len(records), error)
                self._count(rejected=len(records))
            except SinkUnavailableError as error:
                with self._changed:
                    self._retries += 1
                if pause == FIRST_PAUSE_S:
                    log.warning("%s: %s; trying again", self.sink.name, error)
                if self._give_up.wait(_wait_s(pause, error.retry_after_s)):
                    return False
                pause = min(2 * pause, LONGEST_PAUSE_S)
                continue
            except Exception:
                log.exception("%s: %d records could not be delivered", self.sink.name, len(records))
                self._count(rejected=len(records))
            return True

    def _count(self, delivered: int = 0, rejected: int = 0) -> None:
        """What became of the batch, at the same moment as it is no longer under way: each record counts once."""
        with self._changed:
            if not self._taken_back:
                self._delivered += delivered
                self._rejected += rejected
            self._under_way = []

    def _left(self, items: list[Item]) -> None:
        """These were being delivered, and are not, at the end."""
        with self._changed:
            if not self._taken_back:
                self._items.extendleft(reversed(items))
            self._under_way = []


def _wait_s(pause_s: float, asked_s: float | None) -> float:
    """Until the next try, spread, so that many servers do not come back as one."""
    if asked_s is None:
        return pause_s * random.uniform(0.5, 1.0)  # noqa: S311  (no secret)
    # Not before what the other side asked for; "at once" would be as often as it can say so.
    return min(max(asked_s, FIRST_PAUSE_S), LONGEST_PAUSE_S) * random.uniform(1.0, 1.25)  # noqa: S311
