"""Where a board's files, commands and buses are read: the running machine, or a recorded one.

Everything that a reader wants is text under a *key*:

=========================  =====================================================================
``sys/class/...``          a file, without the leading slash
``$ vcgencmd get_throttled``  what a command prints
``i2c 1 0x40 0x02``        a 16-bit register (bus, device, register), as ``0x1f40``
``nvml 0 energy_mj``       a figure of NVIDIA's management library (also ``nvml count``, ``nvml 0 name``)
=========================  =====================================================================

Readers know no other way to their sensors, so that any board replays: from a folder (:class:`Folder`) or from a
recording over time (:class:`narrowcast.devices.machine.recording.Recording`). The clock belongs to the machine too, so
a recording replays in its own time, at once.
"""

from __future__ import annotations

import errno
import os
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from narrowcast.devices.errors import RecordingError, SensorError

# The scheme of a key that is no file -> the folder that holds such keys where a board is recorded as a folder.
SCHEMES = {"$": "commands", "i2c": "i2c", "nvml": "nvml"}


class Machine(Protocol):
    """A running or a recorded board.

    Attributes:
        running: whether it is this machine, now; its own libraries and Python count only then.
    """

    running: bool

    def read(self, key: str) -> str:
        """The text under ``key``, without white space (and NUL bytes) at its ends.

        Raises:
            FileNotFoundError: there is no such file, command or device.
            SensorError: it is there and cannot be read; ``reason`` is the ``errno`` name.
        """

    def glob(self, pattern: str) -> list[str]:
        """The paths that match (``*`` stays within a folder), sorted. Paths only: no commands or registers."""

    def now_ns(self) -> int:
        """The machine's monotonic clock."""

    def sleep(self, seconds: float) -> None:
        """Waits; a recorded machine's clock goes on at once."""


class Folder:
    """The files below ``root``: ``/`` is the running machine, any other folder a recorded board.

    A recorded folder holds what commands print in ``commands/NAME AND WORDS``, registers in ``i2c/BUS DEVICE REGISTER`` and
    NVML's figures in ``nvml/INDEX WHAT``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.running = root.resolve() == Path("/")

    def read(self, key: str) -> str:
        """See :class:`Machine`."""
        scheme, _, rest = key.partition(" ")
        if scheme not in SCHEMES:
            return read_file(self.root / key, key)
        if not self.running:
            return read_file(self.root / SCHEMES[scheme] / rest, key)
        return _live(scheme, rest)

    def glob(self, pattern: str) -> list[str]:
        """See :class:`Machine`."""
        try:
            return sorted(path.relative_to(self.root).as_posix() for path in self.root.glob(pattern))
        except PermissionError as error:
            raise SensorError(f"/{pattern} cannot be listed by this user", reason="EACCES") from error

    def now_ns(self) -> int:
        """See :class:`Machine`."""
        return time.monotonic_ns()

    def sleep(self, seconds: float) -> None:
        """See :class:`Machine`."""
        if seconds > 0:
            time.sleep(seconds)


def open_machine(root: Machine | Path | str = "/") -> Machine:
    """What ``root`` names: ``/`` or another folder, a recording's file, or a machine that is open already.

    Raises:
        RecordingError: a file that is no recording, or is not there.
    """
    if not isinstance(root, (str, Path)):
        return root
    path = Path(root)
    if path.is_file():
        from narrowcast.devices.machine.recording import Recording

        return Recording.open(path)
    if path.suffix == ".jsonl" and not path.exists():
        raise RecordingError(f"there is no {path}")
    return Folder(path)


def read_file(path: Path, key: str) -> str:
    """A small file's text; see :meth:`Machine.read`."""
    try:
        with path.open("rb", buffering=0) as file:
            data = file.read(1 << 16) or b""
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(errno.ENOENT, "no such file", f"/{key}") from error
    except OSError as error:
        raise unreadable(f"/{key}", error.errno) from error
    return clean(data.decode("utf-8", "replace"))


def clean(text: str) -> str:
    """Device trees end their strings with NUL, everything else with a newline."""
    return text.strip("\0 \t\r\n")


def unreadable(what: str, number: int | None) -> SensorError:
    """The error for something that is there and cannot be read."""
    name = errno.errorcode.get(number or 0, "EIO")
    if name in {"EACCES", "EPERM"}:
        fix = "run as root"
        if what.startswith("/sys/"):
            fix = f"sudo chmod a+r {what} (until the next boot), or run as root"
        return SensorError(f"{what} cannot be read by this user: {fix}", reason="EACCES")
    return SensorError(f"{what} cannot be read: {os.strerror(number or errno.EIO)}", reason=name)


def matches(path: str, pattern: str) -> bool:
    """Whether ``path`` matches, folder by folder, as :meth:`pathlib.Path.glob` does."""
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _live(scheme: str, rest: str) -> str:
    if scheme == "$":
        from narrowcast.devices.machine.commands import run

        return clean(run(rest))
    if scheme == "i2c":
        from narrowcast.devices.machine.i2c import read_word

        bus, device, register = (int(word, 0) for word in rest.split())
        return f"{read_word(bus, device, register):#06x}"
    from narrowcast.devices.machine.nvml import figure

    return figure(rest)
