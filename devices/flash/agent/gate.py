"""The health gate: whether the new release really works, by what its daemon has done for real frames."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

from narrowcast.devices.flash.agent.errors import AgentError
from narrowcast.devices.flash.agent.files import read_json_of
from narrowcast.devices.flash.agent.services import SUPERVISOR, Seen
from narrowcast.devices.flash.agent.work import Work

# Between two looks: four times as long as one takes, so that asking leaves a small board to its daemon.
LEAST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.25, 2.0
# So often may a daemon end by itself before it counts as one that does not run.
RESTARTS = 2
_SYSTEMD = re.compile(r"\S+ \S+ systemd\[\d+\]: ")


@dataclass
class _Look:
    """One look at the daemon."""

    seen: Seen
    status: dict[str, Any]
    fresh: bool

    @property
    def answered(self) -> int:
        return int(self.status.get("ledger", {}).get("answered") or 0) if self.fresh else 0

    def missing(self, work: Work, settings: dict[str, Any]) -> str:
        """What is still wanted; empty when it is healthy."""
        if not self.seen.active:
            return f"the daemon does not run: {self.seen.why or 'it ended'}"
        if not self.fresh:
            return "the daemon has written no status yet"
        number = (self.status.get("model") or {}).get("release")
        wanted = work.job["release"].get("number")  # None of what was set up by hand
        if wanted is not None and number != wanted:
            return f"the daemon runs release {number} of its model, not {wanted}"
        if not self.status.get("ready"):
            return f"the daemon is not ready{_about(self.status)}"
        if settings["kind"] == "frames" and self.answered < settings["frames"]:
            return f"{self.answered} of {settings['frames']} frames were answered{_about(self.status)}"
        return ""


def pass_gate(work: Work) -> str:
    """Returns when the release is healthy.

    Raises:
        AgentError: ``RolledBackError``: it is not, by the end of its time; says what was missing.
    """
    settings = work.job["gate"]
    deadline = time.monotonic() + float(settings["seconds"])
    first = work.services.state().restarts
    while True:
        began = time.monotonic()
        look = _look(work)
        missing = look.missing(work, settings)
        if not missing:
            return _praise(look, look.seen.restarts - first)
        if look.seen.failed or look.seen.restarts - first > RESTARTS:
            again = f" after {look.seen.restarts} restarts" if look.seen.restarts else ""
            raise AgentError("RolledBackError", f"the daemon does not run{again}: {look.seen.why}{_last_words(work)}")
        now = time.monotonic()
        if now > deadline:
            raise AgentError("RolledBackError", f"after {settings['seconds']:.0f} s {missing}{_last_words(work)}")
        time.sleep(max(LEAST_PAUSE_SECONDS, min(4 * (now - began), MOST_PAUSE_SECONDS)))


def _look(work: Work) -> _Look:
    """A status counts if the very process that runs now wrote it."""
    seen, status = work.services.state(), read_json_of(work.layout.daemon_status)
    status = status if isinstance(status, dict) else {}
    pid = status.get("pid")
    fresh = isinstance(pid, int) and _belongs(pid, seen.pid)
    return _Look(seen, status, fresh)


def _belongs(pid: int, main: int | None) -> bool:
    """Whether a process is the service's, or a child of it."""
    for _ in range(4):
        if pid == main:
            return True
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
                pid = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return False
        if pid <= 1:
            return False
    return False


def _about(status: dict[str, Any]) -> str:
    server, ledger = status.get("server"), status.get("ledger") or {}
    dropped = ", ".join(f"{count} {reason}" for reason, count in sorted((ledger.get("dropped") or {}).items()))
    captured = ledger.get("captured", 0)
    return f" (server {server or 'none'}, {captured} frames captured, dropped: {dropped or 'none'})"


def _praise(look: _Look, restarts: int) -> str:
    again = f"{restarts or 'no'} restart{'s' * (restarts > 1)}"
    if not look.answered:
        return f"the daemon is ready, {again}"
    return f"{look.answered} frames answered by {look.status.get('server') or 'the server'}, {again}"


def _last_words(work: Work) -> str:
    """The daemon's last line, for the message; not what its manager says: systemd has the last word of every end."""
    lines = [
        line
        for line in work.services.logs(60)
        if line and line.strip() and not line.startswith(SUPERVISOR) and not _SYSTEMD.match(line)
    ]
    return f"; its last line: {lines[-1][-300:]}" if lines else ""
