"""Tells when a folder may have changed."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

log = logging.getLogger(__name__)

# A file that is written in place changes many times.
_QUIET_SECONDS = 0.02


class Watch:
    """Wakes whoever waits when a folder changed, when it was asked to, and every so often.

    inotify (by ``asyncinotify``) does not see what other machines write to a network folder, and a system has only so many
    watches: the interval finds what it misses.

    Args:
        folder: which.
        interval_seconds: look anyway after so long; 0 never.
    """

    def __init__(self, folder: Path, interval_seconds: float) -> None:
        self._folder = folder
        self._interval = interval_seconds or None
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._listen())

    def wake(self) -> None:
        """It is to be looked at now."""
        self._changed.set()

    async def wait(self, at_most_seconds: float | None = None) -> None:
        """Returns when there may be something new; calls that come meanwhile are one."""
        bounds = [bound for bound in (self._interval, at_most_seconds) if bound is not None]
        # Not asyncio.wait_for, which up to Python 3.11 can lose the cancellation of whoever waits.
        timer = asyncio.get_running_loop().call_later(min(bounds), self._changed.set) if bounds else None
        try:
            await self._changed.wait()
        finally:
            if timer is not None:
                timer.cancel()
        self._changed.clear()

    async def close(self) -> None:
        """Stops listening."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _listen(self) -> None:
        try:
            from asyncinotify import Inotify, Mask

            with Inotify() as notices:
                notices.add_watch(
                    self._folder,
                    Mask.ATTRIB | Mask.CLOSE_WRITE | Mask.CREATE | Mask.DELETE | Mask.MODIFY | Mask.MOVE | Mask.ONLYDIR,
                )
                async for _ in notices:
                    self._changed.set()
                    await asyncio.sleep(_QUIET_SECONDS)  # what comes meanwhile is one change
        except Exception as error:  # noqa: BLE001  (asyncinotify raises what the system does; not every system has it)
            often = f"is looked at every {self._interval} s" if self._interval else "is looked at on SIGHUP only"
            log.warning("no notices of changes in %s (%s); it %s", self._folder, error, often)
