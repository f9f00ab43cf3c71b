"""Rehearsed failures of a flash: a line of the journal at which the board's worker is killed, or stops."""

from __future__ import annotations

import os
import signal

import pytest

from narrowcast.devices.flash.agent import jobs, journal
from narrowcast.devices.flash.agent.files import read_json
from narrowcast.devices.flash.board import layout_of
from narrowcast.devices.targets import DeployPaths


@pytest.fixture
def sent(monkeypatch):
    """Signals, by process or group; nobody gets them."""
    sent = []
    monkeypatch.setattr(journal.os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr(journal.os, "killpg", lambda group, number: sent.append((-group, number)))
    return sent


@pytest.mark.parametrize(("word", "number"), [("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)])
def test_a_drill_comes_once_and_where_it_was_meant(tmp_path, sent, word, number):
    noted = journal.Journal(tmp_path / "journal.jsonl", f"{word} gate begin")
    for step, state in (
        ("attempt", "begin"),
        ("gate", "begin"),
        ("attempt", "begin"),
        ("gate", "begin"),
        ("gate", "done"),
    ):
        noted.write(step, state)
        if (step, state) == ("attempt", "begin"):
            assert len(sent) == len(noted.entries()) // 2
    assert sent == [(os.getpid(), number)]


def test_whoever_goes_on_with_a_flash_may_rehearse_something_else(tmp_path, monkeypatch):
    layout = layout_of(str(tmp_path / "board"), DeployPaths())
    monkeypatch.setattr(jobs, "_launch", lambda *words: None)
    monkeypatch.setattr(jobs, "alive", lambda *words: False)
    monkeypatch.setattr(jobs, "LAUNCH_SECONDS", -1.0)
    job = {"id": "m-1-a", "services": "supervised", "by": "ann"}
    for drill in ("stop verify begin", "stop choose begin"):
        with pytest.raises(jobs.AgentError, match="does not start"):
            jobs.start(layout, {**job, "drill": drill})
        jobs.journal(layout, "m-1-a").write("verify", "begin")
        assert read_json(layout.jobs / "m-1-a" / "job.json")["drill"] == drill
    assert len(jobs.journal(layout, "m-1-a").entries()) == 2, "it goes on, and does not begin anew"
