"""Whatever is killed at whatever moment of a flash: the board ends with a daemon that runs what ``current`` shows."""

from __future__ import annotations

import pytest
from support.local_board import LocalBoard
from support.waiting import until

PREPARING = ["environment", "verify", "choose", "selftest", "install"]
SWITCHING = ["switch", "restart", "gate", "commit", "tidy"]
LINES = [(step, state) for step in [*PREPARING, *SWITCHING] for state in ("begin", "done")]

DECISIVE = [
    ("verify", "done"), ("switch", "begin"), ("switch", "done"), ("restart", "done"), ("gate", "begin"), ("gate", "done"),
    ("commit", "done"), ("tidy", "begin"),
]  # fmt: skip


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


@pytest.mark.parametrize(("step", "state"), [("gate", "begin"), ("rollback", "begin"), ("rollback", "done")])
def test_a_killed_way_back_ends_at_the_old_release(board, step, state):
    before = board.layout.running()
    gate = {"kind": "frames", "frames": 3, "seconds": 0.5}
    ended = board.carry_out(board.job(to="nowhere:1", gate=gate, drill=f"kill {step} {state}"))
    assert ended["state"] == "rolled-back", ended
    assert "0 of 3 frames were answered" in ended["detail"]
    assert board.layout.running() == before
    until(board.runs_what_it_shows, "the old release runs")


@pytest.mark.parametrize(("step", "state"), DECISIVE)
def test_a_power_cut_ends_in_the_old_release_or_the_new_one(board, step, state):
    before = board.layout.running()
    job = board.job(drill=f"halt {step} {state}")
    board.start(job)
    board.wait_idle(job)
    assert board.journal(job).ended() is None, "the drill ended worker and guardian"
    board.power_cut()
    confirmed = (step, state) in {("commit", "done"), ("tidy", "begin"), ("tidy", "done")}
    assert board.layout.running() == (job["id"] if confirmed else before)
    until(board.runs_what_it_shows, "what current shows runs")
    assert board.carry_out({**job, "drill": ""})["state"] == "committed"
    assert board.layout.running() == job["id"]
    until(board.runs_what_it_shows, "the new release runs in the end")
