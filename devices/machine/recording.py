"""Boards recorded over time: one file of JSON lines, which replays as a :class:`~narrowcast.devices.machine.Machine`.

The first line says what it is; each of the others what changed when::

    {"format": "narrowcast-board", "version": 1, "architecture": "aarch64", "source": "where it is from"}
    {"ns": 0, "set": {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0", ...}}
    {"ns": 100000000, "set": {"$ vcgencmd pmic_read_adc": "...", "sys/...": {"error": "EACCES"}, "sys/gone": null}}

Keys are those of :mod:`narrowcast.devices.machine`. ``null``: no longer there; ``error``: there, and reading it fails so.
"""

from __future__ import annotations

import errno
import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TextIO

import msgspec

from narrowcast.devices.errors import RecordingError, SensorError
from narrowcast.devices.machine import SCHEMES, Machine, matches, unreadable
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.structs import Settings, from_json

MAX_BYTES = 256 << 20
# What tells one board from all others of its kind stays out of recordings.
_SERIAL = re.compile(r"^Serial\s*:.*$", re.MULTILINE)


class Header(Settings, frozen=True):
    """The first line.

    Attributes:
        format: always ``narrowcast-board``.
        version: of the format.
        architecture: the board's, as ``platform.machine()`` says it.
        source: where its values are from.
    """

    format: Literal["narrowcast-board"]
    version: Literal[1]
    architecture: str
    source: str = ""


class Failure(Settings, frozen=True):
    """A key that cannot be read: the ``errno`` name, and what the message said where it is more than that."""

    error: str
    text: str = ""


class Frame(Settings, frozen=True):
    """What changed at one time, in nanoseconds since the recording began."""

    ns: int
    set: dict[str, str | Failure | None]


class Recording:
    """A recorded board. Its clock stands at the first frame, and goes on when somebody sleeps.

    Attributes:
        header: its first line.
        ended: whether the clock is past the last frame.
    """

    running = False

    def __init__(self, header: Header, frames: list[Frame]) -> None:
        if not frames or any(a.ns > b.ns for a, b in pairwise(frames)):
            raise RecordingError("a recording has one frame or more, in the order of time")
        self.header = header
        self._frames = frames
        self._times = [frame.ns for frame in frames]
        self._state: dict[str, str | Failure] = {}
        self._applied = 0
        self._now_ns = frames[0].ns
        self._catch_up()

    @classmethod
    def open(cls, path: Path) -> Recording:
        """Reads a recording's file.

        Raises:
            RecordingError: it is none; the message names the line.
        """
        if path.stat().st_size > MAX_BYTES:
            raise RecordingError(f"{path} is larger than a recording may be ({MAX_BYTES >> 20} MiB)")
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
        try:
            header = from_json(Header, lines[0] if lines else b"", f"{path}, line 1")
            frames = [from_json(Frame, line, f"{path}, line {n}") for n, line in enumerate(lines[1:], 2)]
            return cls(header, frames)
        except ConfigError as error:
            raise RecordingError(f"no recorded board: {error}") from error
        except RecordingError as error:
            raise RecordingError(f"{path}: {error}") from error

    @property
    def ended(self) -> bool:
        """Whether the clock is past the last frame."""
        return self._now_ns > self._times[-1]

    @property
    def seconds(self) -> float:
        """From the first frame to the last."""
        return (self._times[-1] - self._times[0]) / 1e9

    def read(self, key: str) -> str:
        """See :class:`~narrowcast.devices.machine.Machine`."""
        value = self._state.get(key)
        if value is None:
            raise FileNotFoundError(errno.ENOENT, "not in the recording", key)
        if isinstance(value, Failure):
            if value.text:
                raise SensorError(value.text, reason=value.error)
            raise unreadable(
                key if key.partition(" ")[0] in SCHEMES else f"/{key}", getattr(errno, value.error, errno.EIO)
            )
        return value

    def glob(self, pattern: str) -> list[str]:
        """See :class:`~narrowcast.devices.machine.Machine`."""
        depth = pattern.count("/") + 1
        paths = {"/".join(key.split("/")[:depth]) for key in self._state if key.partition(" ")[0] not in SCHEMES}
        return sorted(path for path in paths if matches(path, pattern))

    def now_ns(self) -> int:
        """See :class:`~narrowcast.devices.machine.Machine`."""
        return self._now_ns

    def sleep(self, seconds: float) -> None:
        """See :class:`~narrowcast.devices.machine.Machine`."""
        self._now_ns += max(0, round(seconds * 1e9))
        self._catch_up()

    def frames(self) -> Iterator[int]:
        """Goes from frame to frame, this one first; yields each one's time in nanoseconds."""
        yield self._now_ns
        while self._applied < len(self._frames):
            self._now_ns = self._times[self._applied]
            self._catch_up()
            yield self._now_ns

    def _catch_up(self) -> None:
        until = bisect_right(self._times, self._now_ns)
        for frame in self._frames[self._applied : until]:
            for key, value in frame.set.items():
                if value is None:
                    self._state.pop(key, None)
                else:
                    self._state[key] = value
        self._applied = max(self._applied, until)


class Recorder:
    """A machine that writes down all that is read from it; see :func:`Recorder.frame`."""

    def __init__(self, machine: Machine, file: TextIO, *, architecture: str, source: str) -> None:
        self._machine, self._file = machine, file
        self.running = machine.running
        self._start_ns = machine.now_ns()
        self._written: dict[str, Any] = {}
        self._changed: dict[str, Any] = {}
        self._line(
            msgspec.to_builtins(Header(format="narrowcast-board", version=1, architecture=architecture, source=source))
        )

    def read(self, key: str) -> str:
        """See :class:`~narrowcast.devices.machine.Machine`."""
        try:
            text = self._machine.read(key)
        except FileNotFoundError:
            self._note(key, None)
            raise
        except SensorError as error:
            self._note(key, {"error": error.reason or "EIO", "text": str(error)})
            raise
        self._note(key, _SERIAL.sub("", text) if key == "proc/cpuinfo" else text)
        return text

    def glob(self, pattern: str) -> list[str]:
        """See :class:`~narrowcast.devices.machine.Machine`."""
        return self._machine.glob(pattern)

    def now_ns(self) -> int:
        """See :class:`~narrowcast.devices.machine.Machine`."""
        return self._machine.now_ns()

    def sleep(self, seconds: float) -> None:
        """See :class:`~narrowcast.devices.machine.Machine`."""
        self._machine.sleep(seconds)

    def frame(self, at_ns: int | None = None) -> None:
        """Ends a frame: writes what has changed since the last one, also when that is nothing (time went on)."""
        at = self._machine.now_ns() if at_ns is None else at_ns
        self._line({"ns": at - self._start_ns, "set": self._changed})
        self._changed = {}

    def _note(self, key: str, value: Any) -> None:
        if (value is None and key not in self._written) or (key in self._written and self._written[key] == value):
            return
        self._written[key] = self._changed[key] = value

    def _line(self, data: dict[str, Any]) -> None:
        self._file.write(json.dumps(data, ensure_ascii=False) + "\n")
