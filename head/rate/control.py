"""Rate control as a client uses it: the controller, the budgets and the cap on packets, between its threads."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from narrowcast.head.ahead import Ready
from narrowcast.head.rate.budget import Budget, DailyCap
from narrowcast.head.rate.controller import Decision, Outlook, RateController
from narrowcast.head.rate.options import Option
from narrowcast.head.session import Encoded
from narrowcast.head.socket_bytes import SocketBytes
from narrowcast.transport.bundle import Manifest
from narrowcast.transport.contract import Image
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.packet import STREAM_HEADER_BYTES

# By default a packet may have so many times the mean bytes of the highest level, or it is sent at a lower one.
MOST_TIMES_MEAN = 2.0
# The kernel is asked for its count so often.
COUNT_SECONDS = 0.25
# What a packet and its result take on the socket besides the packet, until it is measured.
FIRST_OVERHEAD_BYTES = 150.0
# Where frames were not sent for want of time within so long, the link has nothing to spare.
SHORT_SECONDS = 1.0
# How fast the share of a key frame's bytes is learned that frames take which refer to earlier ones.
SHARE_GAIN = 0.1


def options_of(manifest: Manifest) -> list[Option]:
    """The levels with what the bundle's figures say of them.

    Raises:
        ConfigError: they do not say it.
    """
    try:
        return [
            Option(int(one["level"]), float(one["agreement"]), float(one["mean_packet_bytes"]))
            for one in manifest.figures["levels"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{manifest.name} does not say what its levels are worth (figures.levels with agreement and mean_packet_bytes, "
            "which compile measures for networks with class scores): choose a level"
        ) from error


def exit_accuracy(manifest: Manifest) -> float:
    """What the local exit answers rightly, by the bundle's figures; 0 where they do not say."""
    try:
        return max(float(one["agreement"]) for one in manifest.figures["exit"]["levels"])
    except (KeyError, TypeError, ValueError):
        return 0.0


