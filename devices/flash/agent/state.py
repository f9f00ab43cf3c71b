"""Which release counts on a board: the one file that decides after a power cut."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from narrowcast.devices.flash.agent.errors import AgentError
from narrowcast.devices.flash.agent.files import point, read_json, write_json
from narrowcast.devices.flash.agent.layout import Layout

HISTORY = 20


class State:
    """``state.json``: read anew by every process, written as a whole.

    Attributes:
        pending: a release that is switched to and not confirmed: ``release``, ``previous``, ``boot``, ``job``; or None.
        previous: where ``rollback`` goes; None where there is nothing.
        went_back: of the last ``rollback``, ``from`` and ``to``; None once something was flashed since.
        highest: by model, the highest ``release`` that it ran, or what that was lowered to: downgrades are below it.
        history: how flashes ended, newest first.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._path = layout.flash / "state.json"
        found = read_json(self._path)
        found = found if isinstance(found, dict) else {}
        self.pending: dict[str, Any] | None = found.get("pending")
        self.previous: str | None = found.get("previous")
        self.went_back: dict[str, str] | None = found.get("went_back")
        self.highest: dict[str, int] = found.get("highest") or {}
        self.history: list[dict[str, Any]] = found.get("history") or []

    def save(self) -> None:
        """Writes it."""
        data = {
            "pending": self.pending, "previous": self.previous, "went_back": self.went_back, "highest": self.highest,
            "history": self.history[:HISTORY],
        }  # fmt: skip
        write_json(self._path, data)

    def begin(self, release: str, job: str, prepare: Callable[[], object] = lambda: None) -> None:
        """Before ``current`` is touched: what it is about to show, and what it showed; then ``prepare``, then the link."""
        if self.pending is None or self.pending.get("release") != release:
            running = self.layout.running()
            # What runs already is its own way back: where its daemon had ended, it is not made worse than it was.
            self.pending = {"release": release, "previous": running, "boot": boot_id(), "job": job}
            self.save()
        prepare()
        self.show(release)

    def show(self, release: str) -> None:
        """``current`` shows a release."""
        point(self.layout.current, self.layout.point_to(release))

    def confirm(self, record: dict[str, Any], *, downgrade: bool, back: bool = False) -> None:
        """The pending release is the one that counts.

        Args:
            record: its ``release.json``.
            downgrade: it was allowed to be older than what ran before, and so is what follows. Going back is no such thing.
            back: a ``rollback`` put it there.
        """
        assert self.pending is not None
        if self.pending["previous"] != self.pending["release"]:
            self.previous = self.pending["previous"]
            before, now = self.previous, str(self.pending["release"])
            self.went_back = {"from": before, "to": now} if back and before is not None else None
        elif not back:  # a way back that was asked for twice stays one
            self.went_back = None
        self._ran(record, lower=downgrade)
        self.tell(self.pending["release"], "committed", "")
        self.pending = None
        self.save()

    def stay(self, record: dict[str, Any], reason: str) -> None:
        """The pending release was never confirmed, and there is nothing to go back to: it is shown, and counts."""
        assert self.pending is not None
        self.show(str(self.pending["release"]))  # the power may have gone between the note and the link
        self._ran(record, lower=False)
        self.tell(str(self.pending["release"]), "kept", reason)
        self.previous, self.went_back, self.pending = None, None, None
        self.save()

    def _ran(self, record: dict[str, Any], *, lower: bool) -> None:
        model, number = str(record.get("model") or ""), int(record.get("number") or 0)
        self.highest[model] = number if lower else max(number, self.highest.get(model, 0))

    def go_back(self, reason: str, adopt: Callable[[Path], object]) -> str | None:
        """``current`` shows again what it showed before; returns that, None where there was nothing.

        In this order, so that a power cut in between ends in the same place: the link first, then ``adopt`` with what it
        shows, then the note. Where ``adopt`` fails, the release runs all the same: in the wrong unit rather than not.
        """
        assert self.pending is not None
        before: str | None = self.pending["previous"]
        if before is not None and self.layout.release(before).is_dir():
            self.show(before)
            try:
                adopt(self.layout.release(before))
            except (AgentError, OSError) as error:
                reason = f"{reason}; its unit could not be put back: {error}"
                print(reason, flush=True)
        else:
            before = None
            self.layout.current.unlink(missing_ok=True)
        self.tell(self.pending["release"], "rolled-back", reason)
        self.pending = None
        self.save()
        return before

    def tell(self, release: str, outcome: str, reason: str) -> None:
        """One more line of history; not saved by itself."""
        entry = {"release": release, "outcome": outcome, "reason": reason, "at": round(time.time())}
        self.history = [entry, *self.history][:HISTORY]


def boot_id() -> str:
    """Another one after every start of the machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
