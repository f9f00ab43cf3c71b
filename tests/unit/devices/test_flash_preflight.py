"""Whether a board can run what is to be flashed, before anything is sent; and the units that it gets."""

from __future__ import annotations

import time
import zipfile

import msgspec
import pytest
from support import bundles
from support.facts import RIGHTS, facts

from narrowcast.devices.flash import FlashOptions, Observer
from narrowcast.devices.flash.board import Rights, layout_of
from narrowcast.devices.flash.errors import (
    BoardError,
    DiskSpaceError,
    DowngradeError,
    PreflightError,
    ServerUnreachableError,
    WrongTargetError,
)
from narrowcast.devices.flash.flashing import Flashing
from narrowcast.devices.flash.preflight import (
    check_board,
    check_disk,
    check_release,
    check_servers,
    choose_target,
    user_of,
)
from narrowcast.devices.flash.release import describe, release_id
from narrowcast.devices.flash.unit_texts import boot_unit, edge_unit
from narrowcast.devices.flash.wheelhouse import Wheel
from narrowcast.devices.targets import DeployPaths, load_target
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.errors import ConfigError

LAYOUT = layout_of("", DeployPaths())


def test_a_target_must_fit_the_board():
    assert choose_target(None, facts(), FlashOptions()).name == "rpi5"
    assert choose_target(load_target("arm64"), facts(), FlashOptions()).name == "arm64"
    with pytest.raises(WrongTargetError, match="x86-64 is x86_64; the board is Raspberry Pi 5"):
        choose_target(load_target("x86-64"), facts(), FlashOptions(allow_target=True))
    with pytest.raises(WrongTargetError, match="rpi5, not rpi4"):
        choose_target(load_target("rpi4"), facts(), FlashOptions())
    assert choose_target(load_target("rpi4"), facts(), FlashOptions(allow_target=True)).name == "rpi4"
    with pytest.raises(WrongTargetError, match="no target describes"):
        choose_target(None, facts(architecture="riscv64", model=""), FlashOptions())


def test_a_board_is_looked_at_before_anything_is_sent():
    pi = load_target("rpi5")
    assert check_board(facts(), pi, RIGHTS, FlashOptions()) == []
    odd = facts(clock=time.time() - 3600, power_sensors=[])
    notes = check_board(odd, load_target("jetson-orin-nano"), Rights("python3", "3.13", True), FlashOptions())
    assert [
        word for word in ("Python 3.13", "s behind", "TensorRT", "ina3221") if not any(word in n for n in notes)
    ] == []
    with pytest.raises(PreflightError, match="no module venv"):
        check_board(facts(venv=False), pi, RIGHTS, FlashOptions())
    brought = facts(executable="/home/pi/.local/share/uv/python/cpython-3.10/bin/python3.10")
    with pytest.raises(PreflightError, match=r"home folder.* UV_PYTHON_INSTALL_DIR=/opt/python"):
        check_board(brought, pi, RIGHTS, FlashOptions())
    assert check_board(brought, pi, RIGHTS, FlashOptions(services="supervised", prefix="/home/pi/narrowcast")) == []
    odd = Rights("/opt/$x/python3", "3.11", True)
    with pytest.raises(PreflightError, match="cannot stand in a unit"):
        check_board(facts(), pi, odd, FlashOptions())
    assert check_board(facts(), pi, odd, FlashOptions(services="supervised")) == []


def test_an_environment_must_fit_unpacked(tmp_path):
    path = tmp_path / "big-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big.py", bytes(1 << 20))
    wheels = [Wheel.of(path)]
    assert wheels[0].size < 1 << 12
    check_disk(facts(free_bytes=(1 << 20) + 100), wheels, 100)
    with pytest.raises(DiskSpaceError, match=r"wants 1\.05 MB with its environment"):
        check_disk(facts(free_bytes=1 << 20), wheels, 100)
    check_disk(facts(free_bytes=0), [], 100)  # what is sent is the board's own to judge


@pytest.mark.parametrize("user", ["-o", "x\nExecStart=/bin/sh", "a b", "x" * 40])
def test_a_user_is_a_name(user):
    with pytest.raises(ConfigError, match="--user"):
        FlashOptions(user=user)


def test_the_daemons_user_stays_until_another_is_named():
    def user(name, current=None, manager="systemd"):
        return user_of(FlashOptions(user=name), {"current": current}, manager)

    assert user(None) == "narrowcast"
    assert user(None, {"id": "flashed before users were kept"}) == "narrowcast"
    assert user("camera") == "camera"
    assert user(None, {"user": "camera"}) == "camera"
    assert user("", {"user": "camera"}) == user("root", {"user": "camera"}) == "root"
    assert user(None, {"user": "root"}) == "root"
    assert user(None, {"user": "camera"}, "supervised") == ""
    with pytest.raises(PreflightError, match="--user camera wants systemd"):
        user("camera", None, "supervised")
    with pytest.raises(BoardError, match="which is no user"):
        user(None, {"user": "x\nExecStart=/bin/sh"})


def test_another_user_makes_another_release(tmp_path):
    path = bundles.make().write(tmp_path / "m.ncb")
    bundle = Bundle.open(path, "device", trusted=[bundles.trusted_key()])
    flashing = Flashing(bundle, "pi@x", None, FlashOptions(to="tail:1", source="/x/"), Observer())
    there = {"edge": None, "tls": {}}

    def name(manager, user):
        return release_id(bundle, flashing._files(there, load_target("rpi5"), manager, user)[0], "env")

    assert name("systemd", "narrowcast") == name("systemd", "narrowcast") != name("systemd", "camera")
    assert describe(bundle, "x", "env", "rpi5", "camera")["user"] == "camera"


