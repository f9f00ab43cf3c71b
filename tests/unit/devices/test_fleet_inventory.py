"""The inventory: what a board, its groups and the defaults say, and what is refused."""

from __future__ import annotations

import pytest
from support import fleets

from narrowcast.devices.fleet.errors import InventoryError, SelectionError
from narrowcast.devices.fleet.inventory import load_inventory, select

FLEET = """
[defaults]
target = "rpi5"
to = "tail.example:7433"
tls = "certificates/{name}"
settings.sources = { fps = 5.0, queue = 2 }

[groups.gate]
source = "rtsp://cam-{name}/stream"
settings.sources.fps = 10.0
precision = "int8"

[groups.night]
precision = "fp32"
gate_seconds = 60.0

[[boards]]
name = "dock-1"
ssh = "pi@dock-1.local"
groups = ["dock"]
source = "/dev/video0"

[[boards]]
name = "gate-1"
ssh = "pi@10.0.0.7"
groups = ["gate", "night"]
to = "other.example:7433"

[[boards]]
name = "orin"
ssh = "orin"
target = "boards/mine.toml"
tls = "/etc/narrowcast/orin"
settings.sources.fps = 30.0
"""


@pytest.fixture
def boards(tmp_path):
    from importlib import resources

    own = tmp_path / "boards"
    own.mkdir()
    text = resources.files("narrowcast.devices.targets").joinpath("arm64.toml").read_text("utf-8")
    (own / "mine.toml").write_text(text)
    return fleets.inventory(tmp_path, FLEET)


def test_a_board_goes_before_its_groups_and_these_before_the_defaults(boards, tmp_path):
    dock, gate, orin = (board.settings for board in boards)
    assert (dock.to, dock.source, dock.precision) == ("tail.example:7433", "/dev/video0", None)
    assert (gate.to, gate.source) == ("other.example:7433", "rtsp://cam-gate-1/stream")
    assert gate.precision == "int8", "of two groups the first one counts"
    assert gate.gate_seconds == 60
    assert dock.tls == str(tmp_path / "certificates" / "dock-1")
    assert orin.tls == "/etc/narrowcast/orin"
    assert boards[2].target == str(tmp_path / "boards" / "mine.toml")
    assert dock.settings == {"sources": {"fps": 5.0, "queue": 2}}
    assert gate.settings == {"sources": {"fps": 10.0, "queue": 2}}
    assert orin.settings == {"sources": {"fps": 30.0, "queue": 2}}


def test_boards_are_chosen_by_group_and_by_name(boards):
    assert [board.name for board in select(boards)] == ["dock-1", "gate-1", "orin"]
    assert [board.name for board in select(boards, ["gate"], ["orin"])] == ["gate-1", "orin"]
    with pytest.raises(SelectionError, match="no board is in a group 'gates'; did you mean 'gate'"):
        select(boards, ["gates"])
    with pytest.raises(SelectionError, match="no board 'dock-2' in the inventory; did you mean 'dock-1'"):
        select(boards, names=["dock-2"])


BOARD = '[[boards]]\nname = "a"\nssh = "pi@a"\ntarget = "rpi5"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "boards"),
        ("boards = []", "boards"),
        ("[[boards]\n", "is not TOML"),
        (BOARD + 'sauce = "x"\n', "unknown key 'sauce' in .*; did you mean 'source'"),
        (BOARD + "sudo = 3\n", "sudo"),
        (BOARD.replace('target = "rpi5"\n', ""), "board a has no target"),
        (BOARD.replace("rpi5", "rpi9"), "board a: no target 'rpi9'; did you mean"),
        (BOARD.replace('"a"', '"a b"'), "name is 'a b'"),
        (BOARD.replace('"pi@a"', '"-oProxyCommand=x"'), "ssh of a is '-oProxyCommand=x'"),
        (BOARD + BOARD, "two boards have the name 'a'"),
        (BOARD + BOARD.replace('"a"', '"b"'), "two boards have the ssh 'pi@a'"),
        (BOARD + '[groups.x]\nto = "t:1"\n', r"\[groups.x\] is of no board"),
        (BOARD + 'config = "edge.toml"\nto = "t:1"\n', "board a has a config"),
        (BOARD + 'precision = "fp64"\n', "precision"),
        (BOARD + "gate_frames = 0\n", "gate_frames"),
    ],
)
def test_an_inventory_that_is_wrong_is_refused_in_one_line(text, words, tmp_path):
    with pytest.raises(InventoryError, match=words) as caught:
        fleets.inventory(tmp_path, text)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_an_inventory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InventoryError, match=r"no inventory .*fleet.toml; docs/fleet.md"):
        load_inventory(tmp_path / "fleet.toml")
    with pytest.raises(InventoryError, match="cannot be read"):
        load_inventory(tmp_path)
