"""Runs a source: a bounded queue, a frame rate limit, a watchdog, and another try with longer and longer pauses."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from narrowcast.head.errors import SourceError
from narrowcast.head.sources.base import Captured, Source
from narrowcast.transport.errors import ConfigError, NarrowcastError

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
# Threads that hang in a driver cannot be ended. More than so many are not left behind: the source counts as lost.
MAX_STUCK = 4
# One that hangs may keep the device, so that those after it fail at once. With the pauses between them, so many in a row
# take about half a minute behind the watchdog's: a service that is started anew for it stays below systemd's limits.
MAX_KEPT_OUT = 6
# What a source that is closed may take to notice.
CLOSE_SECONDS = 1.0


@dataclass
class FeedCounters:
    """What a feed has done.

    Attributes:
        frames: that were taken from it.
        skipped: left out by the frame rate limit; they count as never captured.
        dropped: the oldest, where nobody took them in time; live sources only.
        openings: of the source.
        hangs: openings that were given up by the watchdog.
    """

    frames: int = 0
    skipped: int = 0
    dropped: int = 0
    openings: int = 0
    hangs: int = 0


class Feed:
    """An iterator of a source's frames. Use it as a context, or call :meth:`close`.

    Args:
        source: where frames come from.
        fps: frames a second, at most; None for all that come.
        queue: how many frames may wait. A live source drops the oldest, another one waits.
        watchdog_seconds: a live source without a frame for so long is opened again.
        on_trouble: told, in a line, when a live source fails or hangs and is opened again.
        on_drop: told of each frame that is dropped.

    Attributes:
        counters: what it has done.

    Raises:
        ConfigError: settings that cannot be.
    """

    def __init__(
        self,
        source: Source,
        *,
        fps: float | None = None,
        queue: int = 2,
        watchdog_seconds: float = 20.0,
        on_trouble: Callable[[str], None] | None = None,
        on_drop: Callable[[], None] | None = None,
    ) -> None:
        if (fps is not None and not 0 < fps < 10_000) or queue < 1 or not watchdog_seconds > 0:
            raise ConfigError(
                f"a source with {fps} frames a second, a queue of {queue} and a watchdog of {watchdog_seconds} s: above 0, "
                "at least 1, above 0"
            )
        self.source = source
        self.counters = FeedCounters()
        self._interval = None if fps is None else 1 / fps
        self._most, self._watchdog = queue, watchdog_seconds
        self._on_trouble = on_trouble or (lambda line: None)
        self._on_drop = on_drop or (lambda: None)
        self._frames: deque[Captured] = deque()
        self._changed = threading.Condition()
        self._opening = 0  # those before are given up
        self._stuck: list[threading.Thread] = []
        self._kept_out = 0  # openings in a row that brought nothing while an earlier one hangs
        self._failure: BaseException | None = None
        self._ended = self._closed = False
        self._due = 0.0
        self._came_at = time.monotonic()
        self._keeper = threading.Thread(target=self._keep, name=f"source-{source.name}", daemon=True)
        self._keeper.start()

    def __iter__(self) -> Iterator[Captured]:
        """The frames, each once.

        Raises:
            SourceError: a source that is not live failed; or a live one hangs again and again and cannot be ended, or hangs
                once and brings nothing any more.
        """
        while (frame := self._take()) is not None:
            yield frame

    def _take(self) -> Captured | None:
        with self._changed:
            while not self._frames:
                if self._failure is not None:
                    raise self._failure
                if self._ended or self._closed:
                    return None
                self._changed.wait()
            self.counters.frames += 1
            self._changed.notify_all()
            return self._frames.popleft()

    def _keep(self) -> None:
        """Opens the source, and again where it is live."""
        pause, told = FIRST_PAUSE_SECONDS, ""
        try:
            while not self._closed:
                before = self.counters.frames + self.counters.dropped + len(self._frames)
                hung = any(thread.is_alive() for thread in self._stuck)
                trouble = self._open_once()
                if self._closed:
                    break
                if not self.source.live:
                    if trouble is not None:
                        raise trouble
                    break
                self._kept_out = self._kept_out + 1 if hung else 0
                if self.counters.frames + self.counters.dropped + len(self._frames) > before:
                    pause, self._kept_out = FIRST_PAUSE_SECONDS, 0
                what = str(trouble or "it has ended")
                if what != told or pause < LONGEST_PAUSE_SECONDS:  # a camera that is gone for months is no news
                    self._on_trouble(f"{self.source.name}: {what}; opening it again in {pause:.1f} s")
                told = what
                self._rest(pause * random.uniform(0.5, 1.0))  # noqa: S311  (no secret)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        except BaseException as error:  # noqa: BLE001  (raised again where frames are taken)
            self._failure = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _open_once(self) -> NarrowcastError | None:
        """One opening, to its end; what went wrong."""
        self._stuck = [thread for thread in self._stuck if thread.is_alive()]
        if len(self._stuck) >= MAX_STUCK:
            names = f"{len(self._stuck)} tries to read it hang in the system"
            raise SourceError(f"{self.source.name}: {names}, and cannot be ended: restart this process, or the camera")
        if self._stuck and self._kept_out >= MAX_KEPT_OUT:
            names = f"a try to read it hangs in the system, and {self._kept_out} after it brought nothing"
            raise SourceError(f"{self.source.name}: {names}: restart this process, or the camera")
        self.counters.openings += 1
        self._opening += 1
        found: list[BaseException | None] = []
        thread = threading.Thread(
            target=self._read, args=(self._opening, found), name=f"{self.source.name}-{self._opening}", daemon=True
        )
        self._came_at = time.monotonic()
        thread.start()
        while thread.is_alive():
            thread.join(min(0.05, self._watchdog / 4))
            if self._closed:
                self.source.close()
                return None
            if self.source.live and not self.source.paced and time.monotonic() - self._came_at > self._watchdog:
                with self._changed:
                    self._opening += 1
                self.counters.hangs += 1
                self.source.close()
                thread.join(CLOSE_SECONDS)
                if thread.is_alive():
                    self._stuck.append(thread)
                return SourceError(f"no frame for {self._watchdog:g} s")
        trouble = found[0] if found else None
        if trouble is not None and not isinstance(trouble, NarrowcastError):
            return SourceError(f"{type(trouble).__name__}: {trouble}")
        return trouble

    def _read(self, opening: int, found: list[BaseException | None]) -> None:
        frames = self.source.frames()
        try:
            for frame in frames:
                if not self._put(opening, frame):
                    break
        except BaseException as error:  # noqa: BLE001  (whatever a driver raises; the keeper says it)
            found.append(error)
        finally:
            close = getattr(frames, "close", None)
            if close is not None:
                close()

    def _put(self, opening: int, frame: Captured) -> bool:
        """Queues a frame; False where nobody wants this opening's any more."""
        with self._changed:
            if self._closed or opening != self._opening:
                return False
            self._came_at = time.monotonic()
            if self.source.live and not self._is_due(frame):
                self.counters.skipped += 1
                return True
            if self.source.live and len(self._frames) >= self._most:
                self._frames.popleft()
                self.counters.dropped += 1
                self._on_drop()
            while len(self._frames) >= self._most and not self._closed:
                self._changed.wait()
            self._frames.append(frame)
            self._changed.notify_all()
        if not self.source.live and self._interval is not None:
            self._rest(self._due - time.monotonic())
            self._due = max(self._due, time.monotonic() - self._interval) + self._interval
        return True

    def _is_due(self, frame: Captured) -> bool:
        """Whether the frame rate limit lets a live frame through: on average, so that 10 of 30 are 10."""
        if self._interval is None:
            return True
        if frame.captured_at < self._due - self._interval / 100:
            return False
        late = frame.captured_at - self._due
        self._due = (self._due if late < self._interval else frame.captured_at) + self._interval
        return True

    def _rest(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed, max(0.0, seconds))

    def close(self) -> None:
        """Ends it; frames that wait are forgotten."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.source.close()
        self._keeper.join(2.0)

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
