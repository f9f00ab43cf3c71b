"""Carries out a job on the board, step by step, each noted before the next; after a kill it goes on with the open one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from narrowcast.devices.flash.agent import jobs, prepare, tidy
from narrowcast.devices.flash.agent.environment import build_environment
from narrowcast.devices.flash.agent.errors import AgentError
from narrowcast.devices.flash.agent.files import read_json, write_json
from narrowcast.devices.flash.agent.gate import pass_gate
from narrowcast.devices.flash.agent.journal import BALLAST, END, Journal
from narrowcast.devices.flash.agent.layout import Layout
from narrowcast.devices.flash.agent.services import services_for
from narrowcast.devices.flash.agent.state import State
from narrowcast.devices.flash.agent.store import explain
from narrowcast.devices.flash.agent.work import Work

Step = Callable[[Work], str]


def work(place: Path, layout_json: str) -> None:
    """Carries a job out, or goes on with it."""
    job = _open(place, layout_json)
    job.journal.write("attempt", "begin")
    back = next((one for one in job.journal.entries() if (one["step"], one["state"]) == ("rollback", "begin")), None)
    if back is not None:
        _failed(job, AgentError(str(back["kind"]), str(back["detail"])))
        return
    _recover(job)
    if job.journal.has("switch") and not _ours(job):
        _failed(job, AgentError("RolledBackError", "the board went back before this was confirmed"))
        return
    try:
        for name, step in _steps(job.job["kind"]).items():
            _do(job, name, step)
    except AgentError as error:
        _failed(job, error)
        return
    except OSError as error:  # the journal itself cannot be written
        _failed(job, AgentError(*explain(error)))
        return
    record: Any = read_json(job.folder / "release.json") or {}
    previous = State(job.layout).previous
    job.journal.write(END, "committed", release=job.release, previous=previous, head=record.get("head"))


def _ours(job: Work) -> bool:
    """Whether what this job switched to is still what counts, confirmed or not."""
    pending = State(job.layout).pending
    return job.layout.running() == job.release if pending is None else pending.get("release") == job.release


def _recover(job: Work) -> None:
    """A release that another flash switched to and never confirmed is no release to go back to."""
    state = State(job.layout)
    if state.pending is not None and state.pending.get("job") != job.job["id"]:
        reason, other = (
            "another flash began before it was confirmed",
            jobs.journal(job.layout, str(state.pending["job"])),
        )
        before = state.go_back(reason, job.services.adopt)
        _settle(job)
        jobs.end(other, "rolled-back", reason, before)


def give_up(place: Path, layout_json: str) -> None:
    """After too many attempts: back to what ran before."""
    _failed(_open(place, layout_json), AgentError("BoardError", "the board's worker was killed again and again"))


def _open(place: Path, layout_json: str) -> Work:
    layout, job = Layout(**json.loads(layout_json)), read_json(place / "job.json")
    journal = Journal(place / "journal.jsonl", str(job.get("drill") or ""))
    return Work(layout, job, journal, services_for(layout, str(job["services"])))


def _steps(kind: str) -> dict[str, Step]:
    switching: dict[str, Step] = {
        "switch": _switch, "restart": _restart, "gate": pass_gate, "commit": _commit, "tidy": tidy.tidy,
    }  # fmt: skip
    if kind == "rollback":
        return switching
    preparing: dict[str, Step] = {
        "environment": build_environment, "verify": prepare.verify, "choose": prepare.choose,
        "selftest": prepare.self_test, "install": prepare.install,
    }  # fmt: skip
    return {**preparing, **switching}


def _do(job: Work, name: str, step: Step) -> None:
    if job.journal.has(name):
        return
    job.journal.write(name, "begin")
    started = time.monotonic()
    try:
        detail = step(job)
    except AgentError:
        raise
    except OSError as error:
        raise AgentError(*explain(error)) from error
    except Exception as error:  # a fault of ours is a failed step too, and no reason to try it four times
        raise AgentError("BoardError", f"{name} failed: {type(error).__name__}: {error}") from error
    job.journal.write(name, "done", detail, seconds=round(time.monotonic() - started, 3))


def _switch(job: Work) -> str:
    state, running = State(job.layout), job.layout.running()
    if state.pending is None and running is not None:  # later it may be the new release's
        job.services.keep(job.layout.release(running))

    def prepare() -> None:
        job.services.adopt(job.folder)
        job.services.enable()  # before the link: a first release that the power cut short must start with the machine

    state.begin(job.release, str(job.job["id"]), prepare)
    before = (state.pending or {}).get("previous")
    return f"{before or 'nothing'} -> {job.release}"


def _restart(job: Work) -> str:
    job.services.restart()
    return f"by {job.services.name}"


def _commit(job: Work) -> str:
    state = State(job.layout)
    if state.pending is not None and state.pending.get("release") == job.release:
        record: Any = read_json(job.folder / "release.json") or {}
        write_json(job.folder / "release.json", {**record, "confirmed": True})
        downgrade = bool(job.job.get("allow_downgrade"))
        state.confirm(record, downgrade=downgrade, back=job.job.get("kind") == "rollback")
    return job.release


def _failed(job: Work, error: AgentError) -> None:
    """Goes back where something was switched already; says how it ended in either case."""
    more: dict[str, Any] = {"kind": error.kind}
    (job.journal.path.with_name(BALLAST)).unlink(missing_ok=True)  # a full disk leaves room for the way back
    state = State(job.layout)
    if state.pending is None or state.pending.get("release") != job.release:
        back = job.journal.has("rollback", "begin")
        if job.journal.has("switch") and (back or job.layout.running() != job.release):  # a way back that was cut short
            _settle(job)
            _sweep(job)
            job.journal.write(END, "rolled-back", error.message, release=job.layout.running(), **more)
        elif job.journal.has("switch"):  # it was confirmed before: what failed is the tidying up
            job.journal.write(END, "committed", error.message, release=job.release, previous=state.previous)
        else:
            _sweep(job)
            job.journal.write(END, "failed", error.message, release=job.layout.running(), **more)
        return
    job.journal.write("rollback", "begin", error.message, **more)
    before = state.go_back(error.message, job.services.adopt)
    _settle(job)
    job.journal.write("rollback", "done", before or "nothing ran before: the daemon is stopped")
    _sweep(job)
    job.journal.write(END, "rolled-back", error.message, release=before, **more)


def _sweep(job: Work) -> None:
    """Before the line that ends the job: behind it another flash may have begun to send files."""
    with suppress(Exception):  # whatever lies there, a job ends
        tidy.sweep(job)


def _settle(job: Work) -> None:
    """The daemon runs what ``current`` shows."""
    if job.layout.running() is None:
        job.services.stop()
    else:
        job.services.restart()
