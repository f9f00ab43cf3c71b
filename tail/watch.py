"""Tells when a folder may have changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

log = logging.getLogger(__name__)
logging.getLogger("watchfiles").setLevel(logging.WARNING)  # else it tells of every change

# A file that is written in place changes many times; after so long without a change, or so long in all, it is looked at.
_QUIET_MS = 50
_LONGEST_MS = 400


class Watch:
    """Wakes whoever waits when a folder changed, when it was asked to, and every so often.

    inotify (by ``watchfiles``) does not see what other machines write to a network folder, and a system has only so many
    watches: the interval finds what it misses.

    Args:
        folder: which.
        interval_seconds: look anyway after so long; 0 never.
    """

    def __init__(self, folder: Path, interval_seconds: float) -> None:
        self._folder = folder
        self._interval = interval_seconds or None
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._task = asyncio.create_task(self._listen())

    def wake(self) -> None:
        """It is to be looked at now."""
        self._changed.set()

    async def wait(self, at_most_seconds: float | None = None) -> None:
        """Returns when there may be something new; calls that come meanwhile are one."""
        bounds = [bound for bound in (self._interval, at_most_seconds) if bound is not None]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), min(bounds, default=None))
        self._changed.clear()

    async def close(self) -> None:
        """Stops listening."""
        self._ended.set()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _listen(self) -> None:
        from watchfiles import awatch

        try:
            async for _ in awatch(
                self._folder, watch_filter=None, recursive=False, step=_QUIET_MS, debounce=_LONGEST_MS,
                stop_event=self._ended,
            ):  # fmt: skip
                self._changed.set()
        except Exception as error:  # noqa: BLE001  (watchfiles raises what the system and its Rust part raise)
            often = f"is looked at every {self._interval} s" if self._interval else "is looked at on SIGHUP only"
            log.warning("no notices of changes in %s (%s); it %s", self._folder, error, often)
