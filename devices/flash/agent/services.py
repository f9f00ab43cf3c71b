"""Who keeps the daemon running: systemd, or where there is none (or no root) a small supervisor of our own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from narrowcast.devices.flash.agent.errors import AgentError
from narrowcast.devices.flash.agent.files import read_json, write_atomic
from narrowcast.devices.flash.agent.layout import BOOT_UNIT, UNIT, UNIT_FILE, Layout

SYSTEMD_UNITS = Path("/etc/systemd/system")
COMMAND_SECONDS = 90.0
SUPERVISOR = "supervisor: "  # its own lines in the daemon's log
STOP_SECONDS = 20.0
IDLE_SECONDS = 1.0
TAIL_BYTES = 4 * 1024 * 1024  # of a log, for its last lines


@dataclass(frozen=True)
class Seen:
    """The daemon, as its manager sees it.

    Attributes:
        active: it runs.
        failed: it does not, and nobody will start it again.
        pid: its process; None where it has none.
        restarts: how often it ended by itself since it was started on purpose.
        why: what the manager says of a daemon that does not run.
    """

    active: bool
    pid: int | None
    restarts: int
    why: str = ""
    failed: bool = False


class Services(Protocol):
    """Keeps the daemon running.

    Attributes:
        name: ``systemd`` or ``supervised``.
    """

    name: str

    def install(self, units: dict[str, str]) -> None:
        """What looks after the daemon when the machine starts, whatever release runs."""

    def keep(self, release: Path) -> None:
        """How the daemon is started now, into the folder of the release that runs, where that does not say it itself."""

    def adopt(self, release: Path) -> None:
        """The daemon is started as the release in this folder says; what it does not say stays as it is."""

    def enable(self) -> None:
        """It starts with the machine, where the manager does that."""

    def restart(self) -> None:
        """Ends the daemon, where it runs, and starts it from ``current``."""

    def stop(self) -> None:
        """Ends it; it does not start with the machine until it is restarted."""

    def state(self) -> Seen:
        """How it is."""

    def logs(self, lines: int, *, follow: bool = False) -> Generator[str | None]:
        """Its last lines; with ``follow`` those to come as well. None where none came for a second."""


def services_for(layout: Layout, name: str) -> Services:
    """The manager called ``systemd`` or ``supervised``."""
    if name == "systemd":
        return Systemd()
    if name == "supervised":
        return Supervised(layout)
    raise AgentError("BoardError", f"no service manager {name!r}; known: systemd, supervised")


class Systemd:
    """The unit ``narrowcast-edge``, and the check at boot."""

    name = "systemd"

    def __init__(self, units: Path = SYSTEMD_UNITS) -> None:
        self._units = units

    def install(self, units: dict[str, str]) -> None:
        """See :class:`Services`."""
        self._write({name: text.encode() for name, text in units.items()})
        _systemctl("enable", "--quiet", f"{BOOT_UNIT}.service")

    def keep(self, release: Path) -> None:
        """See :class:`Services`: it was flashed by an earlier version, or set up by hand."""
        unit, home = self._units / UNIT_FILE, release / UNIT_FILE
        if unit.exists() and release.is_dir() and not home.exists():
            write_atomic(home, unit.read_bytes())

    def adopt(self, release: Path) -> None:
        """See :class:`Services`."""
        if (release / UNIT_FILE).exists():
            self._write({UNIT_FILE: (release / UNIT_FILE).read_bytes()})

    def _write(self, units: dict[str, bytes]) -> None:
        changed = False
        for name, data in units.items():
            path = self._units / name
            if not path.exists() or path.read_bytes() != data:
                write_atomic(path, data)
                changed = True
        if changed:
            _systemctl("daemon-reload")

    def enable(self) -> None:
        """See :class:`Services`."""
        _systemctl("enable", "--quiet", f"{UNIT}.service", f"{BOOT_UNIT}.service")

    def restart(self) -> None:
        """See :class:`Services`."""
        self.enable()  # a way back to a release may find it stopped for good
        _systemctl("reset-failed", f"{UNIT}.service", check=False)
        # Stopped first: what the old process says of itself must not pass for the new one's. Not waited for: the gate does.
        _systemctl("stop", f"{UNIT}.service")
        _systemctl("start", "--no-block", f"{UNIT}.service")

    def stop(self) -> None:
        """See :class:`Services`."""
        _systemctl("disable", "--quiet", "--now", f"{UNIT}.service", check=False)

    def state(self) -> Seen:
        """See :class:`Services`."""
        shown = _systemctl(
            "show", f"{UNIT}.service", "--property=ActiveState,SubState,MainPID,NRestarts,Result,Job", check=False
        )
        found = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
        pid = int(found.get("MainPID") or 0) or None
        active = found.get("ActiveState") == "active"
        why = "" if active else f"{found.get('ActiveState')} ({found.get('SubState')}, result {found.get('Result')})"
        ended = found.get("ActiveState") == "inactive" and found.get("Job", "0") in ("", "0")
        failed = found.get("ActiveState") == "failed" or ended
        return Seen(active, pid, int(found.get("NRestarts") or 0), why, failed)

    def logs(self, lines: int, *, follow: bool = False) -> Generator[str | None]:
        """See :class:`Services`."""
        words = ["journalctl", "--unit", UNIT, "--lines", str(lines), "--no-pager", "--output", "short-iso", "--quiet"]
        with subprocess.Popen(
            [*words, *(["--follow"] if follow else [])], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            try:
                yield from _lines(process.stdout.fileno())
            finally:
                process.kill()


def _lines(handle: int) -> Generator[str | None]:
    """Of a pipe, as they come."""
    rest = b""
    while True:
        if not select.select([handle], [], [], IDLE_SECONDS)[0]:
            yield None
            continue
        data = os.read(handle, 1 << 16)
        *whole, rest = (rest + data).split(b"\n")
        for line in whole if data else [rest] * bool(rest):
            yield line.decode("utf-8", "replace")
        if not data:
            return


def _systemctl(*words: str, check: bool = True) -> str:
    try:
        done = subprocess.run(
            ["systemctl", *words], capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AgentError("BoardError", f"systemctl {words[0]} cannot be run: {error}") from error
    if check and done.returncode != 0:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise AgentError("BoardError", f"systemctl {' '.join(words)}: {said}")
    return done.stdout


class Supervised:
    """A process of our own (:mod:`narrowcast.devices.flash.agent.supervise`) that starts the daemon again when it ends."""

    name = "supervised"

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._file = Path(layout.run) / "supervisor.json"
        self._log = Path(layout.run) / "edge.log"

    def install(self, units: dict[str, str]) -> None:
        """See :class:`Services`: nothing is installed; after a reboot ``agent.pyz boot`` starts it."""

    def keep(self, release: Path) -> None:
        """See :class:`Services`: every release is started alike."""

    def adopt(self, release: Path) -> None:
        """See :class:`Services`: every release is started alike."""

    def enable(self) -> None:
        """See :class:`Services`."""

    def restart(self) -> None:
        """See :class:`Services`."""
        self.stop()
        Path(self._layout.run).mkdir(parents=True, exist_ok=True)
        agent = str(self._layout.flash / "agent.pyz")
        spawn([sys.executable, "-IS", agent, "supervise", json.dumps(self._layout.as_dict())], self._log)
        deadline = time.monotonic() + STOP_SECONDS
        while self._supervisor() is None:
            if time.monotonic() > deadline:
                raise AgentError("BoardError", f"the supervisor does not start; see {self._log}")
            time.sleep(0.02)

    def stop(self) -> None:
        """See :class:`Services`."""
        pid = self._supervisor()
        if pid is None:
            return
        deadline = time.monotonic() + STOP_SECONDS
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
            while self._supervisor() is not None:
                if time.monotonic() > deadline:
                    os.killpg(pid, signal.SIGKILL)
                time.sleep(0.02)
        self._file.unlink(missing_ok=True)

    def state(self) -> Seen:
        """See :class:`Services`."""
        found: Any = read_json(self._file) or {}
        if self._supervisor() is None:
            return Seen(False, None, 0, "no supervisor runs")
        child = found.get("child")
        active = isinstance(child, int) and Path(f"/proc/{child}").exists()
        return Seen(active, child if active else None, int(found.get("restarts") or 0), found.get("why") or "")

    def logs(self, lines: int, *, follow: bool = False) -> Generator[str | None]:
        """See :class:`Services`."""
        try:
            file = self._log.open(encoding="utf-8", errors="replace")
        except OSError:
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            if size > TAIL_BYTES:
                file.seek(size - TAIL_BYTES)
                file.readline()  # the rest of one
            yield from (line.rstrip("\n") for line in deque(file, maxlen=lines))
            told = time.monotonic()
            while follow:
                line = file.readline()
                if not line and os.fstat(file.fileno()).st_size < os.lseek(file.fileno(), 0, os.SEEK_CUR):
                    file.seek(0)  # the supervisor has shortened it
                if line or time.monotonic() - told > IDLE_SECONDS:
                    told = time.monotonic()
                    yield line.rstrip("\n") if line else None
                else:
                    time.sleep(0.2)

    def _supervisor(self) -> int | None:
        """Its process, where it lives: the number could be another's by now, so its command line is looked at."""
        found: Any = read_json(self._file) or {}
        pid = found.get("pid")
        if not isinstance(pid, int):
            return None
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            state = (
                Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
            )
        except (OSError, IndexError):
            return None
        return pid if b"supervise" in words and state != "Z" else None


def spawn(command: list[str], log: Path) -> None:
    """Starts a process that outlives us, in a session of its own, with its output in ``log``."""
    with log.open("ab") as out:
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, close_fds=True, cwd="/"
        )
