"""What runs on the board, for ``narrowcast flash status``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from narrowcast.devices.flash.agent.environment import WHOLE
from narrowcast.devices.flash.agent.facts import facts
from narrowcast.devices.flash.agent.files import read_json, read_json_of, sha256_of
from narrowcast.devices.flash.agent.jobs import ROLLBACK
from narrowcast.devices.flash.agent.layout import Layout, by_hand
from narrowcast.devices.flash.agent.locks import holder
from narrowcast.devices.flash.agent.services import Services
from narrowcast.devices.flash.agent.state import State
from narrowcast.devices.flash.agent.trust import trusted_here


def status(layout: Layout, services: Services) -> dict[str, Any]:
    """See :class:`narrowcast.devices.flash.report.BoardStatus`."""
    state, running = State(layout), layout.running()
    daemon = read_json_of(layout.daemon_status)
    try:
        age = round(time.time() - layout.daemon_status.lstat().st_mtime, 1) if daemon is not None else None
    except OSError:
        daemon, age = None, None
    seen = services.state()
    before = state.previous if state.pending is None else state.pending.get("previous")
    return {
        "current": _record(layout, running),
        "previous": before,
        "previous_release": _record(layout, before),
        "went_back": _went_back(state, running),
        "going_back": _record(layout, _going_back(state)),
        "environments": [path.parent.name for path in layout.envs.glob(f"*/{WHOLE}")],
        "highest": state.highest,
        "edge": _edge(layout, running),
        "tls": _tls(layout, running),
        "pending": state.pending,
        "releases": releases(layout),
        "service": {
            "manager": services.name, "active": seen.active, "pid": seen.pid, "restarts": seen.restarts,
        },
        "daemon": daemon,
        "daemon_age_s": age,
        "last": state.history[0] if state.history else None,
        "trusted": trusted_here(layout),
        "flashing": holder(layout.flash / "work.lock") or holder(layout.flash / "session.lock") or None,
        "facts": facts(layout),
    }  # fmt: skip


def _confirmed(path: Path) -> bool:
    record: Any = read_json(path / "release.json")
    return isinstance(record, dict) and bool(record.get("confirmed"))


def _going_back(state: State) -> str | None:
    """The release that a rollback goes to which is under way; None where none is."""
    pending = state.pending or {}
    release = pending.get("release")
    return release if release and pending.get("job") == f"{ROLLBACK}{release}" else None


def _went_back(state: State, running: str | None) -> str | None:
    """The release that a rollback left for the one that runs; None where that was flashed, or put there by hand."""
    found = state.went_back or {}
    return found.get("from") if found.get("to") == running else None


def _record(layout: Layout, name: str | None) -> dict[str, Any] | None:
    """What a release says of itself; None where it is not there."""
    if name is None or not layout.release(name).is_dir():
        return None
    found: dict[str, Any] = {"id": name, **(read_json(layout.release(name) / "release.json") or {})}
    return found


def _tls(layout: Layout, running: str | None) -> dict[str, str]:
    """SHA-256 by path of the board's certificate; empty where it has none."""
    folder = Path(layout.config) / "tls"  # by way of `current`, or made by hand before the first flash
    folder = by_hand(folder) if running is None and folder.is_symlink() else folder
    return {f"tls/{path.name}": sha256_of(path) for path in folder.iterdir()} if folder.is_dir() else {}


def _edge(layout: Layout, running: str | None) -> str | None:
    """The daemon's configuration: of what runs, else what somebody wrote before the first flash."""
    for path in [layout.release(running) / "edge.toml"] if running else [layout.edge, by_hand(layout.edge)]:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
    return None


def releases(layout: Layout) -> list[str]:
    """All releases that were confirmed, or run, newest first."""
    running = layout.running()
    try:
        found = [path for path in layout.releases.iterdir() if path.name == running or _confirmed(path)]
    except OSError:
        return []
    return [path.name for path in sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)]
