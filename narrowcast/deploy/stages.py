"""The stages of a deployment and what came of them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from narrowcast.compiler.progress import SILENT, Progress
from narrowcast.devices.flash import Observer as FlashObserver
from narrowcast.devices.fleet.results import BoardResult

# In order.
STAGES = {
    "compile": "train, fit tables, export, verify, sign; kept where recipe, teacher and images are what they were",
    "publish": "into the tail server's folder, by renaming; then the server is asked whether it serves it",
    "flash": "onto the board or the fleet, behind a health gate; the server must have it first",
    "profile": "milliseconds and joules on the board: local, the image sent, split",
    "report": "one page of the profile's run records",
}
# done: now. kept: an earlier run had done it, and it still holds. off: the recipe does not ask for it, or --skip said so.
StageState = Literal["begun", "done", "kept", "off", "planned", "failed"]


class StageResult(msgspec.Struct, frozen=True, kw_only=True):
    """One stage.

    Attributes:
        name: of :data:`STAGES`.
        state: what came of it.
        detail: one line.
        seconds: how long it took; None where it did not run or did not end.
        data: what it gave, for JSON; of a stage that failed what is known, such as each board's result.
    """

    name: str
    state: StageState
    detail: str = ""
    seconds: float | None = None
    data: dict[str, Any] = {}


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """All of it.

    Attributes:
        model, release: what was deployed; None where a dry run would compile it first.
        bundle: its file.
        stages: in order.
        exit_code: 0, or that of the stage that failed.
        error: what it said; empty where none did.
    """

    bundle: str
    stages: list[StageResult]
    model: str | None = None
    release: int | None = None
    exit_code: int = 0
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found


class Observer:
    """Whom a deployment tells what it does. Says nothing; override what you want.

    Attributes:
        progress: of the compiler.
        flash: is told of the steps of a flash, and asked what only a person may decide.
    """

    progress: Progress = SILENT
    flash: FlashObserver = FlashObserver()

    def board(self, result: BoardResult) -> None:
        """A board of a fleet has changed."""

    def stage(self, result: StageResult) -> None:
        """A stage has begun, or ended."""

    def note(self, line: str) -> None:
        """Something worth knowing."""
