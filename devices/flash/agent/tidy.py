"""After the commit: what no kept release needs is removed."""

from __future__ import annotations

from pathlib import Path

from narrowcast.devices.flash.agent.files import remove
from narrowcast.devices.flash.agent.report import releases
from narrowcast.devices.flash.agent.state import State
from narrowcast.devices.flash.agent.work import Work


def tidy(work: Work) -> str:
    """Keeps the last releases, what runs and what ``rollback`` goes to; their environments; nothing of older jobs."""
    layout, state = work.layout, State(work.layout)
    kept = {layout.running(), state.previous} - {None}
    for name in releases(layout):
        if len(kept) < max(int(work.job.get("keep") or 0), 2):
            kept.add(name)
    gone = 0
    for path in list(layout.releases.iterdir()) if layout.releases.is_dir() else []:
        if path.name not in kept:
            remove(path)
            gone += 1
    used = {_environment(layout.release(name)) for name in kept if name is not None}
    for path in list(layout.envs.iterdir()) if layout.envs.is_dir() else []:
        if path.name not in used:
            remove(path)
    remove(layout.files)
    for path in list(layout.jobs.iterdir()) if layout.jobs.is_dir() else []:
        if path.name != work.job["id"]:
            remove(path)
    return f"{len(kept)} releases stay, {gone} removed"


def _environment(release: Path) -> str:
    """The name of a release's environment, by the link that it runs from."""
    try:
        return (release / "venv").readlink().name
    except OSError:
        return ""
