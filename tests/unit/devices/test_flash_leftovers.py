"""What failed flashes leave on a board."""

from __future__ import annotations

from narrowcast.devices.flash.agent import store
from narrowcast.devices.flash.agent.files import write_json
from narrowcast.devices.flash.agent.state import State


def names(folder):
    return {path.name for path in folder.iterdir()}


def carried_out(board, end, **changes):
    """A job that ended so."""
    job = board.job(**changes)
    assert board.carry_out(job)["state"] == end
    return job


def test_what_fails_again_and_again_does_not_fill_the_board(board):
    """The last failure keeps what is its own, so that it goes on; nothing of those before stays, but for what counts."""
    layout = board.layout
    first, second = (carried_out(board, "committed", number=number) for number in (5, 6))
    (layout.release("being-set-up") / "venv").mkdir(parents=True)
    store.append(layout, "0" * 64, 0, b"half a file", 1000)  # of a flash that never began
    carried_out(board, "failed", number=7, extra='wrong = "key"\n')
    (layout.envs / "wheels-8").mkdir(parents=True)
    gate = {"kind": "frames", "frames": 3, "seconds": 0.5}
    carried_out(board, "rolled-back", number=8, to="nowhere:1", gate=gate, env="wheels-8")
    assert names(layout.envs) == {"wheels-8"}
    last = carried_out(board, "failed", number=9, extra='wrong = "key"\n', env="wheels-9")
    assert names(layout.envs) == set()
    assert names(layout.releases) == {first["id"], second["id"], last["id"], "being-set-up"}
    assert names(layout.files) == {file["sha256"] for file in last["files"]}
    assert names(layout.jobs) == {last["id"]}
    assert (layout.running(), State(layout).previous) == (second["id"], first["id"])
    back = {**second, "id": f"rollback-{first['id']}", "kind": "rollback", "release": first["release"]}
    assert board.carry_out(back)["state"] == "committed", "the way back is there"


def test_what_lies_about_keeps_no_failed_job_from_its_end(board):
    board.layout.jobs.mkdir(parents=True)
    write_json(board.layout.jobs / "odd" / "job.json", {"release": "none"})
    assert board.carry_out(board.job(extra='wrong = "key"\n'))["kind"] == "EdgeConfigError"
