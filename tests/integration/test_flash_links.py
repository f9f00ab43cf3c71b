"""Connections to boards: host keys, two at once, links that break, full disks, and the command line; over a real sshd."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support import bundles, sshd, standin
from support.flashed import OTHER, Board, Watching
from support.fleet import Fleet
from support.waiting import until

from narrowcast.cli import main
from narrowcast.devices.flash import Connection, rollback, status, trust
from narrowcast.devices.flash import flashing as flashing_module
from narrowcast.devices.flash import session as session_module
from narrowcast.devices.flash import ssh as ssh_module
from narrowcast.devices.flash.agent.state import State
from narrowcast.devices.flash.destination import Destination
from narrowcast.devices.flash.errors import (
    BoardUnreachableError,
    BoardVerifyError,
    BusyError,
    DeclinedError,
    DiskSpaceError,
    HostKeyError,
    LoginError,
    PreflightError,
    RolledBackError,
)
from narrowcast.devices.flash.ssh import Ssh
from narrowcast.transport.errors import UnsignedBundleError


@pytest.fixture
def ssh(tmp_path):
    """An sshd of the test's own, since tests break its connections."""
    (tmp_path / "ssh").mkdir()
    with sshd.running(tmp_path / "ssh") as server:
        yield server


@pytest.fixture
def board(tmp_path, ssh):
    """A board with a stand-in environment."""
    made = Board(tmp_path / "flashed", ssh, "127.0.0.1:1", environment=str(standin.make(tmp_path / "standin")))
    made.options = dataclasses.replace(made.options, settings={}, source="frames/", link_check=False)
    try:
        yield made
    finally:
        made.close()


def with_connection(board, **changes):
    """The options with another connection."""
    return {"connection": dataclasses.replace(board.options.connection, **changes)}


def test_an_unknown_host_key_is_shown_and_must_be_accepted(board, ssh):
    with pytest.raises(HostKeyError, match=re.escape(f"ED25519 {ssh.fingerprint}")) as caught:
        board.flash(1, **with_connection(board, accept_host_key=""))
    assert caught.value.fingerprint == ssh.fingerprint
    with pytest.raises(HostKeyError, match="not SHA256:other"):
        board.flash(1, **with_connection(board, accept_host_key="SHA256:other"))
    assert not ssh.known_hosts.exists()
    # A declined plan and a dry run leave nothing but the host key, here.
    with pytest.raises(DeclinedError):
        board.flash(1, observer=Watching(agree=False))
    assert board.flash(1, dry_run=True).outcome == "planned"
    assert not board.prefix.exists()
    assert len(ssh.known_hosts.read_text().splitlines()) == 1
    other = (ssh.folder / "user.pub").read_text().split()
    ssh.known_hosts.write_text(f"[127.0.0.1]:{ssh.port} {other[0]} {other[1]}\n")
    with pytest.raises(HostKeyError, match="another host key than before"):
        board.flash(1)


def test_who_is_not_let_in_or_finds_nobody_is_told(board, ssh):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ssh.folder / "stranger"], check=True)
    (ssh.folder / "authorized_keys").write_text((ssh.folder / "stranger.pub").read_text())
    with pytest.raises(LoginError, match="does not let us in"):
        board.flash(1)
    ssh.stop()
    with pytest.raises(BoardUnreachableError, match="Connection refused") as caught:
        board.flash(1)
    assert caught.value.exit_code == 4


def test_a_connection_whose_owner_was_killed_does_not_stay(board, monkeypatch):
    monkeypatch.setattr(ssh_module, "PERSIST_SECONDS", 1)
    killed = Ssh(Destination.parse("board"), board.options.connection)
    killed.check_host(Watching().accept_host)
    killed.open()
    assert killed.control.is_socket()
    until(lambda: not killed.control.exists(), "ssh has closed it by itself")
    assert killed.control.parent.name == f"nc-{os.getuid()}", "no folder of its own stays behind"
    monkeypatch.setattr(ssh_module, "PERSIST_SECONDS", 60)
    with Ssh(Destination.parse("board"), board.options.connection) as asked:
        asked.open()
        assert asked.call("echo here") == b"here\n"
    assert not asked.control.exists()


