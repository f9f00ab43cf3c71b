"""Rollouts: order, waves, threshold, rerun, interruption; with hundreds of boards that are none."""

from __future__ import annotations

import json
import threading

import pytest
from support import fleets
from support.waiting import until

from narrowcast.devices.fleet import rollout as rollout_module
from narrowcast.devices.fleet.errors import FleetBusyError, FleetStateError, SelectionError
from narrowcast.devices.fleet.rollout import Rollout
from narrowcast.devices.fleet.state import open_state
from narrowcast.devices.fleet.waves import Threshold, plan_waves


def rolled(boards, flasher, *, canaries=0, size=0, **options):
    waves = plan_waves([board.name for board in boards], canaries=canaries, size=size)
    return Rollout(boards, waves, flasher, **options).run()


def states(report):
    return {result.name: result.state for result in report.boards}


def test_waves_are_the_boards_in_order_with_the_canaries_first():
    names = [f"b{k}" for k in range(8)]
    assert [wave.names for wave in plan_waves(names)] == [tuple(names)]
    counted = plan_waves(names, canaries=2, size=4)
    assert [(wave.title, wave.names, wave.canary) for wave in counted] == [
        ("canaries", ("b0", "b1"), True),
        ("wave 1 of 2", ("b2", "b3", "b4", "b5"), False),
        ("wave 2 of 2", ("b6", "b7"), False),
    ]
    named = plan_waves(names, ["b5"], size=10)
    assert [wave.names for wave in named] == [("b5",), ("b0", "b1", "b2", "b3", "b4", "b6", "b7")]
    assert [wave.names for wave in plan_waves(["b0"], canaries=1)] == [("b0",)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"canary": ["b0x"]}, "canary 'b0x' is none of the boards of this rollout; did you mean 'b0'"),
        ({"canary": ["b0", "b0"]}, "named twice"),
        ({"canary": ["b0"], "canaries": 1}, "named or counted"),
        ({"canaries": 3}, "3 canaries of 2 boards"),
        ({"size": -1}, "0 or more"),
    ],
)
def test_waves_that_cannot_be_are_refused(options, words):
    with pytest.raises(SelectionError, match=words):
        plan_waves(["b0", "b1"], **options)


@pytest.mark.parametrize(
    ("text", "boards", "first"), [("1", 200, 1), ("3", 200, 3), ("10%", 200, 20), ("10%", 5, 1), ("2.5%", 100, 3)]
)
def test_a_threshold_is_a_count_or_a_part_of_the_boards(text, boards, first):
    threshold = Threshold.parse(text)
    assert next(failed for failed in range(boards + 1) if threshold.reached(failed, boards)) == first
    assert not threshold.reached(0, boards)


def test_a_threshold_may_be_never():
    assert not Threshold.parse("never").reached(1000, 1000)
    assert str(Threshold.parse("never")) == "never"


@pytest.mark.parametrize("text", ["0", "0%", "101%", "-1", "1.5", "ten", ""])
def test_what_is_no_threshold_is_refused(text):
    with pytest.raises(SelectionError, match="failures"):
        Threshold.parse(text)


def test_two_hundred_boards_are_flashed_wave_by_wave_and_a_few_at_a_time():
    boards, flasher = fleets.boards(200), fleets.ScriptedFlasher()
    crowd = threading.Barrier(4)
    flasher.during = lambda board: crowd.wait(30) if board.name < "board-004" else None
    report = rolled(boards, flasher, size=50, parallel=4)
    assert report.outcome == "done"
    assert report.exit_code == 0
    assert report.counts == {"done": 200}
    assert flasher.most == 4
    for at in range(0, 200, 50):
        assert sorted(flasher.flashed[at : at + 50]) == [board.name for board in boards[at : at + 50]]
    assert [result.wave for result in report.boards[::50]] == [f"wave {k} of 4" for k in range(1, 5)]
    assert {result.release for result in report.boards} == {"r2"}


def test_a_failed_canary_stops_everything_whatever_the_threshold():
    flasher = fleets.ScriptedFlasher(errors={"board-001": fleets.WentBackError("the gate saw no answer")})
    report = rolled(fleets.boards(50), flasher, canaries=2, threshold=Threshold.parse("never"))
    assert sorted(flasher.flashed) == ["board-000", "board-001"]
    assert report.outcome == "stopped"
    assert report.counts == {"done": 1, "rolled-back": 1, "not-begun": 48}
    assert report.reason == "of the canaries, board-001 failed; no other board was touched"
    assert report.exit_code == 5
    assert report.boards[1].detail == "the gate saw no answer"


