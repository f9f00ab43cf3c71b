"""The board's side of a flash, part by part: journal, state, locks, uploads, trust, environments, the check at boot."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import zipfile

import pytest
from support import bundles
from support.waiting import until

from narrowcast.devices.flash.agent import boot, jobs, locks, report, store, trust
from narrowcast.devices.flash.agent.errors import AgentError
from narrowcast.devices.flash.agent.files import point, read_json_of, write_json
from narrowcast.devices.flash.agent.journal import Journal
from narrowcast.devices.flash.agent.services import services_for
from narrowcast.devices.flash.agent.state import State
from narrowcast.devices.flash.board import layout_of
from narrowcast.devices.flash.packing import agent_zip
from narrowcast.devices.targets import DeployPaths
from narrowcast.transport.bundle import SecretKey


@pytest.fixture
def layout(tmp_path):
    return layout_of(str(tmp_path / "board"), DeployPaths())


def release(layout, name, **record):
    """A release's folder."""
    folder = layout.release(name)
    folder.mkdir(parents=True)
    write_json(folder / "release.json", {"id": name, "model": "m", "number": 1, "confirmed": True, **record})
    return name


def kind_of(caught):
    return caught.value.kind


# ---------------------------------------------------------------- the program


def test_the_agent_needs_python_alone(tmp_path):
    """Nothing of the project but the agent, no site-packages: every module of it is imported."""
    agent = tmp_path / "agent.pyz"
    agent.write_bytes(agent_zip())
    assert agent_zip() == agent_zip.__wrapped__(), "the same sources give the same bytes"
    names = [name.removesuffix(".py").replace("/", ".") for name in zipfile.ZipFile(agent).namelist()]
    modules = [name for name in names if "." in name and "__" not in name]
    assert len(modules) > 15
    code = f"import sys; sys.path.insert(0, {str(agent)!r})\n" + "\n".join(f"import {name}" for name in modules)
    done = subprocess.run([sys.executable, "-IS", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([sys.executable, "-IS", agent, "what"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "session | guard" in done.stderr


# ---------------------------------------------------------------- journal


def test_a_journal_forgets_the_half_line_that_a_power_cut_left(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write("verify", "begin")
    with journal.path.open("ab") as file:
        file.write(b'{"step": "verify", "state": "do')
    assert [entry["state"] for entry in journal.entries()] == ["begin"]
    journal.write("verify", "failed", "again")
    assert [entry["state"] for entry in journal.entries()] == ["begin", "failed"]
    assert journal.ended() is None


@pytest.mark.parametrize("junk", [b"", b"\0\0\0\n", b"[1]\n", b'{"step": 1, "state": "x"}\n', b"\xff\n"])
def test_what_is_no_line_of_a_journal_is_left_out(tmp_path, junk):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.path.write_bytes(junk)
    assert journal.entries() == []
    journal.write("end", "committed")
    assert journal.ended()["state"] == "committed"


# ---------------------------------------------------------------- state


def test_state_goes_forward_and_back(layout):
    old, new = release(layout, "m-1-a"), release(layout, "m-2-b")
    state = State(layout)
    state.begin(old, "job-1")
    state.confirm({"model": "m", "number": 1}, downgrade=False)
    assert (layout.running(), State(layout).previous, State(layout).highest) == (old, None, {"m": 1})
    State(layout).begin(new, "job-2")
    again = State(layout)
    again.begin(new, "job-2")  # after a kill: what was before is not forgotten
    assert State(layout).pending["previous"] == old
    assert State(layout).go_back("no answers", lambda folder: None) == old
    assert (layout.running(), State(layout).pending) == (old, None)
    assert State(layout).history[0] == {**State(layout).history[0], "outcome": "rolled-back", "reason": "no answers"}


def test_a_damaged_state_file_is_as_none(layout):
    layout.flash.mkdir(parents=True)
    (layout.flash / "state.json").write_text("{")
    assert State(layout).pending is None


def test_at_boot_what_nobody_confirmed_gives_way(layout):
    old, new = release(layout, "m-1-a"), release(layout, "m-2-b")
    agent = layout.flash / "agent.pyz"
    write_json(layout.flash / "layout.json", layout.as_dict())
    state = State(layout)
    state.begin(old, "job-1")
    state.pending["boot"] = "another"
    state.save()
    boot.boot(agent)  # nothing ran before: it stays
    assert (layout.running(), State(layout).pending, State(layout).history[0]["outcome"]) == (old, None, "kept")
    assert State(layout).highest == {"m": 1}, "it runs: what is older is a downgrade"
    State(layout).begin(new, "job-2")
    boot.boot(agent)  # the same start of the machine: the flash is still at it
    assert layout.running() == new
    state = State(layout)
    state.pending["boot"] = "another"
    state.save()
    boot.boot(agent)
    assert (layout.running(), State(layout).pending) == (old, None)


@pytest.mark.parametrize("kind", ["pipe", "link", "giant", "deep"])
def test_a_status_file_cannot_hold_root_up_or_lead_it_elsewhere(layout, tmp_path, kind):
    path = layout.daemon_status
    path.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(path)  # opened as a file it would wait for who writes
    elif kind == "link":
        write_json(tmp_path / "secret.json", {"ready": True})
        path.symlink_to(tmp_path / "secret.json")
    else:
        path.write_text('{"ready": "' + "x" * (1 << 20) + '"}' if kind == "giant" else "[" * 100_000)
    assert read_json_of(path) is None
    assert report.status(layout, services_for(layout, "supervised"))["daemon"] is None


def test_at_boot_a_way_back_that_the_power_cut_short_is_over(layout):
    """So that the same flash once more is a new one, and does not tell the old one's end."""
    old = release(layout, "m-1-a")
    point(layout.current, layout.point_to(old))
    agent = layout.flash / "agent.pyz"
    write_json(layout.flash / "layout.json", layout.as_dict())
    for name, states in (("job-1", []), ("job-2", ["begin"]), ("job-3", ["begin", "done"])):
        place = layout.jobs / name
        place.mkdir(parents=True)
        journal = Journal(place / "journal.jsonl")
        journal.write("switch", "done")
        for state in states:
            journal.write("rollback", state)
    boot.boot(agent)
    ends = [jobs.journal(layout, name).ended() for name in ("job-1", "job-2", "job-3")]
    assert ends[0] is None
    assert [(end["state"], end["release"]) for end in ends[1:]] == [("rolled-back", old)] * 2


# ---------------------------------------------------------------- locks


def test_a_lock_names_who_has_it_and_ends_with_its_process(layout):
    path = layout.flash / "x.lock"
    lock = locks.Lock(path, "anna@desk")
    lock.take()
    with pytest.raises(AgentError, match=r"flashed by anna@desk \(since") as caught:
        locks.Lock(path, "ben@desk").take()
    assert kind_of(caught) == "BusyError"
    lock.release()
    assert locks.holder(path) == ""
    assert locks.holder(path.with_name("none")) == ""


def test_a_lock_says_what_for(layout):
    path = layout.flash / "session.lock"
    lock = locks.Lock(path, "ann@laptop", "profiled")
    lock.take()
    assert locks.holder(path).startswith("ann@laptop (profiled since ")
    with pytest.raises(AgentError, match=r"is being profiled by ann@laptop \(.*wait until that has ended"):
        locks.Lock(path, "ben@desk").take()
    lock.release()


def test_who_looks_at_a_lock_for_ever_holds_it(layout, monkeypatch):
    path = layout.flash / "x.lock"
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setattr(locks, "LOOKS_SECONDS", 0.0)
    with path.open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        with pytest.raises(AgentError, match="by somebody"):
            locks.Lock(path, "ann@laptop").take()


# ---------------------------------------------------------------- uploads


def test_who_only_looks_keeps_nobody_from_taking_a_lock(layout, monkeypatch):
    """As ``flash status`` does, or who waits for the worker, at the moment at which the worker begins."""
    path = layout.flash / "work.lock"
    path.parent.mkdir(parents=True)
    path.touch()
    looking = os.open(path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: os.close(looking))
    lock = locks.Lock(path, "ann@laptop")
    lock.take()
    assert locks.holder(path).startswith("ann@laptop (since ")
    lock.release()


def test_uploads_go_on_and_count_only_when_they_are_whole(layout):
    data = os.urandom(1000)
    name = hashlib.sha256(data).hexdigest()
    file = {"sha256": name, "bytes": len(data)}
    assert store.want(layout, [file], locked=True) == [0]
    assert store.append(layout, name, 0, data[:400], 1000) == 400
    assert store.want(layout, [file], locked=True) == [400]
    with pytest.raises(AgentError, match="only 400 are here") as caught:
        store.append(layout, name, 500, data[500:], 1000)
    assert kind_of(caught) == "UploadError"
    assert store.append(layout, name, 300, data[300:], 1000) == 1000  # some of it once more does no harm
    assert store.want(layout, [file], locked=True) == [1000]
    assert store.file_of(layout, name).read_bytes() == data
    assert store.file_of(layout, name).stat().st_mode & 0o777 == 0o600


def test_an_upload_with_other_bytes_is_thrown_away(layout):
    name = hashlib.sha256(b"good").hexdigest()
    with pytest.raises(AgentError, match="SHA-256 differs") as caught:
        store.append(layout, name, 0, b"evil", 4)
    assert kind_of(caught) == "UploadError"
    assert store.want(layout, [{"sha256": name, "bytes": 4}], locked=True) == [0]
    with pytest.raises(AgentError, match="is no SHA-256"):
        store.append(layout, "../../etc/passwd", 0, b"", 0)


@pytest.mark.parametrize(("left", "here"), [(b"good", 4), (b"evil", 0), (b"good and more", 0)])
def test_what_a_power_cut_left_behind_the_last_byte_is_kept_or_sent_again(layout, left, here):
    """All bytes were on disk, under the name that they have until then."""
    name = hashlib.sha256(b"good").hexdigest()
    file, partial = {"sha256": name, "bytes": 4}, store.file_of(layout, name).with_suffix(".part")
    layout.files.mkdir(parents=True)
    partial.write_bytes(left)
    assert store.want(layout, [file], locked=False) == [here]
    assert partial.exists(), "somebody else may be at it"
    assert store.want(layout, [file], locked=True) == [here]
    assert (store.file_of(layout, name).exists(), partial.exists()) == (here == 4, False)


def test_what_does_not_fit_on_the_disk_is_told_before_it_is_sent(layout):
    with pytest.raises(AgentError, match="free some space") as caught:
        store.want(layout, [{"sha256": "0" * 64, "bytes": 1 << 60}], locked=True)
    assert kind_of(caught) == "DiskSpaceError"
    assert store.explain(OSError(28, "No space left on device", "/x"))[0] == "DiskSpaceError"
    assert "read-only" in store.explain(OSError(30, "Read-only file system"))[1]


# ---------------------------------------------------------------- trust


def test_trust_grows_and_never_ends_empty_or_without_what_runs(layout):
    first, second = bundles.trusted_key(), SecretKey.new("second").public
    assert trust.change_trust(layout, first.line, "") == [{"id": first.id, "name": "test"}]
    trust.enrol(layout, first.line)
    assert len(layout.trusted.read_text().splitlines()) == 1
    with pytest.raises(AgentError, match="only key"):
        trust.change_trust(layout, "", first.id)
    trust.change_trust(layout, second.line, "")
    name = release(layout, "m-1-a", signed_by=f"{first.id} test")
    point(layout.current, layout.point_to(name))
    with pytest.raises(AgentError, match="which runs, is signed with"):
        trust.change_trust(layout, "", first.id)
    with pytest.raises(AgentError, match="trusts no key 'beef'"):
        trust.change_trust(layout, "", "beef")
    assert [key["name"] for key in trust.change_trust(layout, "", second.id)] == ["test"]
    for line in ("", "hello", "narrowcast-ed25519-secret AAAA x", "narrowcast-ed25519-public AAAA x"):
        with pytest.raises(AgentError, match="is no public key") as caught:
            trust.change_trust(layout, line or "x", "")
    assert kind_of(caught) == "BoardVerifyError"


# ---------------------------------------------------------------- jobs on a board


SYSTEMD_RUN = """#!/bin/sh
for word; do echo "$word" >>{folder}/words; done
echo '{{"step": "end", "state": "committed"}}' >{folder}/{odd}/flash/jobs/m-1-a/journal.jsonl
"""


def test_no_word_of_a_path_is_a_variable_of_systemds(tmp_path, monkeypatch):
    odd = "a $HOME ${USER}%n"
    layout = layout_of(str(tmp_path / odd), DeployPaths())
    program = tmp_path / "systemd-run"
    program.write_text(SYSTEMD_RUN.format(folder=tmp_path, odd=odd.replace("$", "\\$").replace(" ", "\\ ")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert jobs.start(layout, {"id": "m-1-a", "services": "systemd", "by": "ann"}) == "started"
    words = (tmp_path / "words").read_text().splitlines()
    told = words[words.index(sys.executable) :]
    assert told[2] == f"{tmp_path}/a $$HOME $${{USER}}%n/flash/agent.pyz"
    assert [word for word in told if "$" in word.replace("$$", "")] == []


def test_what_a_board_refuses_before_the_switch_leaves_what_runs_alone(board):
    assert board.carry_out(board.job(number=5))["state"] == "committed"
    pid = board.services.state().pid
    announced = {"id": "tiny-9-x", "model": "tiny", "number": 10}
    refused = {
        "EdgeConfigError": {"number": 6, "extra": 'wrong = "key"\n'},
        "DowngradeError": {"number": 1},
        "BoardVerifyError": {"number": 9, "release": announced},
        "RuntimeSetupError": {"number": 11, "environment": "/no/such/environment"},
    }
    for kind, changes in refused.items():
        ended = board.carry_out(board.job(**changes))
        assert (ended["state"], ended["kind"]) == ("failed", kind), ended
    assert board.services.state().pid == pid
    status = report.status(board.layout, board.services)
    assert status["pending"] is None
    assert status["current"]["number"] == 5


def test_old_releases_go_and_a_daemon_that_is_killed_comes_back(board):
    for _ in range(3):
        assert board.carry_out({**board.job(), "keep": 2})["state"] == "committed"
    assert len(report.releases(board.layout)) == 2
    assert State(board.layout).previous in report.releases(board.layout)
    seen = board.services.state()
    os.kill(seen.pid, 9)
    until(lambda: board.services.state().restarts == 1 and board.answering() == 3, "the daemon runs again")
    assert not jobs.alive(board.layout, "none-of-them")
    board.services.stop()
    assert not board.services.state().active
    assert json.loads((board.layout.flash / "layout.json").read_text()) == board.layout.as_dict()


def test_what_was_set_up_by_hand_is_taken_over_and_found_again(board):
    layout = board.layout
    layout.current.mkdir(parents=True)
    with pytest.raises(AgentError, match="was made by hand: mkdir -p") as caught:
        jobs.check_current(layout)
    assert kind_of(caught) == "PreflightError"
    layout.releases.mkdir()
    layout.current.rename(layout.releases / "by-hand")
    layout.current.symlink_to("releases/by-hand")
    jobs.check_current(layout)
    (layout.release("by-hand") / "venv").symlink_to(board.environment)
    bundles.make(release=1).write(layout.release("by-hand") / "model.ncb")
    tls = layout.edge.with_name("tls")
    tls.mkdir(parents=True)
    (tls / "tls.key").write_text("secret")
    layout.edge.write_text(f'to = "127.0.0.1:1"\nbundle = "{layout.current}/model.ncb"\n')
    # A configuration that does not hold leaves all of it where it was.
    assert board.carry_out(board.job(number=2, extra='wrong = "key"\n'))["kind"] == "EdgeConfigError"
    assert not layout.edge.is_symlink()
    assert not tls.is_symlink()
    job = board.job(number=2)
    assert board.carry_out(job)["state"] == "committed"
    assert (layout.release(job["id"]) / "tls" / "tls.key").read_text() == "secret"
    assert layout.edge.is_symlink()
    back = {**job, "id": "rollback-by-hand", "kind": "rollback", "release": {"id": "by-hand"}}
    assert board.carry_out(back)["state"] == "committed"
    assert (layout.edge.read_text().splitlines()[0], (tls / "tls.key").read_text()) == ('to = "127.0.0.1:1"', "secret")
    until(lambda: board.answering() == 1, "what was set up by hand runs again")


def test_the_agent_keeps_keys_as_narrowcast_writes_them():
    key = bundles.trusted_key()
    assert trust.identity(key.line) == key.id
    assert base64.b64decode(key.line.split()[1]) == key.raw
