"""``narrowcast flash ... --fleet``, up to the boards."""

from __future__ import annotations

import pytest
from support import fleets

from narrowcast.cli import main
from narrowcast.devices.fleet import flashing
from narrowcast.devices.fleet.flasher import Done
from narrowcast.devices.fleet.state import open_state

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
