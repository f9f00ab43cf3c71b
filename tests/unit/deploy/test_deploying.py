"""What a deployment does again and what it keeps; boards and their measurements are none here."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from support import bundles, fleets

from narrowcast.cli import main
from narrowcast.compiler.errors import DataError
from narrowcast.deploy import DeployOptions, deploy
from narrowcast.deploy import run as run_module
from narrowcast.deploy.errors import FleetFailedError, StageError
from narrowcast.devices.flash.errors import RolledBackError
from narrowcast.devices.flash.report import FlashReport
from narrowcast.devices.fleet.results import BoardResult, FleetReport

RECIPE = """
{first}
teacher.model = "timm:resnet18"
data.train = "photos"
cut.at = "stem"
input = {{ size = [32, 32], mean = [0.5, 0.5, 0.5], std = [0.25, 0.25, 0.25] }}
bottleneck.preset = "plain"
[deploy]
{to}
[deploy.board]
ssh = "board"
target = "x86-64"
{board}
{profile}
"""


class Bench:
    """A recipe whose bundle is there.

    Attributes:
        folder: of both.
        measured: names of what boards were measured with, in order.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.measured: list[str] = []
        self.bundle = bundles.make(name="shop").write(folder / "shop.ncb")

    def measure(self, bundle, *_, output: Path, **__) -> None:
        """In place of a board."""
        self.measured.append(bundle.path.name)
        output.write_text("a record")

    def deploy(
        self, *skip: str, dry_run: bool = False, first: str = "", to: str = "", board: str = "", profile: str = ""
    ):
        """What came of it."""
        (self.folder / "shop.toml").write_text(RECIPE.format(first=first, to=to, board=board, profile=profile))
        options = DeployOptions(key=bundles.KEY, work=self.folder / "work", skip=skip, dry_run=dry_run)
        return deploy(self.folder / "shop.toml", options)


@pytest.fixture
def bench(tmp_path, monkeypatch):
    bench = Bench(tmp_path)
    monkeypatch.setattr(run_module, "profile_on_board", bench.measure)
    monkeypatch.setattr(run_module, "make_report", lambda record, page: None)
    monkeypatch.setattr(run_module, "flash_boards", lambda *_: ("kept", "it ran already", {}))
    return bench


def states(found):
    return {stage.name: stage.state for stage in found.stages}


@pytest.mark.parametrize(
    "change",
    [{"board": "whole = true"}, {"board": 'precision = "int8"'}, {"to": 'to = "tail:7433"'}, {"board": 'source = "/dev/x"'},
     {"profile": "[deploy.profile]\noptions = { rounds = 3 }"}],
)  # fmt: skip
def test_a_board_is_measured_again_where_it_is_told_something_else(bench, change):
    for times, said in ((1, {}), (1, {}), (2, change), (2, change)):
        found = bench.deploy("compile", "publish", **said)
        assert found.exit_code == 0, found.error
        assert len(bench.measured) == times


def test_what_a_board_measured_without_a_flash_counts_only_without_one(bench):
    for times, skip in ((1, ["flash"]), (1, ["flash"]), (2, []), (2, []), (2, ["flash"])):
        bench.deploy("compile", "publish", *skip)
        assert len(bench.measured) == times


def test_a_stage_that_fails_beside_a_damaged_bundle_is_heard(bench, monkeypatch):
    def compile_recipe(*_, **__):
        raise DataError("no images under photos")

    monkeypatch.setattr(run_module, "inputs_digest", lambda recipe, signer: "inputs")
    monkeypatch.setattr(run_module, "compile_recipe", compile_recipe)
    bench.bundle.write_bytes(b"half a bundle")
    found = bench.deploy()
    assert (states(found), found.error, found.model) == ({"compile": "failed"}, "no images under photos", None)


def test_a_fleet_that_fails_is_told_board_by_board(bench, monkeypatch):
    boards = [
        BoardResult(name="a", destination="a", state="done"),
        BoardResult(name="b", destination="b", state="failed"),
    ]
    told = {
        "fleet": FleetFailedError("1 failed of 2 boards", 4, FleetReport(outcome="failed", boards=boards)),
        "board": RolledBackError("a went back", FlashReport(destination="a", outcome="rolled-back", release="shop-1")),
    }
    for error in told.values():

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(run_module, "flash_boards", fail)
        found = bench.deploy("compile", "publish")
        assert (states(found)["flash"], found.exit_code) == ("failed", error.exit_code)
        assert found.as_dict()["stages"][2]["data"] == error.report.as_dict()


