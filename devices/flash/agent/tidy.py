"""What no kept release needs is removed: all of it after a commit, what other flashes left behind after a failure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from narrowcast.devices.flash.agent.files import read_json, remove
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
    for path in _inside(layout.releases):
        if path.name not in kept:
            remove(path)
            gone += 1
    _environments(work, kept)
    remove(layout.files)
    _jobs(work)
    return f"{len(kept)} releases stay, {gone} removed"


def sweep(work: Work) -> None:
    """After a failure: what earlier flashes left that never counted.

    Without it, boards that are flashed and refuse, day after day, would be full one day, and then nothing could ever commit.
    The failed job keeps its own, since the same flash once more goes on with them.
    """
    layout, state = work.layout, State(work.layout)
    pending = state.pending or {}
    kept = {layout.running(), state.previous, pending.get("release"), pending.get("previous"), work.release}
    kept |= set(releases(layout))
    others: list[Any] = [read_json(path / "job.json") for path in _inside(layout.jobs) if path.name != work.job["id"]]
    flashed = {str(job["release"]["id"]) for job in others if isinstance(job, dict)}
    for path in _inside(layout.releases):
        # No folder that somebody is setting up by hand.
        if path.name not in kept and (path.name in flashed or (path / "release.json").exists()):
            remove(path)
    _environments(work, kept)
    ours = {str(file["sha256"]) for name in ("files", "wheels") for file in work.job.get(name) or []}
    for path in _inside(layout.files):
        if path.name.removesuffix(".part") not in ours:
            remove(path)
    _jobs(work)


def _environments(work: Work, kept: set[str | None]) -> None:
    """Those that no kept release runs from go. This job's stays: where it failed early, no release shows it yet."""
    used = {_environment(work.layout.release(name)) for name in kept if name is not None} | {str(work.job.get("env"))}
    for path in _inside(work.layout.envs):
        if path.name not in used:
            remove(path)


def _jobs(work: Work) -> None:
    for path in _inside(work.layout.jobs):
        if path.name != work.job["id"]:
            remove(path)


def _inside(folder: Path) -> Iterator[Path]:
    return iter(list(folder.iterdir()) if folder.is_dir() else [])


def _environment(release: Path) -> str:
    """The name of a release's environment, by the link that it runs from."""
    try:
        return (release / "venv").readlink().name
    except OSError:
        return ""
