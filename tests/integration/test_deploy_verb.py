"""``narrowcast deploy``: a real compilation, a real server that follows its folder, a board over a real sshd."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from support import bundles, fleets, sshd, standin
from support.server import serving

from narrowcast.cli import main
from narrowcast.compiler.deployment import DeployFleet, DeploySettings
from narrowcast.deploy import DeployOptions
from narrowcast.deploy import Observer as DeployObserver
from narrowcast.deploy.boards import flash_boards
from narrowcast.deploy.errors import FleetFailedError, ProfileOnBoardError, PublishError, ReportError
from narrowcast.deploy.measure import check_runs, make_report, profile_on_board, profile_words
from narrowcast.deploy.publish import open_place, publish
from narrowcast.devices.flash import FlashOptions, Observer, trust
from narrowcast.devices.flash.agent.locks import Lock
from narrowcast.devices.flash.board import layout_of
from narrowcast.devices.flash.errors import BusyError
from narrowcast.devices.flash.release import describe
from narrowcast.devices.targets import DeployPaths
from narrowcast.transport.bundle import Bundle

NETWORKS = Path(__file__).resolve().parents[1] / "support" / "networks.py"
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


class Workshop:
    """A developer's folder: a recipe, a key, a server's folder, a board.

    Attributes:
        to: the server that boards send to.
    """

    def __init__(self, folder: Path, photos: Path, server: sshd.Sshd) -> None:
        self.folder, self.photos, self.server = folder, photos, server
        self.models = folder / "models"
        self.models.mkdir()
        bundles.make().write(self.models / "tiny.ncb")  # an empty folder is no server's
        self.board = folder / "board"
        self.environment = standin.make(folder / "standin")
        bundles.KEY.write(folder / "test.key")
        bundles.trusted_key().write(folder / "test.pub")
        self.to = ""
        server.write_config()

    def deploy(self, *options: str, release: int = 1, publish: str = "models") -> int:
        """Exit code of the verb."""
        (self.folder / "shop.toml").write_text(f"""
