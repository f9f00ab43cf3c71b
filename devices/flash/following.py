"""Listening to a board that carries out a job: its journal becomes steps, its end an outcome or an error."""

from __future__ import annotations

from typing import Any

import msgspec

from narrowcast.devices.flash.agent.journal import END
from narrowcast.devices.flash.answers import Entry, checked, printable
from narrowcast.devices.flash.errors import RolledBackError, from_board
from narrowcast.devices.flash.observer import Observer
from narrowcast.devices.flash.report import FlashReport, StepRecord
from narrowcast.devices.flash.session import Session


def follow(
    session: Session, job: str, observer: Observer, heard: list[Entry] | None = None
) -> tuple[Entry, list[StepRecord]]:
    """Until the job has ended.

    Args:
        session: with the board.
        job: its id.
        observer: is told of every step.
        heard: what was heard over an earlier connection; grows.

    Returns:
        the line that ended it, and the steps.

    Raises:
        FlashError: the board's worker died, or the link broke.
    """
    heard = [] if heard is None else heard
    for event in session.events("follow", job=job, after=len(heard)):
        entry = _entry(event, session.board)
        if entry["step"] == "beat":
            continue
        heard.append(entry)
        if entry["step"] not in (END, "attempt"):
            observer.step(str(entry["step"]), str(entry["state"]), str(entry["detail"]))
        elif entry["step"] == "attempt" and sum(one["step"] == "attempt" for one in heard) > 1:
            observer.note("the board's worker was killed; it goes on where it stopped")
    return heard[-1], records(heard)


def _entry(event: dict[str, Any], board: str) -> Entry:
    """A line of the journal, whatever the board says."""
    found = checked(event, Entry, board)
    step, state, detail = (printable(found.get(name, "")) for name in ("step", "state", "detail"))  # type: ignore[arg-type]
    return {**found, "step": step, "state": state, "detail": detail}


def records(heard: list[Entry]) -> list[StepRecord]:
    """Every step once, as it ended."""
    found: dict[str, StepRecord] = {}
    for entry in heard:
        if entry["step"] not in (END, "attempt"):
            record = StepRecord(
                name=entry["step"], state=entry["state"], detail=entry["detail"], seconds=entry.get("seconds")
            )
            found[record.name] = record
    return list(found.values())


def outcome(ended: Entry, report: FlashReport) -> FlashReport:
    """The report of a job that has ended.

    Raises:
        FlashError: it failed; RolledBackError where the board went back.
    """
    if ended["state"] == "committed":
        return report
    if ended["state"] == "rolled-back":
        report = msgspec.structs.replace(report, outcome="rolled-back", release=ended.get("release"), previous=None)
        runs = f"{ended.get('release')} runs again" if ended.get("release") else "nothing ran before, so nothing runs"
        raise RolledBackError(f"{report.destination} went back: {ended['detail']}; {runs}", report)
    error = from_board(str(ended.get("kind")), f"{report.destination}: {ended['detail']}")
    raise error