def test_a_bundle_must_be_for_such_a_board_and_newer():
    manifest = bundles.make(release=3).manifest
    pi, there = load_target("rpi5"), {"current": {"model": "tiny", "number": 4}, "highest": {"tiny": 4}}
    assert check_release(manifest, {"current": None, "highest": {}}, pi, FlashOptions()) == []
    with pytest.raises(DowngradeError, match="release 3 is older than 4"):
        check_release(manifest, there, pi, FlashOptions())
    assert check_release(manifest, there, pi, FlashOptions(allow_downgrade=True)) == []
    behind = {"current": {"model": "tiny", "number": 3}, "highest": {"tiny": 4}}
    assert check_release(manifest, behind, pi, FlashOptions()) == [], (
        "rolled back to it: the board says whether it is this one"
    )
    other = {"current": {"model": "cats"}, "highest": {"cats": 9}}
    assert check_release(manifest, other, pi, FlashOptions()) == ["the board runs another model, cats"]


def test_a_server_that_the_board_does_not_reach():
    with pytest.raises(ServerUnreachableError, match="--gate ready"):
        check_servers({"tail:1": "refused"}, FlashOptions(), 1)
    assert check_servers({"tail:1": "refused"}, FlashOptions(), 2) == ["the board does not reach tail:1: refused"]
    assert check_servers({"tail:1": "refused"}, FlashOptions(gate="ready"), 1)
    assert check_servers({"tail:1": "refused"}, FlashOptions(link_check=False), 1)


# ---------------------------------------------------------------- units


def test_units_know_the_boards_paths_python_and_gpu():
    boot = boot_unit(LAYOUT, "/usr/bin/python3")
    assert "ExecStart=/usr/bin/python3 -IS /opt/narrowcast/flash/agent.pyz boot" in boot
    assert "ReadWritePaths=/opt/narrowcast /etc/systemd/system\n" in boot
    assert "\nDeviceAllow=/dev/nvmap" not in edge_unit(LAYOUT, "narrowcast", load_target("rpi5").backends)
    jetson = edge_unit(LAYOUT, "camera", load_target("jetson-orin-nano").backends)
    assert "\nDeviceAllow=/dev/nvmap" in jetson
    assert "User=camera\n# The groups" in jetson, "in the user's own group, whatever its name"


def test_a_boards_path_that_is_called_as_another_usual_one_is_left_as_it_is():
    layout = layout_of(
        "", DeployPaths(program="/srv/etc/narrowcast", config="/opt/narrowcast", cache="/opt/narrowcast-2")
    )
    text = edge_unit(layout, "", ["onnxruntime"])
    assert (
        "ExecStart=/srv/etc/narrowcast/current/venv/bin/narrowcast stream --config /opt/narrowcast/edge.toml\n" in text
    )
    assert "ReadOnlyPaths=/srv/etc/narrowcast /opt/narrowcast\n" in text
    assert "NARROWCAST_CACHE=/opt/narrowcast-2 " in text


def test_a_boards_own_folders_are_made_by_systemd_or_opened_to_the_daemon():
    """Below /var/lib, /run and /var/cache systemd makes them; elsewhere the daemon is told of them, and may write there."""
    own = DeployPaths(state="/var/lib/cam/era", run="/run/camera", cache="/var/cache/camera")
    lines = edge_unit(layout_of("", own), "", ["onnxruntime"]).splitlines()
    for line in ("StateDirectory=cam/era", "RuntimeDirectory=camera", "CacheDirectory=camera"):
        assert line in lines
    assert "Environment=NARROWCAST_CACHE=/var/cache/camera PYTHONUNBUFFERED=1" in lines
    assert not any(line.startswith(("ReadWritePaths", "RequiresMountsFor")) for line in lines)
    lines = edge_unit(layout_of("/data/x", DeployPaths()), "", ["onnxruntime"]).splitlines()
    assert not any(line.startswith(("StateDirectory=", "RuntimeDirectory=", "CacheDirectory=")) for line in lines)
    for line in (
        "Environment=STATE_DIRECTORY=/data/x/state", "Environment=RUNTIME_DIRECTORY=/data/x/run",
        "Environment=NARROWCAST_CACHE=/data/x/cache PYTHONUNBUFFERED=1", "ReadOnlyPaths=/data/x /data/x/etc",
        "ReadWritePaths=-/data/x/state -/data/x/run -/data/x/cache",
        "RequiresMountsFor=/data/x/state /data/x/run /data/x/cache",
    ):  # fmt: skip
        assert line in lines


@pytest.mark.parametrize(
    ("prefix", "paths", "words"),
    [
        ("", {"state": "/home/pi/spool"}, "state is /home/pi/spool, where the daemon's unit does not get to"),
        ("", {"cache": "/var/tmp/x"}, "cache is /var/tmp/x"),
        ("/home/pi/x", {}, "program is /home/pi/x"),
        ("/srv/a b", {}, "cannot stand in a unit"),
        ("/srv/../home/x", {}, "cannot stand in a unit"),
    ],
)
def test_paths_that_the_daemons_unit_does_not_get_to_are_refused_before_anything_is_sent(prefix, paths, words):
    target = msgspec.structs.replace(load_target("rpi5"), paths=DeployPaths(**paths))
    with pytest.raises(PreflightError, match=words):
        check_board(facts(), target, RIGHTS, FlashOptions(prefix=prefix, services="systemd"))
    assert check_board(facts(), target, RIGHTS, FlashOptions(prefix=prefix, services="supervised")) == []
