"""``narrowcast deploy``: a real compilation, a real server that follows its folder, a board over a real sshd."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import bundles, fleets, sshd, standin
from support.server import serving

from narrowcast.cli import main
from narrowcast.compiler.deployment import DeployFleet, DeploySettings
from narrowcast.deploy import DeployOptions
from narrowcast.deploy import Observer as DeployObserver
from narrowcast.deploy.boards import flash_boards
from narrowcast.deploy.errors import FleetFailedError, PublishError
from narrowcast.deploy.publish import _in_shell, open_place, publish
from narrowcast.devices.flash import Observer
from narrowcast.devices.flash.board import layout_of
from narrowcast.devices.flash.errors import BoardUnreachableError
from narrowcast.devices.targets import DeployPaths

NETWORKS = Path(__file__).resolve().parents[1] / "support" / "networks.py"


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
    assert [(board.name, board.state) for board in caught.value.report.boards] == [("a", "failed"), ("b", "failed")]


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


def test_a_folder_of_a_home_is_found_and_a_link_that_breaks_is_no_refusal(tmp_path):
    with sshd.running(tmp_path) as server:  # whose HOME is tmp_path
        server.write_config()
        (tmp_path / "my models").mkdir()
        bundle = bundles.make().write(tmp_path / "a.ncb")
        with open_place("board:~/my models", tmp_path, server.connection(), Observer()) as place:
            assert publish(place, bundle, "a-1.ncb")
            assert (tmp_path / "my models" / "a-1.ncb").read_bytes() == bundle.read_bytes()
            server.stop()
            with pytest.raises(BoardUnreachableError) as caught:
                place.put(bundle, "a-2.ncb")
        assert caught.value.exit_code == 4
    assert [_in_shell(text) for text in ("~", "~ops/a b", "/x y", "a~/b", "~a b/c")] == [
        "~", "~ops/'a b'", "'/x y'", "'a~/b'", "'~a b/c'",
    ]  # fmt: skip


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
