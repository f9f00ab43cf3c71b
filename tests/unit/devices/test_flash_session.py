"""The board's end of a connection: who holds the lock, for how long, and what becomes of it when the other end has gone."""

from __future__ import annotations

import contextlib
import io
import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
from support.waiting import until

from narrowcast.devices.flash.agent import guard as guarding
from narrowcast.devices.flash.agent import jobs, locks
from narrowcast.devices.flash.agent.files import write_json
from narrowcast.devices.flash.agent.journal import END, Journal
from narrowcast.devices.flash.agent.locks import Lock, holder
from narrowcast.devices.flash.agent.session import Session
from narrowcast.devices.flash.agent.wire import Wire
from narrowcast.devices.flash.board import layout_of
from narrowcast.devices.flash.packing import agent_zip
from narrowcast.devices.targets import DeployPaths


class Link:
    """A session in a process of its own, as ssh starts it; its stdin stays open until somebody closes it."""

    def __init__(self, agent, layout, lost_seconds):
        code = (
            f"import sys; sys.path.insert(0, {str(agent)!r})\n"
            "from pathlib import Path\n"
            "from narrowcast.devices.flash.agent import session\n"
            f"session.LOST_SECONDS = {lost_seconds}\n"
            f"session.serve(Path({str(agent)!r}))"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-IS", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert "hostname" in self.ask("hello", layout=layout.as_dict())["ok"]

    def ask(self, op, **arguments):
        self.say(op, **arguments)
        return json.loads(self.process.stdout.readline())

    def say(self, op, **arguments):
        self.process.stdin.write(json.dumps({"op": op, **arguments}).encode() + b"\n")
        self.process.stdin.flush()


@pytest.fixture
def layout(tmp_path):
    return layout_of(str(tmp_path / "board"), DeployPaths())


@pytest.fixture
def link(tmp_path, layout):
    """Makes connections."""
    agent = tmp_path / "agent.pyz"
    agent.write_bytes(agent_zip())
    with contextlib.ExitStack() as ended:

        def connect(lost_seconds=600):
            made = Link(agent, layout, lost_seconds)
            ended.enter_context(made.process)
            ended.callback(made.process.kill)
            return made

        yield connect


def test_who_comes_back_over_another_connection_gets_the_lock_of_the_one_that_died(link, layout):
    """Its link died without a word: stdin stays open for hours."""
    first, second, other = link(), link(), link()
    assert first.ask("lock", by="ann@laptop", run="1234") == {"ok": False}
    assert other.ask("lock", by="ben@desk", run="5678")["error"]["kind"] == "BusyError"
    assert other.ask("lock", by="ben@desk")["error"]["kind"] == "BusyError"
    assert first.process.poll() is None
    assert second.ask("lock", by="ann@laptop", run="1234") == {"ok": False}
    assert first.process.wait(60) == 0, "it tidied up behind itself"
    assert f"process {second.process.pid})" in holder(layout.flash / "session.lock")


def test_who_says_nothing_for_too_long_loses_the_lock(link, layout):
    silent = link(1)
    assert silent.ask("lock", by="ann@laptop") == {"ok": False}
    until(lambda: holder(layout.flash / "session.lock") == "", "the lock is free", 60)
    assert silent.process.wait(60) == 0

    in_a_file = link(1)
    lock, size = {"op": "lock", "by": "ann@laptop"}, 1 << 20
    put = {"op": "put", "sha256": "0" * 64, "offset": 0, "bytes": size, "total": size}
    in_a_file.process.stdin.write(f"{json.dumps(lock)}\n{json.dumps(put)}\na few bytes".encode())
    in_a_file.process.stdin.flush()
    assert in_a_file.process.wait(60) == 0
    assert holder(layout.flash / "session.lock") == ""


def test_a_beat_wants_no_answer(link):
    beating = link()
    beating.say("beat")
    beating.say("beat")
    assert "no request 'what'" in beating.ask("what")["error"]["message"]


def test_a_worker_that_has_begun_needs_nobodys_connection(link, layout):
    """Its own locks keep others away; who asks for the same job is told that it is under way."""
    first, second = link(), link()
    first.ask("lock", by="ann@laptop", job="job-1")
    worker = Lock(layout.jobs / "job-1" / "guardian.lock", "ann@laptop")
    worker.take()
    assert first.ask("start", job={"id": "job-1"}) == {"ok": "running"}
    assert holder(layout.flash / "session.lock") == ""
    assert second.ask("lock", by="ben@desk", job="job-2")["error"]["message"].startswith("the board carries out job-1")
    second.process.stdin.close()
    second.process.wait(60)
    assert link().ask("lock", by="ann@laptop", job="job-1") == {"ok": True}
    Journal(layout.jobs / "job-1" / "journal.jsonl").write(END, "committed")
    assert not jobs.under_way(layout, "job-1"), "it has ended, and its guardian is on its way out"
    worker.release()


def test_a_session_is_not_ended_while_it_starts_a_worker(layout, tmp_path, monkeypatch):
    session = Session(Wire(io.BytesIO(), io.BytesIO()), tmp_path / "agent.pyz")

    def start(layout, job):
        session.hang_up(signal.SIGTERM)
        return "started"

    monkeypatch.setattr(jobs, "start", start)
    assert session._start({"job": {"id": "job-1"}}) == "started"
    with pytest.raises(EOFError):
        session.hang_up(signal.SIGTERM)


def test_a_guardian_waits_for_the_one_before_that_has_just_ended(layout, tmp_path, monkeypatch):
    place = layout.jobs / "job-2"
    place.mkdir(parents=True)
    write_json(place / "job.json", {"by": "ann@laptop"})
    Journal(place / "journal.jsonl").write(END, "committed")  # nothing is left to do for it
    before, waited = Lock(layout.flash / "work.lock", "ben@desk"), []
    before.take()
    monkeypatch.setattr(
        locks,
        "time",
        SimpleNamespace(monotonic=lambda: 0.0, time=lambda: 0.0, sleep=lambda s: waited.append(before.release())),
    )
    guarding.guard(tmp_path / "agent.pyz", place, json.dumps(layout.as_dict()))
    assert len(waited) == 1
