"""The profile of ``narrowcast deploy``: a board measures itself, over a real sshd, and a real server answers it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import bundles, sshd
from support.server import serving
from support.waiting import until

from narrowcast.cli import main
from narrowcast.deploy import measure
from narrowcast.deploy.errors import ProfileOnBoardError, ReportError
from narrowcast.deploy.measure import check_runs, make_report, profile_on_board, profile_words
from narrowcast.devices.flash import FlashOptions, Observer, trust
from narrowcast.devices.flash.agent.locks import Lock
from narrowcast.devices.flash.board import layout_of
from narrowcast.devices.flash.errors import BusyError
from narrowcast.devices.flash.release import describe
from narrowcast.devices.targets import DeployPaths
from narrowcast.transport.bundle import Bundle

OWN_TARGET = """
name = "mine"
title = "a board of mine"
architecture = "x86_64"
os = ["Debian 12"]
python = ["3.11"]
backends = ["onnxruntime"]
precisions = ["fp32"]
sources = ["its manual"]
clocks = {{ show = ["a"], fix = ["b"], release = ["c"] }}
paths.program = "{program}"
"""


def opened(folder: Path) -> Bundle:
    """What the board of :func:`measured` runs."""
    return Bundle.open(folder / "models" / "tiny.ncb", "server", trusted=[bundles.trusted_key()])


@pytest.fixture
def measured(tmp_path):
    """Settings of a board that runs the tests' own environment, over a real sshd; and a server that it reaches."""
    release = tmp_path / "board" / "releases" / "tiny-1"
    release.mkdir(parents=True)
    (release / "venv").symlink_to(sys.prefix)
    (tmp_path / "board" / "current").symlink_to("releases/tiny-1")
    (tmp_path / "board" / "etc").mkdir()
    bundles.trusted_key().write(tmp_path / "board" / "etc" / "trusted.pub")
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy(bundles.with_whole(bundles.make()).write(models / "tiny.ncb"), release / "model.ncb")
    record = describe(opened(tmp_path), "tiny-1", "env", "x86-64", "")
    (release / "release.json").write_text(json.dumps(record))
    with sshd.running(tmp_path) as server, serving(models, tmp_path / "board" / "etc" / "trusted.pub") as tail:
        yield FlashOptions(connection=server.connection(), prefix=str(tmp_path / "board")), str(tail.address)


def test_a_board_measures_itself_and_the_record_comes_back(measured, tmp_path):
    options, to = measured
    quick = {"loaded-s": 0.2, "windowed_s": 0, "warm-up-s": 0, "rounds": 1, "ways": "local,split", "levels": 1}
    record = tmp_path / "shop.run.json"
    refused = []

    class Flashing(Observer):
        """Who flashes meanwhile is told what is going on."""

        def note(self, line):
            if not refused:
                with pytest.raises(BusyError, match="is being profiled by .*; wait until that has ended") as caught:
                    trust("board", add=bundles.KEY.public, connection=options.connection, prefix=options.prefix)
                refused.append(caught.value)

    profile_on_board(
        opened(tmp_path), "board", "x86-64", options, to=to, settings=quick, output=record, observer=Flashing()
    )
    assert refused
    found = json.loads(record.read_text())
    assert found["format"] == "narrowcast-run"
    assert {way["kind"] for way in found["ways"]} == {"local", "split"}
    make_report(record, tmp_path / "shop.html")
    assert "tiny" in (tmp_path / "shop.html").read_text()


def test_a_page_of_what_is_no_record_is_not_made(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ReportError, match="run.json"):
        make_report(tmp_path / "run.json", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_board_that_is_being_flashed_is_not_profiled(measured, tmp_path, monkeypatch, capsys):
    options, to = measured
    layout = layout_of(options.prefix, DeployPaths())
    lock, words = (
        Lock(layout.flash / "session.lock", "ann@laptop"),
        {"output": tmp_path / "r.json", "observer": Observer()},
    )
    lock.take()
    with pytest.raises(BusyError, match="is being flashed by ann@laptop"):
        profile_on_board(opened(tmp_path), "board", "x86-64", options, to=to, settings={}, **words)
    lock.release()
    # Nor by somebody who is logged in there.
    target = tmp_path / "mine.toml"
    target.write_text(OWN_TARGET.format(program=layout.program))
    lock = Lock(layout.flash / "work.lock", "ben@desk")
    lock.take()
    monkeypatch.chdir(tmp_path)
    assert main(["profile", str(layout.current / "model.ncb"), "--target", str(target)]) == 1
    assert "this board is being flashed by ben@desk (since " in capsys.readouterr().err
    lock.release()


def test_a_board_that_cannot_measure_says_why(measured, tmp_path):
    options, to = measured
    with pytest.raises(ProfileOnBoardError, match="board could not measure: .*nonsense"):
        profile_on_board(
            opened(tmp_path), "board", "x86-64", options, to=to, settings={"ways": "nonsense"}, output=tmp_path / "r.json",
            observer=Observer(),
        )  # fmt: skip
    assert not (tmp_path / "r.json").exists()


def stand_in(folder: Path, script: str) -> None:
    """What the board of :func:`measured` runs in place of a profile."""
    venv = folder / "board" / "releases" / "tiny-1" / "venv"
    venv.unlink()
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)


