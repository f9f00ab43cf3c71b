"""A rollout as it is shown: lines without a terminal, a table that lives on one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from narrowcast.cli import fleet_show, main
from narrowcast.devices.fleet.results import BoardResult, FleetReport


def result(name="a", state="running", **more):
    return BoardResult(name=name, destination=f"pi@{name}", state=state, **more)


@pytest.fixture
def console(monkeypatch):
    def make(terminal):
        out = io.StringIO()
        monkeypatch.setattr(fleet_show, "stderr", lambda: Console(file=out, force_terminal=terminal, width=100))
        return out

    return make


def test_without_a_terminal_every_board_that_ends_is_a_line(console):
    out = console(False)
    with fleet_show.RolloutView(quiet=False) as view:
        view.changed(result(step="upload"))
        view.changed(result(state="rolled-back", step="gate", detail="no answer"))
        view.changed(result("b", "verified"))
    assert out.getvalue().splitlines() == ["a: ROLLED BACK at gate: no answer", "b: verified"]


def test_quiet_says_nothing(console):
    for terminal in (False, True):
        out = console(terminal)
        with fleet_show.RolloutView(quiet=True) as view:
            view.changed(result(state="failed"))
        assert out.getvalue() == ""


def test_a_terminal_shows_a_table_and_of_a_large_fleet_what_matters(console):
    console(True)
    view = fleet_show.RolloutView(quiet=False)
    for k in range(100):
        view.changed(result(f"board-{k}", "done"))
    view.changed(result("slow", step="upload"))
    view.changed(result("bad", "failed"))
    table = view._table()
    assert list(table.columns[0].cells) == ["slow", "bad"]
    assert table.title == "101 boards are done"
    with view:
        view.changed(result("slow", "done"))
    assert list(view._table().columns[0].cells) == ["bad"]


def test_a_long_detail_hides_no_board(console):
    out = console(True)
    with fleet_show.RolloutView(quiet=False) as view:
        view.changed(result("dock-camera-1", "failed", step="upload", detail="word " * 60))
    assert "dock-camera-1" in out.getvalue()


def test_what_a_board_says_steers_no_terminal(console):
    for terminal in (False, True):
        out = console(terminal)
        with fleet_show.RolloutView(quiet=False) as view:
            view.changed(result(state="failed", step="gate", detail="\x1b]0;title\x07"))
        assert "\x1b]0" not in out.getvalue()
        assert "\\x1b]0;title\\x07" in out.getvalue()


def test_the_last_table_tells_each_board_and_the_sum(capsys):
    boards = [
        result(state="done", release="r2", seconds=12.3), result("b", "failed", step="upload", detail="full"),
        result("c", "not-begun"),
    ]  # fmt: skip
    fleet_show.print_report(FleetReport(outcome="stopped", boards=boards, reason="1 of 3 boards failed"))
    out = capsys.readouterr().out
    assert "upload: full" in out
    assert "3 boards: 1 done, 1 failed, 1 not begun" in out
    assert "stopped: 1 of 3 boards failed" in out


def test_nobody_to_ask_is_an_error_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "fleet.toml").write_text('[[boards]]\nname = "a"\nssh = "a"\ntarget = "rpi5"\n')
    code = main(["flash", "rollback", "--fleet", str(tmp_path / "fleet.toml")])
    assert code == 2
    assert "nobody can be asked" in capsys.readouterr().err


@pytest.mark.parametrize("whose", [["pi@camera-7"], ["--fleet", "fleet.toml"]])
def test_logs_are_no_json(capsys, whose):
    assert main(["flash", "logs", *whose, "--json"]) == 2
    assert "leave --json out" in capsys.readouterr().err


def test_a_deployment_to_a_fleet_asks_before_it_begins(tmp_path, capsys, monkeypatch):
    (tmp_path / "r.toml").write_text('[deploy.fleet]\ninventory = "fleet.toml"\n')
    terminal = io.StringIO("n\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    assert main(["deploy", str(tmp_path / "r.toml")]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "flashing the boards of fleet.toml" in said
    assert "nothing was done" in said
