"""Whatever is killed at whatever moment of a flash: the board ends with a daemon that runs what ``current`` shows."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest
from support.local_board import LocalBoard
from support.waiting import until

from narrowcast.devices.flash.agent import jobs, report
from narrowcast.devices.flash.agent.errors import AgentError
from narrowcast.devices.flash.agent.state import State

# Between a step's end and the next one's begin nothing happens, and steps before the switch are alike: each begins anew over
# what is there. Behind it every step's end counts, and the begin of those that decide.
LINES = [
    ("attempt", "begin"), ("verify", "done"), ("install", "done"), ("switch", "begin"), ("switch", "done"),
    ("restart", "done"), ("gate", "done"), ("commit", "begin"), ("commit", "done"), ("tidy", "done"),
]  # fmt: skip
# What is on disk then differs: a release that is laid out, one that is pending, one that passed, one that counts.
DECISIVE = [("switch", "begin"), ("switch", "done"), ("gate", "done"), ("commit", "done")]


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A board that runs a release; every test flashes the next one."""
    made = LocalBoard(tmp_path_factory.mktemp("killed"))
    try:
        assert made.carry_out(made.job())["state"] == "committed"
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(("step", "state"), LINES)
def test_a_killed_worker_goes_on_and_commits(board, step, state):
    job = board.job(drill=f"kill {step} {state}")
    ended = board.carry_out(job)
    assert ended["state"] == "committed", ended
    attempts = sum(entry["step"] == "attempt" for entry in board.journal(job).entries())
    assert attempts == 2, "the drill killed the worker once"
    assert board.layout.running() == job["id"]
    until(board.runs_what_it_shows, "the new release runs")


@pytest.mark.parametrize(("step", "state"), [("rollback", "begin"), ("rollback", "done")])
def test_a_killed_way_back_ends_at_the_old_release(board, step, state):
    before = board.layout.running()
    gate = {"kind": "frames", "frames": 3, "seconds": 0.5}
    ended = board.carry_out(board.job(to="nowhere:1", gate=gate, drill=f"kill {step} {state}"))
    assert ended["state"] == "rolled-back", ended
    # A machine that is slow may not have started the daemon by then.
    assert any(words in ended["detail"] for words in ("0 of 3 frames were answered", "no status yet")), ended
    assert board.layout.running() == before
    until(board.runs_what_it_shows, "the old release runs")


def test_a_killed_guardian_leaves_no_room_for_another_flash(board):
    """Its worker holds the locks on, decides, and another flash is refused until then."""
    before = board.layout.running()
    job = board.job(to="nowhere:1", gate={"kind": "frames", "frames": 3, "seconds": 10.0})
    board.start(job)
    until(lambda: board.journal(job).has("gate", "begin"), "the gate waits")
    os.kill(json.loads((board.layout.jobs / job["id"] / "guardian.lock").read_bytes())["pid"], signal.SIGKILL)
    assert jobs.alive(board.layout, job["id"])
    with pytest.raises(AgentError, match="wait until it has ended"):
        jobs.check_free(board.layout, "another")
    board.wait_idle(job)
    assert board.journal(job).ended()["state"] == "rolled-back"
    assert board.layout.running() == before
    until(board.runs_what_it_shows, "the old release runs")


def test_what_runs_already_is_its_own_way_back(board):
    """The release that runs, flashed again while its server is away: the board is no worse than before."""
    job = board.job()
    assert board.carry_out(job)["state"] == "committed"
    previous = State(board.layout).previous
    board.services.stop()
    gate = {"kind": "frames", "frames": 10**6, "seconds": 0.2}
    ended = board.carry_out(board.job(number=board.number, gate=gate))
    assert (ended["state"], ended["release"]) == ("rolled-back", job["id"])
    assert board.layout.running() == job["id"]
    until(board.runs_what_it_shows, "it runs, as well as it can")
    assert board.carry_out(board.job(number=board.number))["state"] == "committed"
    assert State(board.layout).previous == previous, "a release is not the one before itself"


def test_a_disk_that_fills_up_behind_the_switch_is_no_obstacle_to_going_back(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path], check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    board = LocalBoard(tmp_path)
    try:
        assert board.carry_out(board.job())["state"] == "committed"
        before = board.layout.running()
        job = board.job(gate={"kind": "frames", "frames": 10**6, "seconds": 2.0})
        board.start(job)
        until(lambda: board.journal(job).has("gate", "begin"), "the gate waits")
        with pytest.raises(OSError, match="No space"), (tmp_path / "filler").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        board.wait_idle(job)
        assert board.journal(job).ended()["state"] == "rolled-back", board.worker_log(job)
        assert (board.layout.running(), State(board.layout).pending) == (before, None)
    finally:
        board.close()
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_another_flash_ends_the_one_that_was_never_confirmed(board):
    """Guardian and worker were killed at the gate: the next flash goes back first; the same once more begins anew."""
    before = board.layout.running()
    job = board.job(drill="halt gate begin")
    board.start(job)
    board.wait_idle(job)
    assert board.layout.running() == job["id"]
    assert report.status(board.layout, board.services)["previous"] == before, "where a rollback would go now"
    assert board.carry_out(board.job(extra='wrong = "key"\n'))["kind"] == "EdgeConfigError"
    assert board.layout.running() == before
    told = State(board.layout).history[0]
    assert (told["release"], told["outcome"]) == (job["id"], "rolled-back")
    again = board.job(number=board.number - 1)
    assert again["id"] == job["id"]
    assert board.carry_out(again)["state"] == "committed"


@pytest.mark.parametrize(("step", "state"), DECISIVE)
def test_a_power_cut_ends_in_the_old_release_or_the_new_one(board, step, state):
    before = board.layout.running()
    job = board.job(drill=f"halt {step} {state}")
    board.start(job)
    board.wait_idle(job)
    assert board.journal(job).ended() is None, "the drill ended worker and guardian"
    board.power_cut()
    assert board.layout.running() == (job["id"] if (step, state) == ("commit", "done") else before)
    until(board.runs_what_it_shows, "what current shows runs")
    assert board.carry_out({**job, "drill": ""})["state"] == "committed"
    assert board.layout.running() == job["id"]
    until(board.runs_what_it_shows, "the new release runs in the end")


@pytest.mark.parametrize("drill", ["switch done", "restart begin", "restart done"])
def test_a_power_cut_behind_the_first_switch_leaves_the_new_release_running(tmp_path, drill):
    """Nothing ran before that it could give way to."""
    board = LocalBoard(tmp_path)
    try:
        job = board.job(drill=f"halt {drill}")
        board.start(job)
        board.wait_idle(job)
        assert board.layout.running() == job["id"]
        board.power_cut()
        assert (board.layout.running(), State(board.layout).pending) == (job["id"], None)
        until(board.runs_what_it_shows, "the first release runs")
        assert board.carry_out({**job, "drill": ""})["state"] == "committed"
        until(board.runs_what_it_shows, "it runs on")
    finally:
        board.close()
