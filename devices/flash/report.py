"""What a flash did, and what a board says of itself: plain data, for JSON."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Outcome = Literal["planned", "committed", "unchanged", "rolled-back"]


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One step: what came of it and how long it took, by the clock of who did it; None where it did not end."""

    name: str
    state: str
    detail: str = ""
    seconds: float | None = None


class FlashReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a flash or a rollback did.

    Attributes:
        destination: the board.
        outcome: ``planned`` (a dry run), ``committed``, ``unchanged`` (it ran already; of a rollback: the board had gone
            back before), ``rolled-back``.
        release: the id of the release that runs now; None where none does.
        previous: the one before it.
        model: its name.
        number: the manifest's ``release``.
        target: kind of board.
        uploaded_bytes: sent in this run; what was there already does not count.
        precision: of the head that the board chose; None where it was not measured.
        backend: that runs it.
        head_ms: median milliseconds of a frame, by precision, measured on the board.
        power: what the board's power can be measured by; None where it cannot.
        steps: in order.
        notes: what is worth knowing.
        plan: of a dry run; else None.
    """

    destination: str
    outcome: Outcome
    release: str | None = None
    previous: str | None = None
    model: str = ""
    number: int = 0
    target: str | None = None
    uploaded_bytes: int = 0
    precision: str | None = None
    backend: str | None = None
    head_ms: dict[str, float] = {}
    power: str | None = None
    steps: list[StepRecord] = []
    notes: list[str] = []
    plan: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


class BoardStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What runs on a board.

    Attributes:
        destination: the board.
        current: the running release, as its ``release.json`` says; None where nothing was flashed.
        previous: the one that ``rollback`` goes to; None where there is none.
        went_back: the release that a rollback left for ``current``; None where that was flashed.
        pending: a release that is not confirmed yet: its gate is under way, or the power went.
        releases: all that lie there, newest first.
        service: ``active``, ``pid``, ``restarts``, ``manager``.
        daemon: the daemon's ``status.json``; None where it writes none.
        daemon_age_s: how old that is, by the board's clock.
        last: how the last flash ended; None before the first.
        trusted: keys whose bundles the board takes: ``id`` and ``name``.
        flashing: who flashes it right now; None where nobody does.
        facts: model, architecture, operating system, Python, clock, free bytes.
    """

    destination: str
    current: dict[str, Any] | None = None
    previous: str | None = None
    went_back: str | None = None
    pending: dict[str, Any] | None = None
    releases: list[str] = []
    service: dict[str, Any] = {}
    daemon: dict[str, Any] | None = None
    daemon_age_s: float | None = None
    last: dict[str, Any] | None = None
    trusted: list[dict[str, str]] = []
    flashing: str | None = None
    facts: dict[str, Any] = {}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found
