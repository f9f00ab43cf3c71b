"""What every step of a job works on."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from narrowcast.devices.flash.agent.errors import AgentError
from narrowcast.devices.flash.agent.journal import Journal
from narrowcast.devices.flash.agent.layout import Layout
from narrowcast.devices.flash.agent.services import Services

LINES = 5
# Below which systemd gives folders to a unit's user, with all that is in them.
HANDED_OVER = ("/var/lib/", "/var/cache/")
CHECK_SECONDS = 1800.0  # an engine of TensorRT takes minutes on a small board


@dataclass
class Work:
    """A job.

    Attributes:
        layout: of the board.
        job: what was asked for.
        journal: what is done.
        services: who keeps the daemon running.
    """

    layout: Layout
    job: dict[str, Any]
    journal: Journal
    services: Services

    @property
    def release(self) -> str:
        """The id of the release that the job is about."""
        return str(self.job["release"]["id"])

    @property
    def folder(self) -> Path:
        """The release's folder."""
        return self.layout.release(self.release)

    @property
    def user(self) -> str:
        """Whom the daemon runs as, and everything that reads the bundle; empty for who we are."""
        name = str(self.job.get("user") or "")
        return name if os.geteuid() == 0 else ""

    def takes_over(self, folder: str) -> bool:
        """Whether systemd gives a folder to the daemon's user with the switch, who is another one until then."""
        if not self.user or self.services.name != "systemd" or not folder.startswith(HANDED_OVER):
            return False
        try:
            return Path(folder).stat().st_uid != pwd.getpwnam(self.user).pw_uid
        except OSError:
            return False

    def run_in_release(self, *words: str, kind: str, seconds: float = CHECK_SECONDS, state: str = "") -> str:
        """Runs the release's own Python as the daemon's user, with the daemon's caches.

        Args:
            words: after the interpreter.
            kind: of the error where it fails without naming one.
            seconds: it may take.
            state: in place of the daemon's.

        Returns:
            what it printed.

        Raises:
            AgentError: it failed; the last line of its errors says why. ``BoardError`` where it was killed or took too long,
                which says nothing of the bundle.
        """
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": self.layout.state,
            "LANG": "C.UTF-8",
            "NARROWCAST_CACHE": self.layout.cache,
            "STATE_DIRECTORY": state or self.layout.state,
            "RUNTIME_DIRECTORY": self.layout.run,
            "NARROWCAST_KEYS": f"{self.layout.state}/keys",
        }
        python = self.folder / "venv" / "bin" / "python"
        try:
            done: subprocess.CompletedProcess[str] = subprocess.run(
                [str(python), "-I", *words], capture_output=True, text=True, timeout=seconds, check=False, cwd="/",
                env=environment, stdin=subprocess.DEVNULL, **_as_user(self.user),
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise AgentError("BoardError", f"{words[1]} took more than {seconds:.0f} s on the board") from error
        except OSError as error:
            raise AgentError("RuntimeSetupError", f"{python} cannot be run: {error.strerror}") from error
        if done.returncode < 0:
            why = ": has its memory run out?" if done.returncode == -signal.SIGKILL else ""
            raise AgentError("BoardError", f"{words[1]} was killed on the board by signal {-done.returncode}{why}")
        if done.returncode != 0:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise _named(said[-1], kind, "; ".join(said[-LINES:]))
        return done.stdout

    def checks(self, *words: str, kind: str) -> dict[str, Any]:
        """What :mod:`narrowcast.devices.flash.checks` finds, run by the release itself."""
        found: dict[str, Any] = json.loads(
            self.run_in_release("-m", "narrowcast.devices.flash.checks", *words, kind=kind)
        )
        return found


def _as_user(user: str) -> dict[str, Any]:
    if not user:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": os.getgrouplist(user, entry.pw_gid)}


def _named(line: str, kind: str, said: str) -> AgentError:
    """The error in a line of :mod:`narrowcast.devices.flash.checks` (``KIND: message``), or of any other program."""
    name, _, message = line.partition(": ")
    is_named = name.endswith("Error") and name.isidentifier() and message.strip()
    return AgentError(name, message) if is_named else AgentError(kind, said)