class RateControl:
    """Decides on a client's frames. Safe to call from several threads.

    What waits for the disk, which keeps the day's bytes, says so; all else may be called on an event loop.

    Args:
        manifest: the bundle's.
        automatic: whether levels are chosen; otherwise only budgets and the cap on packets count.
        deadline_ms: from handing a frame over to its answer; None for none.
        with_exit: whether the local exit answers what is not sent.
        keeps_late: whether frames are encoded all the same that would be late: they go on disk.
        budget: bytes a second on the socket, both ways, on average; None for no limit.
        data_cap: a day's; None for none.
        max_packet_bytes: no packet may have more; None for ``MOST_TIMES_MEAN`` of the highest level's where levels are
            chosen and images are of one size, otherwise for no limit.
        on_socket: what the link has carried so far.

    Attributes:
        dropped: frames that were not sent, by reason.
        downgraded: frames that were sent at a lower level, their packet having been too large.

    Raises:
        ConfigError: the bundle's figures do not say what the levels are worth, or a limit is none.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        automatic: bool,
        deadline_ms: float | None = None,
        with_exit: bool = False,
        keeps_late: bool = False,
        budget: float | None = None,
        data_cap: DailyCap | None = None,
        max_packet_bytes: int | None = None,
        on_socket: Callable[[], SocketBytes | None] = lambda: None,
    ) -> None:
        self.dropped: Counter[str] = Counter()
        self.downgraded = 0
        self._lock = threading.Lock()
        self._most_asked = max_packet_bytes
        self._keeps_late = keeps_late
        self._late_at = -math.inf
        self._controller: RateController | None = None
        if automatic:
            options = options_of(manifest)
            self._controller = RateController(
                options, None if deadline_ms is None else deadline_ms / 1000,
                nothing=exit_accuracy(manifest) if with_exit else 0.0,
            )  # fmt: skip
            if max_packet_bytes is None and manifest.input.free is None:
                max_packet_bytes = round(MOST_TIMES_MEAN * max(one.size for one in options))
        if max_packet_bytes is not None and max_packet_bytes <= STREAM_HEADER_BYTES:
            raise ConfigError(
                f"packets of {max_packet_bytes} bytes at most; a packet's header alone has {STREAM_HEADER_BYTES}"
            )
        if budget is not None and not 0 < budget < math.inf:
            raise ConfigError(f"a budget of {budget} bytes a second; it is above 0")
        self.max_packet_bytes = max_packet_bytes
        self._budget = None if budget is None else Budget(budget, time.monotonic())
        self._data_cap = data_cap
        self._on_socket = on_socket
        self._overhead = FIRST_OVERHEAD_BYTES
        self._counted: int | None = None
        self._counted_at = -math.inf
        self._charged = 0.0  # since the kernel was last asked
        self._unkept = 0.0  # what the cap was not told of yet
        self._keeping = self._closed = False
        self._keeping_mutex = threading.Lock()
        self._keeper = ThreadPoolExecutor(1, "narrowcast-data-cap")
        self._packets = self._packet_bytes = 0
        self._encode_seconds = 0.0
        self._key_sizes: dict[int, int] = {}  # of packets that wait
        self._share = 1.0  # what is sent of a packet, where frames refer to earlier ones

    def encode(
        self,
        frame: Image | Ready,
        wanted: int | None,
        level: int,
        started: float,
        deadline_ms: float | None,
        *,
        encode: Callable[[Image | Ready, int], Encoded],
        drop: Callable[[Image | Ready, str], Encoded],
    ) -> Encoded:
        """A frame as it is to be sent, or dropped. One that would be late and is kept says so, and has a payload.

        May wait for the disk.

        Args:
            frame: as it was handed over.
            wanted: its level, if the caller has named one.
            level: where it is neither named nor chosen here.
            started: when it was handed over, by ``time.perf_counter()``.
            deadline_ms: by when after that its answer is wanted; None for no deadline.
            encode: makes a payload of a frame and a level.
            drop: makes what stands for a frame that is not sent, of the frame and the reason.
        """
        decision = self._decide(started, deadline_ms)
        late = decision is not None and decision.reason == "late"
        if decision is not None and decision.level is None and not (late and self._keeps_late):
            return drop(frame, str(decision.reason))
        chosen = level if decision is None or decision.level is None else decision.level
        highest = chosen if wanted is None else wanted
        for lower in range(highest, -1, -1):
            before = time.perf_counter()
            encoded = encode(frame, lower)
            seconds = time.perf_counter() - before
            if self._may_send(encoded.level, len(encoded.payload), seconds):
                return encoded._replace(dropped="late") if late else encoded
            if encoded.image is not None:  # an image has no levels
                break
            with self._lock:
                self.downgraded += lower > 0
        if late:  # and is counted so already
            return drop(frame, "late")
        return drop(frame, self._too_large())

    def encode_image(
        self,
        frame: Image | Ready,
        *,
        encode: Callable[[Image | Ready], Encoded],
        drop: Callable[[Image | Ready, str], Encoded],
    ) -> Encoded:
        """An image, which has no level: within the budgets and the cap on packets that somebody asked for.

        May wait for the disk.
        """
        decision = self._within()
        if decision is not None:
            return drop(frame, str(decision.reason))
        encoded = encode(frame)
        if self._most_asked is not None and STREAM_HEADER_BYTES + len(encoded.payload) > self._most_asked:
            return drop(frame, self._too_large())
        return encoded

    def outlook(self, size: float, left: float, now: float) -> Outlook:
        """See :meth:`RateController.outlook`; levels must be chosen here."""
        with self._lock:
            assert self._controller is not None
            return self._controller.outlook(size, left, now)

    def likely(self, left: float, now: float) -> Option:
        """See :meth:`RateController.likely`; levels must be chosen here."""
        with self._lock:
            assert self._controller is not None
            return self._controller.likely(left, now)

    def _decide(self, started: float, deadline_ms: float | None) -> Decision | None:
        """What to do with a frame; None where it is to be sent at its own level."""
        over = self._within()
        with self._lock:
            now = time.monotonic()
            if over is not None:
                if self._controller is not None:  # or frames would seem to be fewer, and have more of the budget each
                    self._controller.came(now)
                return over
            if self._controller is None:
                return None
            elapsed = time.perf_counter() - started + self._encode_seconds
            deadline = None if deadline_ms is None else deadline_ms / 1000
            budget = (None, 0.0) if self._budget is None else (self._budget.bytes_per_second, self._budget.fill(now))
            decision = self._controller.decide(now, elapsed, deadline, budget[0], self._overhead, budget[1])
            if decision.reason is None:
                return decision
            self._late_at = now
            return self._drop(decision.reason)

    @property
    def is_short(self) -> bool:
        """Whether the link has nothing to spare for frames that are not live."""
        return time.monotonic() - self._late_at < SHORT_SECONDS

    def _within(self) -> Decision | None:
        """Why no byte may be spent now; None where it may."""
        with self._lock:
            self._count(now := time.monotonic())
            left = math.inf if self._budget is None else self._budget.left(now)
        self._keep()
        if self._data_cap is not None and self._data_cap.left() <= 0:
            reason = "data-cap"
        elif left <= 0:
            reason = "budget"
        else:
            return None
        with self._lock:
            return self._drop(reason)

    def may_replay(self, size: int) -> bool:
        """Whether a packet that can wait (spooled, or an image for audit) may be sent now; it is charged then.

        Live frames go first. May wait for the disk.
        """
        with self._lock:
            self._count(now := time.monotonic())
        self._keep()
        if self._data_cap is not None and not self._data_cap.has_spare():
            return False
        with self._lock:
            if self._budget is not None and not self._budget.has_spare(size + self._overhead, now):
                return False
            self._packets += 1
            self._packet_bytes += size
            self._charge(size + self._overhead)
            return True

    def _may_send(self, level: int, payload_bytes: int, seconds: float) -> bool:
        """Whether an encoded frame's packet is within the limit."""
        size = STREAM_HEADER_BYTES + payload_bytes
        with self._lock:
            self._encode_seconds += 0.1 * (seconds - self._encode_seconds)
            if self.max_packet_bytes is not None and size > self.max_packet_bytes:
                return False
            if self._controller is not None:
                self._controller.encoded(level, round(size * self._share))
            return True

    def _too_large(self) -> str:
        """The reason, counted. Whoever drops the frame may run the head for it, for which the link must not wait."""
        with self._lock:
            return str(self._drop("too-large").reason)

    def _drop(self, reason: Any) -> Decision:
        self.dropped[reason] += 1
        return Decision(None, 0.0, reason)

    def queued(self, frame_id: int, size: int) -> None:
        """A packet waits to be sent; if it is sent by reference to an earlier frame, it will be smaller."""
        with self._lock:
            self._key_sizes[frame_id] = size
            if self._controller is not None:
                self._controller.sent(frame_id, round(size * self._share), time.monotonic())

    def sent(self, frame_id: int, size: int) -> None:
        """A packet is being sent."""
        with self._lock:
            key = self._key_sizes.get(frame_id, size)
            self._share += SHARE_GAIN * (size / key - self._share)
            if self._controller is not None:
                self._controller.sent(frame_id, size, time.monotonic())
            self._packets += 1
            self._packet_bytes += size
            self._charge(size + self._overhead)
            if self._data_cap is not None and not (self._keeping or self._closed):
                self._keeping = True
                self._keeper.submit(self._keep)

    def answered(self, frame_id: int, server_seconds: float) -> None:
        """A packet was answered, in time or not."""
        with self._lock:
            if self._controller is not None:
                self._controller.answered(frame_id, time.monotonic(), server_seconds)
            self._key_sizes.pop(frame_id, None)

    def lost(self, frame_id: int) -> None:
        """A packet is no longer under way."""
        with self._lock:
            if self._controller is not None:
                self._controller.lost(frame_id)
            self._key_sizes.pop(frame_id, None)

    def _charge(self, count: float) -> None:
        self._charged += count
        self._spend(count)

    def _spend(self, count: float) -> None:
        if self._budget is not None:
            self._budget.spend(count)
        if self._data_cap is not None:
            self._unkept += count

    def _keep(self) -> None:
        """Tells the cap what was spent; it may write a file, for which whoever holds the lock must not wait."""
        with self._keeping_mutex:  # so that what is left is without what another thread has just taken up
            with self._lock:
                count, self._unkept, self._keeping = self._unkept, 0.0, False
            if count and self._data_cap is not None:
                self._data_cap.spend(count)

    def _count(self, now: float) -> None:
        """Puts right what was charged, by the kernel's own count: framing, results, resends and handshakes included."""
        if (self._budget is None and self._data_cap is None) or now - self._counted_at < COUNT_SECONDS:
            return
        self._counted_at = now
        found = self._on_socket()
        total = 0 if found is None else found.sent + found.received
        if self._counted is None:  # before the first packet: what earlier clients of this process have left open
            self._counted = total
            return
        if found is None:
            return
        moved = total - self._counted
        self._counted = total
        self._spend(moved - self._charged)
        if self._packets:
            self._overhead += 0.2 * (max(0.0, (moved - self._packet_bytes) / self._packets) - self._overhead)
        self._charged = 0.0
        self._packets = self._packet_bytes = 0

    def count(self) -> None:
        """Counts at once: sockets are about to be closed, and would take their bytes with them."""
        with self._lock:
            self._counted_at = -math.inf
            self._count(time.monotonic())

    def close(self) -> None:
        """No more packets; may wait for the disk."""
        with self._lock:
            self._closed = True
        self._keep()
        self._keeper.shutdown(wait=False)
