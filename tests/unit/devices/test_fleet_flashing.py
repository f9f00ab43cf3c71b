"""What an inventory says of a board becomes a flash's options; what comes back becomes a rollout's results."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from support import bundles, fleets

from narrowcast.cli import deploy, flash, flashing
from narrowcast.devices.flash import BoardStatus, Connection, FlashOptions, FlashReport
from narrowcast.devices.fleet.flashing import BackRoller, BundleFlasher, done_of, options_of, why_not_running
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.errors import ConfigError

FLEET = """
[defaults]
target = "rpi5"
[[boards]]
name = "a"
ssh = "pi@a"
to = "tail:7433"
source = "/dev/video0"
tls = "keys/{name}"
gate_frames = 7
wheels = "wheels"
accept_host_key = "SHA256:abc"
ssh_options = ["ProxyJump=gate"]
sudo = false
[[boards]]
name = "b"
ssh = "pi@b"
config = "edge.toml"
"""


@pytest.fixture
def boards(tmp_path):
    return fleets.inventory(tmp_path, FLEET)


def test_an_inventorys_keys_become_options(boards, tmp_path):
    options = options_of(boards[0], FlashOptions())
    assert (options.to, options.source, options.gate_frames) == ("tail:7433", "/dev/video0", 7)
    assert options.tls == tmp_path / "keys" / "a"
    connection = options.connection
    assert (connection.accept_host_key, connection.options, connection.sudo) == (
        "SHA256:abc",
        ["ProxyJump=gate"],
        False,
    )
    assert options_of(boards[1], FlashOptions()).config == tmp_path / "edge.toml"


def test_flags_go_before_the_inventory_and_nobody_is_asked(boards):
    given = FlashOptions(
        to="other:1", gate_frames=2, connection=Connection(interactive=True, python="/usr/bin/python3.12")
    )
    one, two = (options_of(board, given) for board in boards)
    assert (one.to, one.source, one.gate_frames) == ("other:1", "/dev/video0", 2)
    assert (two.to, two.config) == ("other:1", None), "a flag says where to, in place of the file that does"
    assert one.connection.python == "/usr/bin/python3.12"
    assert not one.connection.interactive
    assert options_of(boards[0], given, interactive=True).connection.interactive
    by_config = options_of(boards[0], FlashOptions(config=Path("x.toml")))
    assert (by_config.to, by_config.source, by_config.config) == ("", "", Path("x.toml"))


@pytest.mark.parametrize("verb", [flash, deploy], ids=["flash", "deploy"])
def test_a_flag_that_asks_for_the_usual_goes_before_the_inventory_too(tmp_path, verb):
    (board,) = fleets.inventory(
        tmp_path,
        '[[boards]]\nname = "a"\nssh = "pi@a"\ntarget = "rpi5"\ngate = "ready"\ngate_seconds = 10\nprecision = "int8"\n'
        'services = "supervised"\nprefix = "/home/pi"\n',
    )
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    given = flashing.options_of(parser.parse_args(["x", "--gate", "frames", "--gate-seconds", "120"]))
    options = options_of(board, replace(given, dry_run=True))  # as `narrowcast deploy` makes its own of them
    assert (options.gate, options.gate_seconds, options.dry_run) == ("frames", 120.0, True)
    assert (options.precision, options.services, options.prefix) == ("int8", "supervised", "/home/pi")
    none = options_of(board, flashing.options_of(parser.parse_args(["x"])))
    assert (none.gate, none.gate_seconds, none.gate_frames, none.keep) == ("ready", 10.0, 3, 3)
    if verb is flash:
        words = ["x", "--precision", "auto", "--services", "auto", "--prefix", "", "--to", ""]
        options = options_of(board, flashing.options_of(parser.parse_args(words)))
        assert (options.precision, options.services, options.prefix) == ("auto", "auto", "/home/pi")


def test_wheels_that_are_given_are_not_passed_over_for_an_environment(tmp_path):
    wheels, environment = fleets.inventory(
        tmp_path,
        '[defaults]\ntarget = "rpi5"\n[[boards]]\nname = "a"\nssh = "a"\nwheels = "wheels"\n'
        '[[boards]]\nname = "b"\nssh = "b"\nenvironment = "/opt/venv"\n',
    )
    given = options_of(environment, FlashOptions(wheels=Path("mine")))
    assert (given.wheels, given.environment) == (Path("mine"), "")
    given = options_of(wheels, FlashOptions(environment="/opt/other"))
    assert (given.wheels, given.environment) == (None, "/opt/other")
    parser = argparse.ArgumentParser()
    flash.add_arguments(parser)
    with pytest.raises(
        ConfigError, match="--wheels mine makes an environment, --environment /opt/venv is there already"
    ):
        flashing.options_of(parser.parse_args(["x", "--wheels", "mine", "--environment", "/opt/venv"]))


def test_what_a_board_is_to_get_has_a_name_that_changes_with_it(boards, tmp_path):
    keys = tmp_path / "keys" / "a"
    keys.mkdir(parents=True)
    (keys / "tls.crt").write_text("one")
    bundle = Bundle.open(bundles.make().write(tmp_path / "tiny.ncb"), "device", trusted=[bundles.KEY.public])
    flasher = BundleFlasher(bundle, FlashOptions())
    first = flasher.wants(boards[0])
    assert first == flasher.wants(boards[0]) != flasher.wants(boards[1])
    assert BundleFlasher(bundle, FlashOptions(keep=5)).wants(boards[0]) != first
    jetson = replace(boards[0], settings=msgspec.structs.replace(boards[0].settings, target="jetson-orin-nano"))
    assert flasher.wants(jetson) != first
    (keys / "tls.crt").write_text("two")
    second = flasher.wants(boards[0])
    assert second != first
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "a-1-py3-none-any.whl").write_text("one")
    third = flasher.wants(boards[0])
    assert third not in (first, second)
    (wheels / "a-1-py3-none-any.whl").write_text("two")
    assert flasher.wants(boards[0]) not in (first, second, third)
    assert BackRoller(FlashOptions()).wants(boards[0])


def report(**changes):
    return FlashReport(**{"destination": "a", "outcome": "committed", "release": "tiny-2-ab", **changes})


def test_a_report_becomes_a_line():
    done = done_of(report(uploaded_bytes=2_500_000, precision="int8", head_ms={"int8": 3.25, "fp32": 7.0}))
    assert (done.state, done.release, done.detail) == ("done", "tiny-2-ab", "2.5 MB sent, int8 3.2 ms")
    assert done_of(report(outcome="unchanged")).state == "unchanged"
    planned = done_of(report(outcome="planned", plan={"upload_bytes": 1_000_000}))
    assert (planned.state, planned.detail) == ("planned", "1.0 MB to send")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"current": {"id": "tiny-1"}}, "it runs tiny-1"),
        ({"current": None}, "it runs nothing"),
        ({"service": {"active": False}}, "its daemon does not run"),
        ({"daemon": {"ready": False}}, "its daemon is not ready"),
        ({"daemon": None}, ""),
    ],
)
def test_whether_a_board_still_runs_what_it_was_given(changes, why):
    status = {"destination": "a", "current": {"id": "tiny-2"}, "service": {"active": True}, "daemon": {"ready": True}}
    assert why_not_running(BoardStatus(**{**status, **changes}), "tiny-2") == why
