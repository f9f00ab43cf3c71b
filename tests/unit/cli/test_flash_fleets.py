"""``narrowcast flash ... --fleet``, up to the boards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support import fleets

from narrowcast.cli import main
from narrowcast.devices import targets
from narrowcast.devices.fleet import flashing
from narrowcast.devices.fleet.flasher import Done
from narrowcast.devices.fleet.state import open_state
from narrowcast.devices.targets import load_target

ONE = '[[boards]]\nname = "a"\nssh = "pi@a"\n'


@pytest.fixture
def seen(monkeypatch):
    """Boards that were rolled back."""
    found = []

    def act(roller, board, say):
        found.append(board)
        return Done("done", "tiny-1")

    monkeypatch.setattr(flashing.BackRoller, "act", act)
    return found


def test_a_fleet_is_not_rolled_back_while_it_is_flashed(tmp_path, seen, capsys):
    fleets.inventory(tmp_path, ONE + 'target = "rpi5"\n')
    words, state = (
        ["flash", "rollback", "--fleet", str(tmp_path / "fleet.toml"), "--yes"],
        tmp_path / "fleet.state.json",
    )
    with open_state(state, "flash a bundle"):
        assert main(words) == 1
        assert f"another rollout holds {state}" in capsys.readouterr().err
        assert not seen
        assert main([*words, "--dry-run"]) == 0
    assert main(words) == 0
    assert len(seen) == 2
    assert not state.exists(), "a rollback goes on from nothing"


@pytest.mark.parametrize("inventory", [ONE, ONE + 'target = "rpi5"\n'])
def test_a_target_given_goes_before_what_a_board_says(tmp_path, seen, inventory, monkeypatch, capsys):
    (tmp_path / "fleet.toml").write_text(inventory)
    words = ["flash", "rollback", "--fleet", str(tmp_path / "fleet.toml"), "--yes"]
    assert main([*words, "--target", "rpi4"]) == 0
    own = load_target("rpi4").name
    assert [board.target for board in seen] == [own]
    assert main([*words, "--target", "rpi44"]) == 2
    assert "rpi44" in capsys.readouterr().err
    shutil.copy(Path(targets.__file__).with_name("rpi4.toml"), tmp_path / "mine.toml")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main([*words, "--target", "../mine.toml"]) == 0
    assert load_target(seen[1].target).name == own