def test_sockets_lie_in_no_folder_of_somebody_elses(tmp_path, monkeypatch):
    monkeypatch.setattr(ssh_module, "Path", lambda text: tmp_path if text == "/tmp" else Path(text))
    shared, passing = ssh_module._private_folder()
    assert (shared, passing) == (tmp_path / f"nc-{os.getuid()}", False)
    assert shared.stat().st_mode & 0o777 == 0o700
    shared.chmod(0o777)
    with Ssh(Destination.parse("board"), Connection(ssh="true")) as ours:
        assert ours.control.parent not in (shared, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [shared.name]


def test_of_two_at_once_the_second_is_told_of_the_first(board):
    held, go_on, ended = threading.Event(), threading.Event(), []

    class Slow(Watching):
        def step(self, name, state, detail):
            if (name, state) == ("upload", "begin"):
                held.set()
                assert go_on.wait(60)

    first = threading.Thread(target=lambda: ended.append(board.flash(1, observer=Slow())))
    first.start()
    assert held.wait(60)
    try:
        with pytest.raises(BusyError, match=r"is being flashed by .*@.* \(since .*, process \d+\)"):
            board.flash(2)
        assert status("board", **board.place).flashing is not None
    finally:
        go_on.set()
        first.join(60)
    assert ended[0].outcome == "committed"


def test_a_link_that_breaks_while_files_are_sent_goes_on_where_it_stopped(board, ssh, monkeypatch):
    monkeypatch.setattr(session_module, "PIECE_BYTES", 512)

    class Breaking(Watching):
        broken = False

        def progress(self, name, done_bytes, total_bytes):
            if not self.broken and name == "model.ncb" and done_bytes >= 1024:
                self.broken = True
                ssh.stop()
                ssh.start()

    clock = "the board's clock is wrong"
    monkeypatch.setattr(flashing_module, "check_board", lambda *board: [clock])
    observer = Breaking()
    report = board.flash(1, observer=observer)
    assert observer.broken
    assert any("broke" in note for note in observer.notes)
    assert len(observer.plans) == 1, "nobody is asked twice"
    sent = sum(size for _, size in observer.plans[0].upload_files)
    assert sent <= report.uploaded_bytes <= sent + 512, "only what was under way was sent again"
    names = [step.name for step in report.steps]
    assert len(set(names)) == len(names), "each step is told once"
    assert report.notes == [clock, report.notes[1], *observer.notes], "what is known of the board is told once too"
    assert "does not reach 127.0.0.1:1" in report.notes[1]
    assert board.answering() == 1


def test_a_link_that_dies_without_a_word_is_made_anew(board, ssh, monkeypatch):
    """The board knows nothing of it: the session there still waits for more, with the board's lock."""
    monkeypatch.setattr(session_module, "PIECE_BYTES", 512)

    class Dying(Watching):
        dead = False

        def progress(self, name, done_bytes, total_bytes):
            if not self.dead and name == "model.ncb" and done_bytes >= 1024:
                self.dead = True
                ssh.freeze()

    observer = Dying()
    noticing = ("ServerAliveInterval=1", "ServerAliveCountMax=2")  # of two, ssh takes the first
    report = board.flash(1, observer=observer, **with_connection(board, options=noticing))
    assert observer.dead
    assert report.outcome == "committed"
    assert any("trying again" in note for note in observer.notes)


def test_a_link_that_breaks_later_stops_nothing(board, ssh):
    class Breaking(Watching):
        def step(self, name, state, detail):
            super().step(name, state, detail)
            if (name, state) == ("verify", "done"):
                ssh.stop()
                until(lambda: board.answering() == 1, "the board goes on by itself")
                back = threading.Timer(0, lambda: until(lambda: len(self.notes) > 1, "a try failed") or ssh.start())
                back.start()

    observer = Breaking()
    assert board.flash(1, observer=observer).outcome == "committed"
    assert observer.steps.count(("commit", "done")) == 1


def test_a_rollback_goes_on_over_a_new_connection(board, ssh, monkeypatch):
    """The board may have gone back by then: over the new one nothing is begun, and nothing goes forward again."""

    class Breaking(Watching):
        def step(self, name, state, detail):
            super().step(name, state, detail)
            if (name, state) == ("gate", "begin"):
                ssh.stop()
                until(lambda: State(board.layout).pending is None, "the board goes on by itself")
                ssh.start()

    first, second = board.flash(1), board.flash(2)
    observer = Breaking()
    back = rollback("board", options=board.options, observer=observer)
    assert (back.outcome, back.release, back.previous) == ("committed", first.release, second.release)
    assert any("broke" in note for note in back.notes)
    assert observer.steps.count(("commit", "done")) == 1
    assert status("board", **board.place).went_back == second.release

    # Not even where the answer to the order to begin was lost.
    call, broken = session_module.Session.call, []

    def breaking(session, op, **arguments):
        answer = call(session, op, **arguments)
        if op == "start" and not broken:
            broken.append(op)
            until(lambda: State(board.layout).pending is None and board.answering() == 2, "it went")
            raise session_module.LinkLostError("the connection broke")
        return answer

    monkeypatch.setattr(session_module.Session, "call", breaking)
    back = rollback("board", options=board.options)
    assert broken
    assert (back.outcome, back.release, back.previous) == ("committed", second.release, first.release)


def test_a_rollback_that_nobody_listens_to_any_more_is_found_again(board):
    class Leaving(Watching):
        def step(self, name, state, detail):
            if (name, state) == ("gate", "begin"):
                raise KeyboardInterrupt

    first, second = board.flash(1), board.flash(2)
    observer = Leaving()
    with pytest.raises(KeyboardInterrupt):
        rollback("board", options=dataclasses.replace(board.options, drill="stop gate begin"), observer=observer)
    assert any("goes on by itself" in note for note in observer.notes)
    guardian = json.loads((board.layout.flash / "work.lock").read_bytes())["pid"]
    (worker,) = subprocess.run(
        ["pgrep", "-P", str(guardian)], capture_output=True, text=True, check=True
    ).stdout.split()

    class Waking(Watching):
        def step(self, name, state, detail):
            if (name, state) == ("gate", "begin"):
                os.kill(int(worker), signal.SIGCONT)

    back = rollback("board", options=board.options, observer=Waking())
    assert (back.outcome, back.release, back.previous) == ("committed", first.release, second.release)
    again = rollback("board", options=board.options, once=True)
    assert (again.outcome, again.release) == ("unchanged", first.release)
    observer = Watching()
    assert rollback("board", options=board.options, observer=observer).release == second.release
    assert [note for note in observer.notes if "takes it there again" in note]


def test_a_full_disk_is_told_and_a_later_flash_goes_on(board, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    board.prefix.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", board.prefix], check=False)
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    filler = board.prefix / "filler"

    class Filling(Watching):
        def confirm(self, plan):
            with pytest.raises(OSError, match="No space"), filler.open("wb") as file:
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()
            return True

    try:
        board.flash(1)
        with pytest.raises(DiskSpaceError, match="full|free"):
            board.flash(2, observer=Filling())
        assert board.answering() == 1
        with pytest.raises(DiskSpaceError, match="free some space"):  # told before anything is sent
            board.flash(2)
        filler.unlink()
        assert board.flash(2).outcome == "committed"
        assert board.answering() == 2
    finally:
        board.close()
        subprocess.run(["umount", "--lazy", board.prefix], check=True)


def test_the_command_line(board, tmp_path, ssh, capsys, monkeypatch):
    model, key = bundles.make(release=1).write(tmp_path / "m.ncb"), tmp_path / "key.pub"
    bundles.trusted_key().write(key)
    python = ["--python", sys.executable]
    place = [
        *python,
        "--prefix",
        str(board.prefix),
        "--ssh-config",
        str(ssh.config),
        "--accept-host-key",
        ssh.fingerprint,
    ]
    words = [
        str(model),
        "board",
        "--target",
        "x86-64",
        "--environment",
        board.options.environment,
        "--trust",
        str(key),
        *place,
    ]
    contents = ["--to", "127.0.0.1:1", "--source", "frames/", "--no-link-check"]

    assert main(["flash", *words, *contents]) == 2
    assert "--yes carries it out" in capsys.readouterr().err
    assert main(["flash", *words, *contents, "--dry-run", "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "the board trusts nobody yet" in shown
    assert "checks verify" in shown
    assert main(["flash", *words, *contents, "--yes", "--json", "--quiet"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["outcome"], report["number"]) == ("committed", 1)
    assert main(["flash", "status", "board", *place]) == 0
    assert report["release"] in capsys.readouterr().out
    assert main(["flash", "status", "board", *place, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["daemon"]["model"]["release"] == 1

    bundles.make(release=2).write(model)
    OTHER.public.write(tmp_path / "other.pub")
    assert main(["keys", "enrol", "board", *place, "--key", str(tmp_path / "other.pub")]) == 2
    assert main(["keys", "enrol", "board", *place, "--key", str(tmp_path / "other.pub"), "--yes", "--json"]) == 0
    assert [key["name"] for key in json.loads(capsys.readouterr().out)] == ["test", "other"]
    assert main(["keys", "enrol", "board", *place, "--withdraw", "feed", "--yes"]) == 3
    assert "trusts no key 'feed'" in capsys.readouterr().err

    unanswered = ["--to", "nowhere:1", "--no-link-check", "--gate-seconds", "1"]
    assert main(["flash", *words, *unanswered, "--yes", "--json", "--quiet"]) == 5
    told = capsys.readouterr()
    assert json.loads(told.out)["outcome"] == "rolled-back"
    assert "went back" in told.err
    assert main(["flash", "rollback", "board", *place]) == 1
    assert "no release to go back to" in capsys.readouterr().err
    assert main(["flash", "logs", "board", *place, "--lines", "5"]) == 0
    assert main(["flash", "status", "two words", *place]) == 2


def test_certificates_and_keys_are_enrolled_and_kept(board, tmp_path):
    folder = Fleet(tmp_path).board("board-7")
    board.flash(1, tls=folder)
    there = board.layout.current / "tls"
    assert {path.name: path.stat().st_mode & 0o777 for path in there.iterdir()} == dict.fromkeys(
        ("tls.crt", "tls.key", "ca.crt"), 0o600
    )
    assert board.flash(1).outcome == "unchanged", "what was not said again is as it was"
    assert board.flash(1, to="", source="").outcome == "unchanged"
    assert 'dir = "' + board.layout.config + '/tls"' in (board.layout.current / "edge.toml").read_text()
    assert [key["name"] for key in trust("board", add=OTHER.public, **board.place)] == ["test", "other"]
    with pytest.raises(BoardVerifyError, match="flash one of the new key first"):
        trust("board", remove=bundles.trusted_key().id, **board.place)
    board.flash(2, key=OTHER)
    assert (board.layout.current / "tls" / "tls.key").read_bytes() == (folder / "tls.key").read_bytes()
    assert [key["name"] for key in trust("board", remove=bundles.trusted_key().id, **board.place)] == ["other"]
    with pytest.raises(BoardVerifyError, match="only key"):
        trust("board", remove=OTHER.public.id, **board.place)


def test_an_unsigned_bundle_goes_out_only_where_that_was_said(board):
    with pytest.raises(UnsignedBundleError):
        board.flash(1, key=None)
    observer = Watching()
    assert board.flash(1, key=None, allow_unsigned=True, observer=observer).outcome == "committed"
    assert observer.plans[0].signed_by == "nobody"
    assert not board.layout.trusted.exists()
    assert "allow_unsigned = true" in (board.layout.current / "edge.toml").read_text()


def test_a_user_that_nobody_can_become_is_refused_before_anything_is_sent(board):
    with pytest.raises(PreflightError, match="--user camera wants systemd"):
        board.flash(1, user="camera")
    assert not board.prefix.exists()


def test_a_daemon_that_ends_at_once_is_taken_back_without_waiting(board):
    board.flash(1)
    with pytest.raises(RolledBackError, match="it is broken"):
        board.flash(2, to="broken:1", gate_seconds=600.0)
    until(lambda: board.answering() == 1, "release 1 runs again")
