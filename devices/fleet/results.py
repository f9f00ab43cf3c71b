"""What became of each board in a rollout: plain data, for JSON and for the state file."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

# done: flashed and healthy. unchanged: it ran this release already. verified: an earlier run had done it, and it still runs
# it. rolled-back: the release failed its health gate, and the one before runs on. interrupted: asked to stop midway.
BoardState = Literal[
    "waiting",
    "running",
    "planned",
    "done",
    "unchanged",
    "verified",
    "rolled-back",
    "failed",
    "interrupted",
    "not-begun",
]
GOOD: frozenset[BoardState] = frozenset({"done", "unchanged", "verified", "planned"})
BAD: frozenset[BoardState] = frozenset({"rolled-back", "failed"})
Outcome = Literal["done", "failed", "stopped", "interrupted"]


class BoardResult(msgspec.Struct, frozen=True, kw_only=True):
    """One board.

    Attributes:
        name, destination: of it.
        state: what became of it.
        wave: the title of its wave.
        step: that is under way, or at which it failed.
        detail: one line.
        release: what runs there now, as far as this run has seen.
        wants: names what was to be on it (:meth:`narrowcast.devices.fleet.flasher.Flasher.wants`).
        exit_code: of its error, as ``narrowcast flash`` alone would have ended; 0 without one.
        seconds: how long it took; None where it did not end.
    """

    name: str
    destination: str
    state: BoardState = "waiting"
    wave: str = ""
    step: str = ""
    detail: str = ""
    release: str | None = None
    wants: str = ""
    exit_code: int = 0
    seconds: float | None = None


class FleetReport(msgspec.Struct, frozen=True, kw_only=True):
    """A whole rollout.

    Attributes:
        outcome: ``done`` (all boards), ``failed`` (some did not, fewer than the threshold), ``stopped`` (by the threshold
            or a canary), ``interrupted``.
        reason: why it stopped; empty where it did not.
        boards: in the order of the rollout.
    """

    outcome: Outcome
    boards: list[BoardResult]
    reason: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """How many boards are in which state."""
        found: dict[str, int] = {}
        for board in self.boards:
            found[board.state] = found.get(board.state, 0) + 1
        return found

    @property
    def exit_code(self) -> int:
        """0 done; 130 interrupted; what all failed boards have in common (5 rolled back, 4 unreachable, ...), else 1."""
        if self.outcome in ("done", "interrupted"):
            return 0 if self.outcome == "done" else 130
        codes = {board.exit_code for board in self.boards if board.state in BAD}
        return codes.pop() if len(codes) == 1 else 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return {**found, "counts": self.counts}
