"""One rollback, from this machine's side: which release, start, listen; the board does the rest by itself."""

from __future__ import annotations

import secrets
from typing import Any, get_args

import msgspec

from narrowcast.devices.flash.agent.jobs import ROLLBACK
from narrowcast.devices.flash.answers import Entry, There, checked
from narrowcast.devices.flash.board import connected, hello, layout_of, services_of
from narrowcast.devices.flash.errors import NoReleaseError
from narrowcast.devices.flash.following import follow, outcome
from narrowcast.devices.flash.given import given_in
from narrowcast.devices.flash.observer import Observer
from narrowcast.devices.flash.options import FlashOptions, Gate
from narrowcast.devices.flash.reconnecting import Reconnecting
from narrowcast.devices.flash.release import flashed_by
from narrowcast.devices.flash.report import FlashReport
from narrowcast.devices.flash.session import Session
from narrowcast.devices.targets import DeployPaths


class GoingBack:
    """One rollback; see :func:`narrowcast.devices.flash.rollback`."""

    def __init__(
        self, destination: str, options: FlashOptions, paths: DeployPaths, observer: Observer, *, once: bool
    ) -> None:
        self.destination = destination
        self.options = options
        self.observer = observer
        self.layout = layout_of(options.prefix, paths)
        self.notes: list[str] = []
        self._once = once
        self._heard: list[Entry] = []
        self._there = self._started = False
        self._run = secrets.token_hex(8)  # by which the board knows our connections for those of one rollback
        # Chosen once: over a later connection the board may have gone back already, and would be taken forward again.
        self._job: dict[str, Any] = {}
        self._planned = FlashReport(destination=destination, outcome="planned")

    def run(self) -> FlashReport:
        """To the end, over as many connections as that takes."""
        going_on = Reconnecting(
            there=lambda: self._there, heard=lambda: len(self._heard), started=lambda: self._started, note=self._note
        )
        return going_on.run(self._over_a_connection)

    def _over_a_connection(self) -> FlashReport:
        with connected(self.destination, self.options.connection, self.layout, self.observer) as (_, _, session):
            manager = services_of(self.options.services, hello(session, self.layout), self.options.prefix)
            self._there = True
            if not self._job:
                report = self._choose(session, manager)
                if report is not None:
                    return report
            if not self._started:
                if not session.call("lock", by=flashed_by(), job=self._job["id"], run=self._run):
                    session.call("start", job=self._job)
                self._started = True
            ended, steps = follow(session, str(self._job["id"]), self.observer, self._heard)
            done = {"outcome": "committed", "previous": ended.get("previous"), "steps": steps, "notes": self.notes}
            return outcome(ended, msgspec.structs.replace(self._planned, **done))

    def _choose(self, session: Session, manager: str) -> FlashReport | None:
        """Which release, and the job that goes there; a report where there is nothing to do."""
        found = checked(session.call("status", services=manager), There, self.destination)
        left, now = found["went_back"], found["current"]
        if left is not None and now is not None and found["pending"] is None:
            if self._once:
                self._note(f"it had gone back from {left} before")
                return self._report("unchanged", now, previous=found["previous"])
            self._note(f"{self.destination} had gone back from {left} before: this takes it there again")
        record = found["going_back"] or found["previous_release"]  # one that is under way is listened to
        if record is None:
            raise NoReleaseError(
                f"{self.destination} has no release to go back to; narrowcast flash status shows what it has"
            )
        self._planned = self._report("planned", record)
        if self.options.dry_run:
            return self._planned
        options = self.options
        self._job = {
            "id": f"{ROLLBACK}{record['id']}", "kind": "rollback", "by": flashed_by(), "services": manager,
            "release": record, "gate": gate_of(options, record), "keep": options.keep, "drill": options.drill,
        }  # fmt: skip
        return None

    def _report(self, word: Any, record: dict[str, Any], previous: str | None = None) -> FlashReport:
        return FlashReport(
            destination=self.destination, outcome=word, release=record["id"], previous=previous,
            model=record.get("model") or "", number=record.get("number") or 0, target=record.get("target"),
            notes=self.notes,
        )  # fmt: skip

    def _note(self, line: str) -> None:
        self.notes.append(line)
        self.observer.note(line)


def gate_of(options: FlashOptions, record: dict[str, Any]) -> dict[str, object]:
    """The gate of a way back: what was said now, else what the release was flashed with, else the usual one."""
    named = {"gate": "kind", "gate_frames": "frames", "gate_seconds": "seconds"}
    said = given_in(options)
    ours, before = options.for_gate(), record.get("gate")
    before = before if isinstance(before, dict) else {}
    sound = before.get("kind") in get_args(Gate) and all(
        isinstance(before.get(word), int | float) and before[word] > 0 for word in ("frames", "seconds")
    )
    kept = {word: before[word] for word in named.values()} if sound else {}
    return {**ours, **kept, **{word: ours[word] for name, word in named.items() if name in said}}
