"""The switch on a board with systemd, and what a power cut in the middle of it leaves: by a stand-in for ``systemctl``."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

import pytest
from support.systemctl import Systemctl

from narrowcast.devices.flash.agent import boot, prepare, report, worker
from narrowcast.devices.flash.agent import state as state_module
from narrowcast.devices.flash.agent import work as work_module
from narrowcast.devices.flash.agent.errors import AgentError
from narrowcast.devices.flash.agent.files import point, write_json
from narrowcast.devices.flash.agent.journal import Journal
from narrowcast.devices.flash.agent.layout import BOOT_UNIT, UNIT, UNIT_FILE
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

    def unit(self):
        """How systemd starts the daemon."""
        return (self.systemctl.units / UNIT_FILE).read_text()

    def runs(self, number):
        """A release that was flashed and confirmed."""
        work = self.work(number)
        worker._switch(work)
        worker._commit(work)
        return work

    def work(self, number, **job):
        """A job whose release is laid out."""
        name = f"m-{number}-a"
        self.layout.release(name).mkdir(parents=True, exist_ok=True)
        (self.layout.release(name) / UNIT_FILE).write_text(f"[Service]\nUser=user-{number}\n")
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
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(boot, "services_for", lambda layout, name: self.services)
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
    worker._failed(work, AgentError("RolledBackError", "no answers"))
    assert board.layout.running() is None
    assert not board.systemctl.enabled(UNIT)


# ---------------------------------------------------------------- units go with their releases


def test_the_unit_comes_with_the_switch_and_goes_with_the_way_back(board):
    old = board.runs(1)
    new = board.work(2)
    worker._switch(new)
    assert "user-2" in board.unit()
    new.journal.write("switch", "done")
    worker._failed(new, AgentError("RolledBackError", "no answers"))
    assert (board.layout.running(), State(board.layout).pending) == (old.release, None)
    assert "user-1" in board.unit()
    assert board.systemctl.calls[-1].startswith("start"), "and the daemon is started in it"
    assert board.systemctl.calls.index("daemon-reload") < len(board.systemctl.calls) - 1


def test_what_is_prepared_and_never_switched_to_leaves_the_unit_alone(board, monkeypatch):
    board.runs(1)
    monkeypatch.setattr(Work, "run_in_release", lambda self, *words, **how: "")
    new = board.work(2, units={f"{BOOT_UNIT}.service": "[Unit]"})
    (new.folder / "edge.toml").touch()
    prepare.install(new)
    assert (board.systemctl.units / f"{BOOT_UNIT}.service").exists()
    assert "user-1" in board.unit()


@pytest.mark.parametrize("where", ["adopt", "show", "gate"])
def test_a_power_cut_brings_the_unit_of_the_release_before_back(board, monkeypatch, where):
    old, new = board.runs(1), board.work(2)

    def gone(*_):
        raise PowerCutError

    if where == "gate":
        worker._switch(new)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(*((Systemd, "enable") if where == "adopt" else (state_module, "point")), gone)
            with pytest.raises(PowerCutError):
                worker._switch(new)
    assert "user-2" in board.unit()
    board.start_again()
    assert (board.layout.running(), State(board.layout).pending) == (old.release, None)
    assert "user-1" in board.unit()
    assert board.systemctl.calls[-1] == "daemon-reload", "before the daemon starts: the check at boot comes first"


def test_a_roll_back_by_command_takes_the_older_releases_unit(board):
    old = board.runs(1)
    board.runs(2)
    back = Work(board.layout, {**old.job, "id": "rollback-m-1-a", "kind": "rollback"}, old.journal, board.services)
    worker._switch(back)
    assert (board.layout.running(), "user-1" in board.unit()) == (old.release, True)
    worker._commit(back)
    assert State(board.layout).highest == {"m": 2}, "going back makes no way for what is older than the board ran"


def test_a_board_knows_that_it_went_back_until_something_is_flashed(board):
    def left():
        return report.status(board.layout, board.services)["went_back"]

    old, new = board.runs(1), board.runs(2)
    assert left() is None
    back = Work(board.layout, {**old.job, "id": "rollback-m-1-a", "kind": "rollback"}, old.journal, board.services)
    for _ in range(2):  # the second one finds that it runs already
        worker._switch(back)
        worker._commit(back)
        assert left() == new.release
    failed = board.work(3)
    worker._switch(failed)
    worker._failed(failed, AgentError("RolledBackError", "no answers"))
    assert left() == new.release, "what was taken back changes nothing"
    point(board.layout.current, board.layout.point_to(new.release))
    assert left() is None, "somebody put it there by hand"
    point(board.layout.current, board.layout.point_to(old.release))
    board.runs(4)
    assert left() is None


def test_what_counts_as_a_downgrade_is_lowered_by_who_allows_one_alone(board):
    for number, allowed, highest in ((2, False, 2), (1, True, 1), (3, True, 3)):
        work = board.work(number, allow_downgrade=allowed)
        worker._switch(work)
        worker._commit(work)
        assert State(board.layout).highest == {"m": highest}


def test_a_unit_that_its_release_does_not_hold_is_kept_at_the_first_switch_away_from_it(board):
    """Of a release that was set up by hand, or flashed before units were part of releases."""
    old = board.runs(1)
    (old.folder / UNIT_FILE).unlink()
    (board.systemctl.units / UNIT_FILE).write_text("by hand")
    new = board.work(2)
    worker._switch(new)
    worker._switch(new)  # after a kill: what is installed is the new one's by now
    new.journal.write("switch", "done")
    worker._failed(new, AgentError("RolledBackError", "no answers"))
    assert board.unit() == "by hand"


def test_a_unit_that_cannot_be_put_back_does_not_keep_the_release_before_from_running(board):
    old, new = board.runs(1), board.work(2)
    worker._switch(new)
    new.journal.write("switch", "done")
    board.systemctl.breaks()
    worker._failed(new, AgentError("RolledBackError", "no answers"))
    assert (board.layout.running(), board.systemctl.calls[-1].split()[0]) == (old.release, "start")
    assert "its unit could not be put back" in State(board.layout).history[0]["reason"]


def test_nobody_but_the_daemon_reads_the_settings_that_are_tried(board, monkeypatch):
    """An address of a camera may hold its password."""
    seen = []

    def run(self, *words, **how):
        trial = Path(words[words.index("--config") + 1])
        seen.append((trial.read_text(), trial.stat().st_mode & 0o777, trial.owner()))
        return ""

    monkeypatch.setattr(Work, "run_in_release", run)
    user = "nobody" if os.geteuid() == 0 else ""
    work = board.work(1, units={}, user=user)
    (work.folder / "edge.toml").write_text(f'bundle = "{board.layout.current}/model.ncb"')
    prepare.install(work)
    assert seen == [(f'bundle = "{work.folder}/model.ncb"', 0o600, user or getpass.getuser())]


def test_the_daemons_own_folders_are_made_before_the_unit_is_opened_to_them(board):
    work = board.work(1, files=[], user="")
    prepare._lay(work)
    layout = board.layout
    modes = [Path(path).stat().st_mode & 0o777 for path in (layout.state, layout.cache, layout.run)]
    assert modes == [0o750, 0o750, 0o755]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
def test_another_user_is_tried_before_systemd_gives_them_the_daemons_folders(board, monkeypatch, tmp_path):
    """The old daemon keeps its state until the switch; its cache takes what is measured for the new one."""
    monkeypatch.setattr(work_module, "HANDED_OVER", (str(tmp_path),))
    seen = []

    def run(self, *words, state="", **how):
        seen.append((words[-1], Path(state or self.layout.state).owner(), Path(self.layout.cache).owner()))
        return '{"head": {"words": "fp32"}}'

    monkeypatch.setattr(Work, "run_in_release", run)
    for number, user in ((1, "daemon"), (2, "nobody"), (3, "nobody")):
        work = board.work(number, files=[], units={}, unsigned=False, backends=[], precision="auto", user=user)
        (work.folder / "edge.toml").touch()
        prepare._lay(work)
        prepare.choose(work)
        prepare.install(work)
    assert Path(board.layout.state).owner() == "daemon"
    assert seen == [
        ("auto", "daemon", "daemon"), ("--check", "daemon", "daemon"), ("auto", "daemon", "nobody"),
        ("--check", "nobody", "nobody"), ("auto", "daemon", "nobody"), ("--check", "nobody", "nobody"),
    ]  # fmt: skip
