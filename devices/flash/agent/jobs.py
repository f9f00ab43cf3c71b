"""Jobs: what a developer's machine asked for, carried out by a process that does not depend on its connection."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from narrowcast.devices.flash.agent.errors import AgentError
from narrowcast.devices.flash.agent.files import read_json, write_atomic, write_json
from narrowcast.devices.flash.agent.journal import BALLAST, BALLAST_BYTES, END, Journal
from narrowcast.devices.flash.agent.layout import Layout
from narrowcast.devices.flash.agent.locks import holder
from narrowcast.devices.flash.agent.services import spawn

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
LAUNCH_SECONDS = 60.0
ROLLBACK = "rollback-"  # and the release's id: a rollback's job
# A guardian that is killed (where memory runs out, say) takes its worker along, and is started again; not one that gave up.
RESTART = ("Restart=on-abnormal", "RestartSec=1", "StartLimitIntervalSec=3600", "StartLimitBurst=4")


def folder(layout: Layout, job: str) -> Path:
    """A job's folder."""
    if not _ID.fullmatch(job):
        raise AgentError("BoardError", f"{job[:80]!r} is no job's id")
    return layout.jobs / job


def journal(layout: Layout, job: str) -> Journal:
    """Its journal."""
    return Journal(folder(layout, job) / "journal.jsonl")


def end(journal: Journal, outcome: str, reason: str, release: str | None) -> None:
    """A job that somebody else has decided is over too: the same flash once more begins anew."""
    if journal.path.exists() and journal.ended() is None:
        journal.write(END, outcome, reason, release=release, kind="RolledBackError")


def alive(layout: Layout, job: str) -> bool:
    """Whether its worker, or the guardian that would start it again, lives."""
    return holder(folder(layout, job) / "guardian.lock") != "" or _unit_active(job)


def under_way(layout: Layout, job: str) -> bool:
    """Whether a job is being carried out: it was begun, has not ended, and somebody is at it."""
    return journal(layout, job).ended() is None and alive(layout, job)


def check_free(layout: Layout, job: str) -> None:
    """Returns if no other job is being carried out.

    Raises:
        AgentError: ``BusyError``.
    """
    try:
        others = [path for path in layout.jobs.iterdir() if path.name != job]
    except OSError:
        others = []
    for other in others:
        if under_way(layout, other.name):
            entry: Any = read_json(other / "job.json") or {}
            raise AgentError(
                "BusyError",
                f"the board carries out {other.name} of {entry.get('by', 'somebody')}; wait until it has ended",
            )


def check_current(layout: Layout) -> None:
    """Returns if ``current`` can be switched.

    Raises:
        AgentError: ``PreflightError``: it is a folder, which no rename can exchange for a link.
    """
    if layout.current.is_dir() and not layout.current.is_symlink():
        raise AgentError(
            "PreflightError",
            f"{layout.current} is a folder that was made by hand: mkdir -p {layout.releases} && mv {layout.current} "
            f"{layout.releases}/by-hand && ln -s releases/by-hand {layout.current}, then flash again",
        )


def start(layout: Layout, job: dict[str, Any]) -> str:
    """Begins a job, or goes on with it where it stopped; one that is under way is left alone.

    Returns:
        ``started``, ``resumed`` or ``running``.
    """
    name = str(job["id"])
    place = folder(layout, name)
    if alive(layout, name):
        return "running"
    known = read_json(place / "job.json")
    resumed = _same(known, job) and journal(layout, name).ended() is None and bool(journal(layout, name).entries())
    if not resumed:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    if not resumed or known != job:  # with another drill
        write_json(place / "job.json", job, mode=0o600)
    if not (place / BALLAST).exists():
        write_atomic(place / BALLAST, bytes(range(256)) * (BALLAST_BYTES // 256), mode=0o600)
    _launch(layout, name, str(job["services"]))
    deadline = time.monotonic() + LAUNCH_SECONDS
    while not alive(layout, name) and journal(layout, name).ended() is None:
        if time.monotonic() > deadline:
            raise AgentError("BoardError", f"the board's worker does not start; see {place}/worker.log there")
        time.sleep(0.02)
    return "resumed" if resumed else "started"


def _same(known: Any, job: dict[str, Any]) -> bool:
    """Whether it is the same job; a drill is no part of it."""
    return isinstance(known, dict) and {**known, "drill": ""} == {**job, "drill": ""}


def unit_of(job: str) -> str:
    """The transient unit of a job."""
    return f"narrowcast-flash-{re.sub(r'[^A-Za-z0-9]', '-', job)}"


def _launch(layout: Layout, job: str, services: str) -> None:
    agent, place = str(layout.flash / "agent.pyz"), folder(layout, job)
    words = [sys.executable, "-IS", agent, "guard", str(place), layout_json(layout)]
    if services == "systemd":  # which puts a variable's value for $NAME, but not in the program's own name
        words = [
            "systemd-run", "--quiet", "--collect", f"--unit={unit_of(job)}", "--description=narrowcast flash",
            *(f"--property={one}" for one in RESTART), words[0], *(word.replace("$", "$$") for word in words[1:]),
        ]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, timeout=LAUNCH_SECONDS, check=False)
        if done.returncode != 0:
            raise AgentError("BoardError", f"systemd-run does not start the worker: {done.stderr.strip()}")
        return
    spawn(words, place / "worker.log")


def layout_json(layout: Layout) -> str:
    """A layout as one word of a command line."""
    return json.dumps(layout.as_dict())


def _unit_active(job: str) -> bool:
    """Whether systemd starts it, for the first time or again: its lock is taken a moment later."""
    if not Path("/run/systemd/system").is_dir() or shutil.which("systemctl") is None or os.geteuid() != 0:
        return False
    words = ["systemctl", "is-active", f"{unit_of(job)}.service"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=LAUNCH_SECONDS, check=False)
    return done.stdout.strip() in ("active", "activating", "reloading", "deactivating")
