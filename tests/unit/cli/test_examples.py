"""The examples, as somebody copies them: every file passes the checks that the verbs make, every command exists."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from narrowcast.cli import VERBS
from narrowcast.compiler.recipe import load_deployment, load_recipe
from narrowcast.deploy.boards import chosen_boards
from narrowcast.devices.flash import FlashOptions
from narrowcast.devices.flash.agent.layout import Layout
from narrowcast.devices.flash.board import layout_of
from narrowcast.devices.flash.edge import edge_config
from narrowcast.devices.fleet.flashing import options_of
from narrowcast.devices.fleet.inventory import load_inventory, select
from narrowcast.devices.targets import load_target
from narrowcast.head.daemon.config import load_config

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
DOCS = [
    *EXAMPLES.glob("*/README.md"),
    *(EXAMPLES.parent / "docs" / name for name in ("flash.md", "fleet.md", "deploy.md")),
]
FOLDERS = sorted(path.parent for path in EXAMPLES.glob("*/recipe.toml"))
COMMAND = re.compile(r"^(?:sudo )?narrowcast (?P<words>[a-z].*)$", re.MULTILINE)


def test_there_are_examples():
    assert [folder.name for folder in FOLDERS] == ["jetson", "raspberry-pi-camera"]


@pytest.mark.parametrize("recipe", sorted(EXAMPLES.glob("**/*recipe*.toml")) + sorted(EXAMPLES.glob("*.toml")), ids=str)
def test_a_recipe_is_one(recipe):
    assert load_recipe(recipe).export.targets


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_inventory_and_its_deployment_are_ones(folder):
    boards = load_inventory(folder / "fleet.toml")
    recipe, deployment = load_recipe(folder / "recipe.toml"), load_deployment(folder / "recipe.toml")
    chosen = chosen_boards(deployment, recipe)
    assert chosen
    for board in (*boards, *chosen):
        assert load_target(board.target).architecture == "aarch64"
        options = options_of(board, FlashOptions())
        assert options.config == folder / "edge.toml"
        assert options.tls is not None
    if deployment.fleet is not None:
        assert select(boards, deployment.fleet.groups)
        assert deployment.profile.board in [board.name for board in boards]
        assert {board.target for board in boards} == set(recipe.export.targets)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_daemons_settings_hold_as_they_are_and_as_flash_writes_them(folder, tmp_path):
    load_config(folder / "edge.toml")
    layout: Layout = layout_of("", load_target("rpi5").paths)
    options = FlashOptions(config=folder / "edge.toml")
    (tmp_path / "edge.toml").write_text(edge_config(options, layout, None, tls=True, signed=True))
    assert load_config(tmp_path / "edge.toml").tls is not None


def commands() -> list[tuple[str, str]]:
    """Every command of the examples' and flashing's pages."""
    found = []
    for page in DOCS:
        for block in re.findall(r"```\n(.*?)```", page.read_text(), re.DOTALL):
            found += [(page.name, match["words"].split("  ")[0].split(" #")[0]) for match in COMMAND.finditer(block)]
    return found


@pytest.mark.parametrize(("page", "words"), commands())
def test_a_command_of_the_pages_exists_and_is_read(page, words):
    verb, *rest = shlex.split(words)
    assert verb in VERBS, f"{page}: narrowcast {verb}"
    module = importlib.import_module(f"narrowcast.cli.{VERBS[verb][0]}")
    parser = argparse.ArgumentParser(prog=verb, exit_on_error=False)
    module.add_arguments(parser)
    try:
        parser.parse_args(rest)
    except SystemExit as error:
        raise AssertionError(f"{page}: narrowcast {words} is not read") from error
