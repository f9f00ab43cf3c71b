"""How many bytes may be spent: on average (``--budget``), and a day (``--data-cap``)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from narrowcast.transport.errors import ConfigError
from narrowcast.transport.files import replacing
from narrowcast.transport.structs import Settings, from_json, to_json

log = logging.getLogger(__name__)

# A budget that was not used may be used up within so long.
BURST_SECONDS = 2.0
# A day's bytes are taken from the file in portions: what a process has of its portion when it is killed counts as used.
PORTION_BYTES = 256 * 1024
DAY_SECONDS = 86_400.0
# A clock that jumps ahead, again and again, gets another day's bytes no more often than that.
LEAST_DAY_SECONDS = 3600.0
# A disk that does not take the file is asked again so often.
RETRY_SECONDS = 1.0

_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}


def parse_rate(text: str) -> float:
    """``200kbit``, ``1.5Mbit``: bits a second, in bytes a second.

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([kmg]?)bit(?:/s)?", text.strip().lower())
    if found is None or float(found[1]) <= 0:
        raise ConfigError(f"a budget of {text!r}; it is bits a second: 200kbit, 1.5Mbit")
    return float(found[1]) * _UNITS[found[2]] / 8


def parse_cap(text: str) -> int:
    """``1GB/day``, ``300MB/day``: bytes.

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([kmg]?)b/day", text.strip().lower())
    if found is None or float(found[1]) * _UNITS[found[2]] < 1:
        raise ConfigError(f"a data cap of {text!r}; it is bytes a day: 1GB/day, 300MB/day")
    return round(float(found[1]) * _UNITS[found[2]])


def default_cap_file() -> Path:
    """``data-used.json`` in systemd's ``StateDirectory``, else in the user's state folder."""
    state = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return (Path(state) if state else Path(home) / "narrowcast") / "data-used.json"


class Budget:
    """An average: a bucket of bytes that fills evenly and holds what ``BURST_SECONDS`` bring.

    Args:
        bytes_per_second: on the socket, both ways.
        now: by the clock of the other calls, in seconds.
    """

    def __init__(self, bytes_per_second: float, now: float) -> None:
        self.bytes_per_second = bytes_per_second
        self._most = bytes_per_second * BURST_SECONDS
        self._left, self._at = self._most, now

    def left(self, now: float) -> float:
        """What may be spent now; below 0 where more was spent than there was."""
        self._left = min(self._most, self._left + self.bytes_per_second * max(0.0, now - self._at))
        self._at = max(self._at, now)
        return self._left

    def fill(self, now: float) -> float:
        """How full the bucket is, 0..1."""
        return max(0.0, self.left(now)) / self._most

    def has_spare(self, count: float, now: float) -> bool:
        """Whether so many bytes may go to what can wait: half of the bucket is left to what cannot."""
        return self.left(now) >= min(self._most, self._most / 2 + count)

    def spend(self, count: float) -> None:
        """So many bytes are spent."""
        self._left -= count


class _Used(Settings, frozen=True):
    """What the file holds: the day, in UTC, and what of it processes have taken so far."""

    day: str
    taken_bytes: int


class DailyCap:
    """So many bytes a day, over restarts and among all processes that share the file.

    The day is the clock's, in UTC. A clock that goes back does not give the bytes of the day again; one that jumps ahead
    gives another day's, once an hour at the most. Where the clock stays behind the file's day for 24 h of running, the day
    is over.

    While the disk is full nothing is left. Where the file cannot be written any more for another reason (the disk has
    turned read-only), what is used is counted in memory until it can: a restart meanwhile is refused, so that little is
    forgotten.

    Safe to use from several threads: a source's old client and its new one spend of the same.

    Args:
        most_bytes: a day, on the socket, both ways.
        file: keeps what is used.
        wall: the clock, in seconds since 1970.
        running: a clock that does not jump, in seconds.

    Raises:
        ConfigError: the file cannot be written: a cap that restarts would forget is none.
    """

    def __init__(
        self,
        most_bytes: int,
        file: Path,
        *,
        wall: Callable[[], float] = time.time,
        running: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most_bytes = most_bytes
        self._file, self._wall, self._running = file, wall, running
        self._portion = _portion_of(most_bytes)
        self._mine = 0.0  # taken and not yet used
        self._day = ""
        self._begun = running()
        self._renewed: float | None = None
        self._free = 0
        self._failed_at: float | None = None  # the file could not be written then, nor since
        self._in_memory = self._turned = False  # meanwhile it is counted here; and the day turned
        self._mutex = threading.RLock()
        try:
            self._add(0)
        except OSError as error:
            if error.errno not in _FULL:
                raise ConfigError(f"--data-cap cannot keep what is used: {error}") from error
            self._fail(error)

    def left(self) -> float:
        """What is left of today; 0 or less where the cap is reached."""
        with self._mutex:
            self._turn()
            return self._mine + self._free

    def has_spare(self) -> bool:
        """Whether what can wait may have more of today: half of it is left to what cannot."""
        return self.left() > self.most_bytes / 2

    def spend(self, count: float) -> None:
        """So many bytes were spent, or are about to be."""
        with self._mutex:
            self._turn()
            self._mine -= count
            if self._mine < 0 and self._failed_at is None:
                self._take(self._owed)

    def change(self, most_bytes: int) -> None:
        """Another cap; what is used of today stays used."""
        if most_bytes == self.most_bytes:  # nobody waits for a disk on which what is used is being kept
            return
        with self._mutex:
            if self._failed_at is None or self._in_memory:
                self._free += most_bytes - self.most_bytes
            self.most_bytes = most_bytes
            self._portion = _portion_of(most_bytes)

    @property
    def _owed(self) -> int:
        """What has to be taken for what is spent, in whole portions."""
        return math.ceil(max(0.0, -self._mine) / self._portion) * self._portion

    def _turn(self) -> None:
        """A new day? And where the disk did not take the file: does it now?"""
        now = self._running()
        if self._failed_at is not None and now - self._failed_at >= RETRY_SECONDS:
            self._take(self._owed, self._day if self._turned else None)
        today = self._today()
        later = today > self._day and (self._renewed is None or now - self._renewed >= LEAST_DAY_SECONDS)
        if not later and now - self._begun < DAY_SECONDS:
            return
        if self._failed_at is None and self._take(0, day=today):
            self._begun = self._renewed = now
            self._mine = 0.0
        elif self._in_memory:
            self._begun = self._renewed = now
            self._day, self._mine, self._free, self._turned = today, 0.0, self.most_bytes, True

    def _take(self, count: int, day: str | None = None) -> bool:
        """As :meth:`_add`; False where the disk does not take it."""
        try:
            self._add(count, day)
        except OSError as error:
            self._fail(error)
            return False
        if self._failed_at is not None:
            log.warning("what is used of a data cap is kept again")
        self._failed_at, self._in_memory, self._turned = None, False, False
        return True

    def _fail(self, error: OSError) -> None:
        """On a full disk what restarts would forget is not to be had; on one that is read-only they are refused."""
        full = error.errno in _FULL
        if self._failed_at is None or full == self._in_memory:
            then = "nothing more is sent" if full else "it is counted in memory until it can be"
            log.warning("what is used of a data cap cannot be kept, so that %s: %s", then, error)
        if full:
            self._free = 0
        self._in_memory, self._failed_at = not full, self._running()

    def _add(self, count: int, day: str | None = None) -> None:
        """Adds to what is taken; to that of another ``day``, if it is not the file's already."""
        with self._locked():
            used = self._read()
            if used is None or (day is not None and used.day != day):
                used = _Used(day=day or self._today(), taken_bytes=0)
            used = msgspec.structs.replace(used, taken_bytes=used.taken_bytes + count)
            with replacing(self._file) as out:
                out.write(to_json(used))
        self._mine += count
        self._day = used.day
        self._free = self.most_bytes - used.taken_bytes

    def _read(self) -> _Used | None:
        try:
            used = from_json(_Used, self._file.read_bytes(), self._file.name)
        except FileNotFoundError:
            return None
        except ConfigError:  # damaged: nothing is known of today, so nothing more is spent today
            return _Used(day=self._today(), taken_bytes=self.most_bytes)
        return used if used.taken_bytes >= 0 else None

    def _today(self) -> str:
        try:
            return datetime.fromtimestamp(self._wall(), timezone.utc).date().isoformat()
        except (ValueError, OverflowError, OSError):  # a clock beyond all calendars
            return "1970-01-01"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.with_name(f".{self._file.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _portion_of(most_bytes: int) -> int:
    return min(PORTION_BYTES, max(1, most_bytes // 100))