def test_too_many_failures_stop_it_and_what_is_under_way_ends():
    bad = {f"board-{k:03d}": fleets.BrokenError("no route") for k in (3, 4)}
    flasher = fleets.ScriptedFlasher(errors=bad)
    report = rolled(fleets.boards(40), flasher, size=10, parallel=1, threshold=Threshold.parse("5%"))
    assert report.outcome == "stopped"
    assert flasher.flashed == [f"board-{k:03d}" for k in range(5)]
    assert report.counts == {"done": 3, "failed": 2, "not-begun": 35}
    assert report.reason == "2 of 40 boards failed; it stops at 5 % of the boards"
    assert report.exit_code == 1


def test_fewer_failures_than_the_threshold_do_not_stop_it():
    flasher = fleets.ScriptedFlasher(errors={"board-003": fleets.BrokenError("no route")})
    report = rolled(fleets.boards(12), flasher, size=5, threshold=Threshold.parse("2"))
    assert report.outcome == "failed"
    assert report.counts == {"done": 11, "failed": 1}
    assert report.exit_code == 1


def test_an_unexpected_error_is_one_boards_failure():
    flasher = fleets.ScriptedFlasher(errors={"board-000": RuntimeError("surprise")})
    report = rolled(fleets.boards(3), flasher, threshold=Threshold.parse("never"))
    assert states(report) == {"board-000": "failed", "board-001": "done", "board-002": "done"}
    assert report.boards[0].detail == "unexpected RuntimeError: surprise"


def test_every_change_of_a_board_is_told():
    told = []
    rolled(fleets.boards(1), fleets.ScriptedFlasher(), changed=lambda r: told.append((r.state, r.step)))
    assert told == [("running", ""), ("running", ""), ("running", "upload"), ("done", "")]


def test_a_rerun_goes_on_with_what_is_not_done_and_looks_at_the_rest(tmp_path):
    boards, path = fleets.boards(10), tmp_path / "fleet.state.json"
    first = fleets.ScriptedFlasher(errors={"board-004": fleets.BrokenError("the link broke")})
    with open_state(path, "bundle-a") as state:
        report = rolled(boards, first, size=3, parallel=1, state=state)
    assert report.counts == {"done": 4, "failed": 1, "not-begun": 5}

    second = fleets.ScriptedFlasher()
    second.moved["board-002"] = "it runs r1"
    with open_state(path, "bundle-a") as state:
        report = rolled(boards, second, size=3, parallel=1, state=state)
    assert second.asked == [f"board-{k:03d}" for k in range(4)]
    assert second.flashed == ["board-002", *(f"board-{k:03d}" for k in range(4, 10))]
    assert report.counts == {"verified": 3, "done": 7}
    assert report.boards[2].detail == "(an earlier run had done it, but it runs r1)"
    assert json.loads(path.read_text())["rollout"] == "bundle-a"

    third = fleets.ScriptedFlasher()
    with open_state(path, "bundle-a") as state:
        assert rolled(boards, third, state=state).counts == {"verified": 10}
    assert not third.flashed


def test_a_canary_that_has_the_release_and_does_not_work_stops_everything_in_every_rerun(tmp_path, monkeypatch):
    """Nothing is flashed there, so no gate asks it."""
    monkeypatch.setattr(rollout_module, "WELL_SECONDS", 0.0)
    boards, path = fleets.boards(3), tmp_path / "fleet.state.json"
    bad = fleets.ScriptedFlasher(errors={"board-001": fleets.BrokenError("the link broke")})
    with open_state(path, "bundle-a") as state:
        rolled(boards, bad, canaries=1, size=1, state=state)
    for _ in range(2):
        flasher = fleets.ScriptedFlasher()
        flasher.moved["board-000"], flasher.there = "its daemon is not ready", {"board-000"}
        with open_state(path, "bundle-a") as state:
            report = rolled(boards, flasher, canaries=1, state=state)
        assert flasher.flashed == ["board-000"]
        assert report.counts == {"failed": 1, "not-begun": 2}
        assert report.boards[0].detail.startswith("pi@board-000 has r2 already, but its daemon is not ready: ")
        assert report.exit_code == 1


def test_a_board_that_has_the_release_gets_time_to_be_well(tmp_path, monkeypatch):
    monkeypatch.setattr(rollout_module, "_ASK_SECONDS", 0.0)
    flasher = fleets.ScriptedFlasher()
    flasher.there, answers = {"board-000"}, ["its daemon does not run", "its daemon is not ready", ""]
    monkeypatch.setattr(flasher, "still", lambda board, release: answers.pop(0))
    with open_state(tmp_path / "fleet.state.json", "bundle-a") as state:
        assert rolled(fleets.boards(1), flasher, state=state).counts == {"unchanged": 1}
    assert not answers


