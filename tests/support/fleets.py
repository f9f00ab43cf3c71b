"""Fleets of boards that are none: an inventory in a folder, and a flasher that does as it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from narrowcast.devices.fleet.flasher import Done, Say
from narrowcast.devices.fleet.inventory import Board, BoardSettings, load_inventory
from narrowcast.transport.errors import NarrowcastError


class BrokenError(NarrowcastError):
    """A board that cannot be flashed."""


class WentBackError(NarrowcastError):
    """A board that went back by itself."""

    exit_code = 5


def boards(count: int) -> list[Board]:
    """``board-000`` and so on."""
    return [Board(f"board-{k:03d}", f"pi@board-{k:03d}", ("all",), BoardSettings(target="rpi5")) for k in range(count)]


def inventory(folder: Path, text: str) -> list[Board]:
    """Of a TOML text."""
    (folder / "fleet.toml").write_text(text)
    return load_inventory(folder / "fleet.toml")


class ScriptedFlasher:
    """Every board takes ``release``, but for those with an error of their own.

    Attributes:
        flashed: names, in the order in which they were begun.
        asked: names whose release was looked at.
        most: boards that were under way at once, at most.
        during: called while a board is under way.
        moved: by name, why a board does not run what it should.
        there: names that have the release already.
    """

    def __init__(self, release: str = "r2", errors: dict[str, Exception] | None = None) -> None:
        self.release = release
        self.errors = errors or {}
        self.want: dict[str, str] = {}
        self.moved: dict[str, str] = {}
        self.there: set[str] = set()
        self.flashed: list[str] = []
        self.asked: list[str] = []
        self.most = 0
        self.during: Callable[[Board], None] = lambda board: None
        self._now = 0
        self._lock = threading.Lock()

    def act(self, board: Board, say: Say) -> Done:
        """See :class:`narrowcast.devices.fleet.flasher.Flasher`."""
        with self._lock:
            self.flashed.append(board.name)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            say("upload", "1 MB")
            self.during(board)
            if board.name in self.errors:
                raise self.errors[board.name]
            return Done("unchanged" if board.name in self.there else "done", self.release)
        finally:
            with self._lock:
                self._now -= 1

    def wants(self, board: Board) -> str:
        """See :class:`narrowcast.devices.fleet.flasher.Flasher`."""
        return self.want.get(board.name, "the same")

    def still(self, board: Board, release: str) -> str:
        """See :class:`narrowcast.devices.fleet.flasher.Flasher`."""
        self.asked.append(board.name)
        return self.moved.get(board.name, "")
