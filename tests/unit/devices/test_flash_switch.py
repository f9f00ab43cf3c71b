"""The switch on a board with systemd, and what a power cut in the middle of it leaves: by a stand-in for ``systemctl``."""

from __future__ import annotations

import pytest
from support.systemctl import Systemctl

from narrowcast.devices.flash.agent import boot, worker
from narrowcast.devices.flash.agent import state as state_module
from narrowcast.devices.flash.agent.files import write_json
from narrowcast.devices.flash.agent.journal import Journal
from narrowcast.devices.flash.agent.layout import UNIT
from narrowcast.devices.flash.agent.services import Systemd
from narrowcast.devices.flash.agent.state import State
from narrowcast.devices.flash.agent.work import Work
from narrowcast.devices.flash.board import layout_of
from narrowcast.devices.targets import DeployPaths


class PowerCutError(Exception):
    """Nothing after it happens."""


class Board:
    """A board with systemd whose worker is called step by step."""

    def __init__(self, folder, monkeypatch):
        self.layout = layout_of(str(folder / "board"), DeployPaths())
        self.systemctl = Systemctl(folder / "systemctl", monkeypatch)
        self.services = Systemd(self.systemctl.units)
        self.layout.flash.mkdir(parents=True)
        write_json(self.layout.flash / "layout.json", self.layout.as_dict())

    def work(self, number, **job):
        """A job whose release is laid out."""
        name = f"m-{number}-a"
        self.layout.release(name).mkdir(parents=True, exist_ok=True)
        record = {"id": name, "model": "m", "number": number}
        write_json(self.layout.release(name) / "release.json", record)
        place = self.layout.jobs / name
        place.mkdir(parents=True, exist_ok=True)
        return Work(
            self.layout, {"id": name, "release": record, **job}, Journal(place / "journal.jsonl"), self.services
        )

    def start_again(self):
        """The machine, after a power cut."""
        state = State(self.layout)
        if state.pending is not None:
            state.pending["boot"] = "another"
            state.save()
        boot.boot(self.layout.flash / "agent.pyz")


@pytest.fixture
def board(tmp_path, monkeypatch):
    return Board(tmp_path, monkeypatch)


def test_a_first_release_starts_with_the_machine_before_anything_shows_it(board, monkeypatch):
    """A power cut behind the switch: nothing ran before, it stays, and systemd must start it."""
    work = board.work(1)
    show, seen = state_module.point, []
    monkeypatch.setattr(
        state_module, "point", lambda *words: (seen.append(board.systemctl.enabled(UNIT)), show(*words))
    )
    worker._switch(work)
    assert seen == [True]
    board.start_again()
    assert (board.layout.running(), State(board.layout).history[0]["outcome"]) == (work.release, "kept")
    assert board.systemctl.enabled(UNIT)


def test_a_first_release_that_was_noted_and_not_shown_yet_stays_too(board, monkeypatch):
    work = board.work(1)

    def gone(*_):
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(state_module, "point", gone)
        with pytest.raises(PowerCutError):
            worker._switch(work)
    assert board.layout.running() is None
    board.start_again()
    assert (board.layout.running(), State(board.layout).pending) == (work.release, None)


def test_a_first_release_that_goes_back_does_not_start_with_the_machine(board):
    work = board.work(1)
    worker._switch(work)
    work.journal.write("switch", "done")
    worker._failed(work, worker.AgentError("RolledBackError", "no answers"))
    assert board.layout.running() is None
    assert not board.systemctl.enabled(UNIT)