def test_a_board_whose_settings_have_changed_is_flashed_again(tmp_path):
    boards, path = fleets.boards(3), tmp_path / "fleet.state.json"
    with open_state(path, "bundle-a") as state:
        rolled(boards, fleets.ScriptedFlasher(), state=state)
    flasher = fleets.ScriptedFlasher()
    flasher.want["board-001"] = "another certificate"
    with open_state(path, "bundle-a") as state:
        report = rolled(boards, flasher, state=state)
    assert flasher.flashed == ["board-001"]
    assert report.counts == {"verified": 2, "done": 1}


@pytest.mark.parametrize("how", [{"rollout": "bundle-b"}, {"rollout": "bundle-a", "afresh": True}])
def test_another_rollout_begins_anew(how, tmp_path):
    boards, path = fleets.boards(3), tmp_path / "fleet.state.json"
    with open_state(path, "bundle-a") as state:
        rolled(boards, fleets.ScriptedFlasher(), state=state)
    flasher = fleets.ScriptedFlasher()
    with open_state(path, **how) as state:
        assert rolled(boards, flasher, state=state).counts == {"done": 3}
    assert not flasher.asked


def test_the_state_is_on_disk_while_a_rollout_is_under_way(tmp_path):
    """Whoever kills this process finds what was done."""
    path, seen = tmp_path / "state.json", []
    flasher = fleets.ScriptedFlasher()
    flasher.during = lambda board: seen.append(set(json.loads(path.read_text())["boards"]) if path.exists() else set())
    with open_state(path, "a") as state:
        rolled(fleets.boards(3), flasher, parallel=1, state=state)
    assert seen == [set(), {"board-000"}, {"board-000", "board-001"}]


def test_two_rollouts_of_one_inventory_are_kept_apart(tmp_path):
    with open_state(tmp_path / "state.json", "a"):
        with pytest.raises(FleetBusyError, match="another rollout holds"):
            with open_state(tmp_path / "state.json", "b"):
                pass
    with open_state(tmp_path / "state.json", "b"):
        pass


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ('{"schema": 1}', "rollout"),
        ('{"schema": 9, "rollout": "a"}', "schema 9"),
        ("[]", "remove it"),
    ],
)
def test_a_state_that_is_none_is_refused(text, words, tmp_path):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(FleetStateError, match=words):
        with open_state(tmp_path / "state.json", "a"):
            pass


def test_a_state_that_cannot_be_written_ends_the_rollout(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    flasher = fleets.ScriptedFlasher()
    with open_state(folder / "state.json", "a") as state:
        (folder / ".state.json.lock").unlink()
        folder.rmdir()
        folder.write_text("a file where the folder was")
        with pytest.raises(FleetStateError, match="cannot be written"):
            rolled(fleets.boards(20), flasher, parallel=2, state=state)
    assert len(flasher.flashed) <= 4


def test_the_first_interruption_waits_for_what_is_under_way(monkeypatch):
    """The board that is under way ends as it would; the others are not begun."""
    boards, flasher = fleets.boards(5), fleets.ScriptedFlasher()
    interrupted = threading.Event()
    flasher.during = lambda board: interrupted.wait(30)
    run = Rollout(boards, plan_waves([board.name for board in boards]), flasher, parallel=1)
    wait = run._wait

    def once(workers):
        if interrupted.is_set():
            return wait(workers)
        until(lambda: bool(flasher.flashed), "a board is under way")

        def join(seconds):
            interrupted.set()
            raise KeyboardInterrupt

        monkeypatch.setattr(workers[0], "join", join)
        wait(workers)
        monkeypatch.undo()

    monkeypatch.setattr(rollout_module.Rollout, "_wait", lambda self, workers: once(workers))
    report = run.run()
    assert report.outcome == "interrupted"
    assert report.exit_code == 130
    assert report.counts == {"done": 1, "not-begun": 4}


@pytest.mark.parametrize(
    ("error", "state"),
    [(fleets.WentBackError("no answers"), "rolled-back"), (fleets.BrokenError("the link broke"), "interrupted")],
)
def test_behind_an_interruption_a_board_that_went_back_is_told_from_one_whose_link_ended(error, state):
    flasher = fleets.ScriptedFlasher(errors={"board-000": error})
    run = Rollout(fleets.boards(1), plan_waves(["board-000"]), flasher)

    def interrupt(board):
        run._interrupted = True

    flasher.during = interrupt
    report = run.run()
    assert (states(report), report.outcome, report.exit_code) == ({"board-000": state}, "interrupted", 130)


def test_a_second_interruption_does_not_wait():
    flasher = fleets.ScriptedFlasher()
    release = threading.Event()
    flasher.during = lambda board: release.wait(30)
    run = Rollout(fleets.boards(2), plan_waves(["board-000", "board-001"]), flasher)

    class Interrupting:
        def join(self, seconds):
            raise KeyboardInterrupt

    run._wait([Interrupting()])
    with pytest.raises(KeyboardInterrupt):
        run._wait([Interrupting()])
    release.set()
