"""One compilation at a time in a run's folder."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.training import Notes
from support.waiting import until

from narrowcast.compiler.turns import LOCK, alone_in

HOLDER = """
import sys
from pathlib import Path
from narrowcast.compiler.turns import alone_in
with alone_in(Path(sys.argv[1])):
    Path(sys.argv[1], "in").touch()
    sys.stdin.read()
    Path(sys.argv[1], "made").touch()
"""


def test_a_second_one_waits_and_finds_what_the_first_has_made(tmp_path):
    run, notes = tmp_path / "run", list[str]()
    first = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdin=subprocess.PIPE)
    until((run / "in").exists, "the first is in", 60)

    class Told(Notes):
        def __init__(self):
            self.note = self.told

        def told(self, line):
            notes.append(line)
            assert not (run / "made").exists()
            first.stdin.close()  # now it may end

    with alone_in(run, Told()):
        assert (run / "made").exists()
    assert notes == [f"another compilation is at {run}: waiting for it"]
    assert first.wait(60) == 0


def test_whoever_was_killed_is_not_waited_for(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE)
    until((tmp_path / "in").exists, "it is in", 60)
    first.kill()
    first.wait(60)
    notes: list[str] = []
    with alone_in(tmp_path, Notes(notes)):
        assert notes == []


def test_a_folder_without_locks_makes_nobody_wait(tmp_path, monkeypatch):
    import fcntl

    def none(*_):
        raise OSError("no locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with alone_in(tmp_path), alone_in(tmp_path):
        assert (tmp_path / LOCK).exists()


def test_an_error_inside_lets_go(tmp_path):
    notes: list[str] = []
    with pytest.raises(ValueError, match="inside"), alone_in(tmp_path):
        raise ValueError("inside")
    with alone_in(tmp_path, Notes(notes)):
        assert notes == []