def test_a_full_disk_is_a_stages_failure(bench, monkeypatch):
    def measure(*_, output, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(output))

    monkeypatch.setattr(run_module, "profile_on_board", measure)
    found = bench.deploy("compile", "publish")
    assert states(found)["profile"] == "failed"
    assert states(found)["flash"] == "kept"
    assert (found.exit_code, found.model) == (1, "shop")
    assert found.error == f"profile: No space left on device ({bench.folder / 'shop.run.json'})"


FLEET = """
[deploy.fleet]
inventory = "fleet.toml"
[deploy.profile]
board = "b"
"""


def test_a_board_to_profile_that_is_none_is_found_before_anything_is_done(bench):
    fleets.inventory(bench.folder, '[[boards]]\nname = "a"\nssh = "a"\ntarget = "x86-64"\n')
    text = RECIPE.format(first="", to="", board="", profile="").partition("[deploy.board]")[0]
    (bench.folder / "shop.toml").write_text(text + FLEET)
    with pytest.raises(StageError, match=r"\[deploy.profile\] board is 'b'; the boards are a"):
        deploy(bench.folder / "shop.toml", DeployOptions(key=bundles.KEY, work=bench.folder / "work"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("{ seconds = 60 }", "unrecognized arguments: --seconds 60"),
        ('{ ways = "local,splitt" }', "argument --ways"),
        ("{ loaded-s = true }", "argument --loaded-s: expected one argument"),
    ],
)
def test_options_that_a_profile_does_not_have_are_found_before_anything_is_done(bench, options, words, capsys):
    profile = f"[deploy.profile]\noptions = {options}"
    (bench.folder / "shop.toml").write_text(RECIPE.format(first="", to="", board="", profile=profile))
    assert main(["deploy", str(bench.folder / "shop.toml"), "--yes"]) == 2
    said = capsys.readouterr().err
    assert f"[deploy.profile] options: {words}" in said
    assert said.count("\n") == 1


def test_options_that_a_profile_has_are_taken(bench, monkeypatch, capsys):
    profile = (
        '[deploy.profile]\noptions = { loaded_s = 60, ways = "split,image", quiet = true, link = ["lte", "wifi"] }'
    )
    (bench.folder / "shop.toml").write_text(RECIPE.format(first="", to="", board="", profile=profile))
    words = ["--skip", "compile", "--skip", "publish", "--work", str(bench.folder / "work")]
    bundles.KEY.write(bench.folder / "test.key")
    assert (
        main(["deploy", str(bench.folder / "shop.toml"), "--yes", "--key", str(bench.folder / "test.key"), *words]) == 0
    )
    assert bench.measured == ["shop.ncb"]


def test_a_dry_run_that_would_compile_plans_with_no_bundle_that_is_there(bench, monkeypatch):
    monkeypatch.setattr(run_module, "inputs_digest", lambda recipe, signer: f"inputs of {recipe.release}")
    monkeypatch.setattr(run_module, "compile_recipe", lambda *_, **__: bundles.open_made(bench.bundle))
    assert states(bench.deploy("publish"))["profile"] == "done"
    found = bench.deploy("publish", dry_run=True)
    assert states(found) == {
        "compile": "kept", "publish": "off", "flash": "kept", "profile": "kept", "report": "planned",
    }  # fmt: skip
    assert (found.model, found.release) == ("shop", 1)

    (bench.folder / "models").mkdir()
    (bench.folder / "models" / "shop-1.ncb").write_bytes(bench.bundle.read_bytes())
    found = bench.deploy(dry_run=True, first="release = 2", to='publish = "models"')
    assert set(states(found).values()) == {"planned"}
    assert [stage.detail for stage in found.stages[1:4]] == ["into models", "onto 1 boards", "on the board"]
    assert (found.model, found.release) == (None, None)