release = {release}
teacher.model = "{NETWORKS}:tiny"
data.train = "{self.photos}"
cut.at = "stem"
input = {{ size = [32, 32], mean = [0.5, 0.5, 0.5], std = [0.25, 0.25, 0.25] }}
bottleneck.preset = "plain"
[deploy]
publish = "{publish}"
to = "{self.to}"
[deploy.board]
ssh = "board"
target = "x86-64"
ssh_config = "{self.server.config}"
accept_host_key = "{self.server.fingerprint}"
prefix = "{self.board}"
services = "supervised"
environment = "{self.environment}"
source = "unix:/run/camera.sock"
""")
        words = ["deploy", str(self.folder / "shop.toml"), "--yes", "--json", "--work", str(self.folder / "work")]
        return main([*words, "--key", str(self.folder / "test.key"), "--ssh-config", str(self.server.config), *options])


@pytest.fixture
def workshop(tmp_path, photo_folder):
    from narrowcast.devices.flash.agent.services import Supervised

    with sshd.running(tmp_path) as server:
        workshop = Workshop(tmp_path, photo_folder, server)
        with serving(workshop.models, tmp_path / "test.pub") as tail:
            workshop.to = str(tail.address)
            yield workshop
        Supervised(layout_of(str(workshop.board), DeployPaths())).stop()


def stages(capsys):
    found = json.loads(capsys.readouterr().out)
    return {stage["name"]: stage["state"] for stage in found["stages"]}, found


def test_a_recipe_becomes_a_running_board_and_nothing_is_done_twice(workshop, capsys):
    assert workshop.deploy("--dry-run") == 0
    seen, _ = stages(capsys)
    assert seen == {
        "compile": "planned",
        "publish": "planned",
        "flash": "planned",
        "profile": "planned",
        "report": "planned",
    }
    assert [path.name for path in workshop.models.iterdir()] == ["tiny.ncb"]

    assert workshop.deploy("--skip", "profile", "--skip", "report") == 0
    seen, found = stages(capsys)
    assert seen == {"compile": "done", "publish": "done", "flash": "done", "profile": "off", "report": "off"}
    assert (found["model"], found["release"]) == ("shop", 1)
    assert (workshop.models / "shop-1.ncb").read_bytes() == (workshop.folder / "shop.ncb").read_bytes()
    assert (workshop.board / "current").readlink().name.startswith("shop-1-")

    assert workshop.deploy("--skip", "profile", "--skip", "report") == 0
    seen, _ = stages(capsys)
    assert seen == {"compile": "kept", "publish": "kept", "flash": "kept", "profile": "off", "report": "off"}

    assert workshop.deploy("--skip", "profile", "--skip", "report", "--skip", "flash", release=2) == 0
    seen, _ = stages(capsys)
    assert (seen["compile"], seen["publish"]) == ("done", "done")
    assert sorted(path.name for path in workshop.models.iterdir()) == ["shop-1.ncb", "shop-2.ncb", "tiny.ncb"]


def test_a_board_that_knows_its_server_is_profiled_without_one_in_the_recipe(workshop, capsys):
    workshop.to = ""
    assert workshop.deploy("--dry-run") == 0
    assert stages(capsys)[0]["profile"] == "planned"


def test_a_release_number_is_not_used_twice(workshop, capsys):
    bundles.make(name="shop").write(workshop.folder / "shop.ncb")
    bundles.make(name="other").write(workshop.models / "shop-1.ncb")
    assert workshop.deploy("--skip", "compile") == 1
    seen, found = stages(capsys)
    assert seen == {"compile": "off", "publish": "failed"}
    assert "Raise `release` in the recipe, or --replace" in found["error"]
    assert not workshop.board.exists()


def test_a_server_that_does_not_serve_it_keeps_boards_as_they_are(workshop, capsys, monkeypatch):
    monkeypatch.setattr("narrowcast.deploy.run.SERVED_SECONDS", 0.0)
    (workshop.folder / "elsewhere").mkdir()
    bundles.make(name="shop").write(workshop.folder / "shop.ncb")
    assert workshop.deploy("--skip", "compile", publish="elsewhere") == 1
    seen, found = stages(capsys)
    assert seen == {"compile": "off", "publish": "failed"}
    assert "does not serve shop release 1" in found["error"]
    assert not workshop.board.exists()


def test_a_stage_says_what_it_lacks(workshop, capsys):
    assert workshop.deploy("--skip", "compile") == 2
    seen, found = stages(capsys)
    assert seen == {"compile": "off", "publish": "failed"}
    assert "publish wants" in found["error"]
    assert "do not skip compile" in found["error"]


def test_a_fleet_that_fails_is_told_by_its_boards_exit_code(tmp_path):
    inventory = (
        '[defaults]\ntarget = "x86-64"\nto = "tail:7433"\nsource = "unix:/x"\nenvironment = "/none"\n'
        'ssh_options = ["HostName=127.0.0.1", "Port=1"]\n[[boards]]\nname = "a"\nssh = "a"\n'
        '[[boards]]\nname = "b"\nssh = "b"\n'
    )
    boards = fleets.inventory(tmp_path, inventory)
    settings = DeploySettings(fleet=DeployFleet(inventory="fleet.toml", canary=0))
    bundle = bundles.make().write(tmp_path / "tiny.ncb")
    with pytest.raises(FleetFailedError, match="2 failed of 2 boards") as caught:
        flash_boards(bundle, boards, settings, DeployOptions(key=bundles.KEY), tmp_path, DeployObserver())
    assert caught.value.exit_code == 4


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
    venv = tmp_path / "board" / "releases" / "tiny-1" / "venv"
    venv.unlink()
    (venv / "bin").mkdir(parents=True)
    python, record = venv / "bin" / "python", tmp_path / "r.json"
    python.write_text(f'#!/bin/sh\nfor last; do :; done\necho >&2 "narrowcast: the server has gone"\n{ends}\n')
    python.chmod(0o755)
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


@pytest.mark.parametrize("text", ["models", "board:{folder}/models"])
def test_a_bundle_is_published_whole_here_and_elsewhere(text, tmp_path):
    with sshd.running(tmp_path) as server:
        server.write_config()
        folder = tmp_path / "models"
        folder.mkdir()
        bundle, other = bundles.make().write(tmp_path / "a.ncb"), bundles.make(release=2).write(tmp_path / "b.ncb")
        with open_place(text.format(folder=tmp_path), tmp_path, server.connection(), Observer()) as place:
            assert place.digest("a-1.ncb") is None
            assert publish(place, bundle, "a-1.ncb")
            assert not publish(place, bundle, "a-1.ncb")
            with pytest.raises(PublishError, match="a-1.ncb is published with other content"):
                publish(place, other, "a-1.ncb")
            assert publish(place, other, "a-1.ncb", replace=True)
        assert (folder / "a-1.ncb").read_bytes() == other.read_bytes()
        assert [path.name for path in folder.iterdir()] == ["a-1.ncb"], "nothing half written is left"


def test_a_place_that_is_none_is_said(tmp_path):
    with pytest.raises(PublishError, match="no folder .*nowhere"):
        with open_place("nowhere", tmp_path, sshd.Connection(), Observer()):
            pass
    with pytest.raises(PublishError, match="a folder follows the colon"):
        with open_place("ops@tail:", tmp_path, sshd.Connection(), Observer()):
            pass


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("[deploy]\npublich = 'x'", "unknown key 'publich'.*did you mean 'publish'"),
        ("[deploy.board]\nssh = 'a'\n[deploy.fleet]\ninventory = 'f'", "a board and a fleet"),
        ("deploy = 3", "deploy is a table"),
    ],
)
def test_a_slip_in_the_table_is_found_when_the_recipe_is_read(table, words, tmp_path):
    from narrowcast.compiler.recipe import load_recipe
    from narrowcast.transport.errors import ConfigError

    (tmp_path / "r.toml").write_text(
        f"{table if table.startswith('deploy') else ''}\n[teacher]\nmodel = 'timm:x'\n[data]\ntrain = 'x'\n[cut]\nat = 'x'\n"
        f"[input]\nsize = [8, 8]\nmean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]\n[bottleneck]\n"
        f"{'' if table.startswith('deploy') else table}\n"
    )
    with pytest.raises(ConfigError, match=words):
        load_recipe(tmp_path / "r.toml")


def test_a_stage_that_does_not_exist_cannot_be_skipped(workshop, capsys):
    assert workshop.deploy("--skip", "compiel") == 2
    assert "no stage 'compiel'; did you mean 'compile'" in capsys.readouterr().err
