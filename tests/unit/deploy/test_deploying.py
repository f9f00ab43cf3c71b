"""What a deployment does again and what it keeps; boards and their measurements are none here."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from support import bundles

from narrowcast.compiler.errors import DataError
from narrowcast.deploy import DeployOptions, deploy
from narrowcast.deploy import run as run_module

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


def test_a_full_disk_is_a_stages_failure(bench, monkeypatch):
    def measure(*_, output, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(output))

    monkeypatch.setattr(run_module, "profile_on_board", measure)
    found = bench.deploy("compile", "publish")
    assert states(found)["profile"] == "failed"
    assert states(found)["flash"] == "kept"
    assert (found.exit_code, found.model) == (1, "shop")
    assert found.error == f"profile: No space left on device ({bench.folder / 'shop.run.json'})"