def test_a_profile_that_nobody_waits_for_any_more_ends(measured, tmp_path):
    """Without a terminal nothing tells it: it would measure for minutes, with the daemon stopped."""
    options, to = measured
    stand_in(tmp_path, "echo >&2 $$\nexec sleep 600")
    seen = []

    class Interrupted(Observer):
        def note(self, line):
            seen.append(int(line))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile_on_board(
            opened(tmp_path), "board", "x86-64", options, to=to, settings={}, output=tmp_path / "r.json",
            observer=Interrupted(),
        )  # fmt: skip
    until(lambda: not Path(f"/proc/{seen[0]}").exists(), "the profile has ended")
    trust("board", add=bundles.KEY.public, connection=options.connection, prefix=options.prefix)  # the board is free


@pytest.mark.parametrize(("lost_seconds", "ends"), [(3, False), (600, True)])
def test_a_profile_ends_with_its_link_and_with_silence(lost_seconds, ends, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "LOST_SECONDS", lost_seconds)
    words = ["sh", "-c", "echo >&2 $$; exec sleep 600"]
    with subprocess.Popen(
        ["sh", "-c", measure.measure_script(sys.executable, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "TMPDIR": str(tmp_path)}, text=True,
    ) as board:  # fmt: skip
        profile = int(board.stderr.readline())
        if ends:
            board.stdin.close()
        said = board.stderr.read()
        assert board.wait(60) == 255
    assert said == ("the link ended\n" if ends else "nothing was heard over the link for 3 s\n")
    assert not Path(f"/proc/{profile}").exists()
    assert list(tmp_path.iterdir()) == [], "nothing is left"


@pytest.mark.parametrize(
    ("ends", "code", "brought"),
    [
        ('echo >"$last" "{}"; exit 4', 4, "{}\n"), ('echo >"$last" "{}"; exit 1', 1, "{}\n"), ("exit 4", 4, None),
        ("exit 255", 1, None),
    ],
)  # fmt: skip
def test_a_profile_that_breaks_off_ends_as_it_did_on_the_board_and_its_record_comes(
    measured, tmp_path, ends, code, brought
):
    options, to = measured
    record = tmp_path / "r.json"
    stand_in(tmp_path, f'for last; do :; done\necho >&2 "narrowcast: the server has gone"\n{ends}')
    with pytest.raises(ProfileOnBoardError, match="board could not measure: narrowcast: the server has gone") as caught:
        profile_on_board(
            opened(tmp_path), "board", "x86-64", options, to=to, settings={}, output=record, observer=Observer()
        )
    assert caught.value.exit_code == code
    assert ("r.json has what there was" in str(caught.value)) == (brought is not None)
    assert (record.read_text() if record.exists() else None) == brought


def test_a_board_that_runs_another_bundle_is_not_measured(measured, tmp_path):
    options, to = measured
    bundle = bundles.make(release=2).write(tmp_path / "next.ncb")
    found = Bundle.open(bundle, "server", trusted=[bundles.trusted_key()])
    with pytest.raises(ProfileOnBoardError, match=r"board runs tiny-1 \(made .*, and next.ncb is tiny-2 .*skip flash"):
        profile_on_board(
            found, "board", "x86-64", options, to=to, settings={}, output=tmp_path / "r.json", observer=Observer()
        )
    with pytest.raises(ProfileOnBoardError, match="board runs nothing, and next.ncb"):
        check_runs(found, {"current": None}, "board")


def test_the_words_of_a_profile():
    layout, there = layout_of("/b", DeployPaths()), {"edge": None, "tls": {"tls/tls.crt": "..."}}
    words = profile_words(layout, there, "tail:1", {"link": ["lte", "wifi"], "no_real": True, "read-each": False})
    assert words[:4] == ["/b/current/venv/bin/python", "-I", "-m", "narrowcast"]  # nothing from the folder it runs in
    assert words[4:7] == ["profile", "/b/current/model.ncb", "--to"]
    assert words[7:] == [
        "tail:1", "--trust", "/b/etc/trusted.pub", "--tls", "/b/etc/tls", "--link", "lte", "--link", "wifi", "--no-real",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("edge", "words"),
    [
        ('to = ["own:1", "own:2"]\ntls = { dir = "/b/etc/tls", name = "tail", token_file = "x.token" }',
         ["own:1", "--trust", "/b/etc/trusted.pub", "--tls", "/b/etc/tls", "--tls-name", "tail", "--token-file",
          "/b/etc/x.token"]),
        ('to = "own:1"', ["own:1", "--trust", "/b/etc/trusted.pub"]),
        ('to = "own:1"\nallow_unsigned = true\nruntime = { precision = "int8", threads = 2 }',
         ["own:1", "--allow-unsigned", "--precision", "int8", "--threads", "2"]),
    ],
)  # fmt: skip
def test_a_board_is_profiled_as_its_daemon_runs(edge, words):
    """Not as this recipe would flash it: it may have been told otherwise, and kept what it had."""
    layout = layout_of("/b", DeployPaths())
    assert profile_words(layout, {"edge": edge, "tls": {}}, "tail:1", {})[7:] == words
    with pytest.raises(ProfileOnBoardError, match="name a server"):
        profile_words(layout, {"edge": None, "tls": {}}, "", {})
