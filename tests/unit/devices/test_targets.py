"""Targets as files: the ones that come along are complete, a user's own work alike, and probe tells which one fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.boards import record_orin

from narrowcast.cli import main
from narrowcast.devices.errors import TargetError
from narrowcast.devices.probe import probe
from narrowcast.devices.targets import load_target, recognise, target_names

NAMES = [
    "arm64", "jetson-agx-orin", "jetson-agx-xavier", "jetson-nano", "jetson-orin-nano", "jetson-orin-nx",
    "jetson-xavier-nx", "rpi4", "rpi5", "x86-64",
]  # fmt: skip
CPU_ONLY = ["jetson-agx-xavier", "jetson-nano", "jetson-xavier-nx"]
OWN = """
name = "my-board"
title = "a board of mine"
architecture = "aarch64"
os = ["Debian 12"]
python = ["3.11"]
backends = ["onnxruntime"]
precisions = ["fp32"]
sources = ["its manual"]
[clocks]
show = ["a"]
fix = ["b"]
release = ["c"]
"""


@pytest.fixture
def own(tmp_path) -> Path:
    """A user's own target file."""
    path = tmp_path / "board.toml"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize("path", ["opt/x", "/opt/my board", "/opt/$HOME", "/opt/%n", "/opt/a'b", "/opt/x/", "/"])
def test_a_path_that_a_unit_cannot_name_is_refused(own, path):
    own.write_text(f'{OWN}[paths]\nprogram = "{path}"\n')
    with pytest.raises(TargetError, match="program is .*; a path from the root"):
        load_target(own)


def test_the_targets_are_these():
    assert target_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_complete(name):
    target = load_target(name)
    assert target.os
    assert target.python
    assert target.precisions
    assert target.sources
    assert target.clocks.show
    assert target.clocks.fix
    assert target.clocks.release
    assert all(path.startswith("/") for path in (target.paths.program, target.paths.bundles, target.paths.state))
    assert target.power.sensor
    assert target.power.fix
    assert target.power.scope
    if name not in ("arm64", "x86-64"):
        assert target.recognise
        assert target.compatible


def test_no_two_targets_are_recognised_by_the_same():
    words = [word for name in NAMES for word in load_target(name).compatible]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("name", CPU_ONLY)
def test_old_jetsons_run_on_the_cpu_with_a_python_brought_along_and_say_why(name):
    target = load_target(name)
    assert (target.backends, target.python_from) == (["onnxruntime"], "brought")
    (refused,) = target.refused
    assert refused.backend == "tensorrt"
    assert "Python 3.10" in refused.why


@pytest.mark.parametrize(
    ("model", "compatible", "name"),
    [
        ("Raspberry Pi 4 Model B Rev 1.4", "raspberrypi,4-model-b brcm,bcm2711", "rpi4"),
        ("Raspberry Pi Compute Module 4 Rev 1.0", "", "rpi4"),
        ("Raspberry Pi 5 Model B Rev 1.0", "", "rpi5"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "", "jetson-orin-nano"),
        ("NVIDIA Orin NX Developer Kit", "", "jetson-orin-nx"),
        ("A carrier board of ours", "ours,board nvidia,p3767-0000 nvidia,tegra234", "jetson-orin-nx"),
        ("A carrier board of ours", "ours,board nvidia,p3767-0004 nvidia,tegra234", "jetson-orin-nano"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "", "jetson-agx-orin"),
        ("A carrier board of ours", "ours,board nvidia,p3701-0004 nvidia,tegra234", "jetson-agx-orin"),
        ("NVIDIA Jetson Nano Developer Kit", "nvidia,p3450-0000 nvidia,tegra210", "jetson-nano"),
        ("NVIDIA Jetson Xavier NX Developer Kit", "", "jetson-xavier-nx"),
        ("Jetson-AGX", "nvidia,p2972-0000 nvidia,tegra194", "jetson-agx-xavier"),
        ("Rock 5B", "radxa,rock-5b rockchip,rk3588", "arm64"),
    ],
)
def test_boards_are_recognised_by_name_or_by_module(model, compatible, name):
    assert recognise(model, "aarch64", compatible.split()).name == name


def test_a_board_of_ones_own_is_a_file(own):
    target = load_target(own)
    assert (target.name, target.power.sensor, target.paths.program) == ("my-board", "", "/opt/narrowcast")
    assert load_target(str(own)) == target


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('title = "', 'titel = "'), "unknown key 'titel'; did you mean 'title'"),
        (("[clocks]", "[clocks]\nfixx = []"), r"unknown key 'fixx' in \[clocks\]; did you mean 'fix'"),
        (('"aarch64"', '"riscv64"'), "Invalid enum value 'riscv64'"),
        (('["onnxruntime"]', "[]"), "backends"),
        (('sources = ["its manual"]', ""), "missing required field `sources`"),
        (
            ("[clocks]", '[power]\nsensor = "ina3221"\nrails = ["A"]\ntotal = ["B"]\nscope = "x"\n[clocks]'),
            "total names",
        ),
        (("[clocks]", '[power]\nsensor = "ina3221"\n[clocks]'), "rails, total and scope"),
        (("[clocks]", '[power]\nrails = ["A"]\n[clocks]'), "sensor says what reads them"),
        (("[clocks]", "[power]\nsample_hz = 0\n[clocks]"), "sample_hz"),
        (("name =", "name"), "is not TOML"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(own, change, said):
    own.write_text(OWN.replace(*change))
    with pytest.raises(TargetError, match=said) as error:
        load_target(own)
    assert "board.toml" in str(error.value)


def test_a_file_that_cannot_be_read_says_so(tmp_path):
    with pytest.raises(TargetError, match="cannot be read"):
        load_target(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(TargetError, match="no text in UTF-8"):
        load_target(tmp_path / "binary.toml")


def test_probe_tells_jetpack_modules_cores_and_pythons(tmp_path):
    root = record_orin(tmp_path)
    (root / "etc/nv_tegra_release").write_text(
        "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64\n"
    )
    (root / "proc/device-tree/compatible").write_bytes(
        b"nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0"
    )
    (root / "proc/cpuinfo").write_text("processor : 0\nCPU implementer : 0x41\nCPU part : 0xd42\n" * 6)
    (root / "usr/bin").mkdir(parents=True)
    for name in ("python3.10", "python3.10-config", "python3"):
        (root / "usr/bin" / name).write_text("")
    found = probe(root, architecture="aarch64").as_dict()
    assert found["jetpack"] == "JetPack 6 (Jetson Linux 36.4.3)"
    assert found["compatible"][1] == "nvidia,p3767-0005"
    assert (found["cpu"], found["cpus"], found["pythons"]) == ("Cortex-A78AE", 6, ("3.10",))
    assert found["recorded"] is True
    assert found["advice"] == []


def test_probe_of_an_old_jetson_says_which_python_to_bring_and_why_not_tensorrt(tmp_path):
    tree = tmp_path / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "model").write_bytes(b"NVIDIA Jetson Nano Developer Kit\0")
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/python3.6").write_text("")
    board = probe(tmp_path, architecture="aarch64")
    told = {advice.what: advice.fix for advice in board.advice}
    assert board.target == "jetson-nano"
    assert "bindings for its own Python 3.6" in told["tensorrt is not used here"]
    assert told["its system has Python 3.6"].endswith("uv python install 3.10")
    power = board.measures[0]
    assert "run as root" in power.fix


def test_probe_of_a_pc_goes_by_dmi(tmp_path):
    dmi = tmp_path / "sys/class/dmi/id"
    dmi.mkdir(parents=True)
    (dmi / "sys_vendor").write_text("Example\n")
    (dmi / "product_name").write_text("Box 1\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nmodel name : A CPU\nflags : fpu hypervisor\n")
    board = probe(tmp_path, architecture="x86_64")
    assert (board.model, board.identity.cpu, board.identity.virtual, board.target) == (
        "Example Box 1",
        "A CPU",
        True,
        "x86-64",
    )


def test_the_command_takes_a_file_of_ones_own_and_says_what_does_not_fit(own, capsys):
    own.write_text(OWN.replace('"aarch64"', '"x86_64"').replace('["3.11"]', '["3.99"]'))
    assert main(["probe", "--target", str(own), "--architecture", "x86_64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"] == "my-board"
    assert any("is tested with 3.99" in advice["what"] for advice in found["advice"])
    assert main(["probe", "--target", str(own), "--architecture", "aarch64"]) == 0
    assert "a board of mine" in (shown := capsys.readouterr().out)
    assert "this machine is aarch64" in " ".join(shown.split())
    assert main(["probe", "--targets"]) == 0
    assert "jetson-agx-xavier" in capsys.readouterr().out


def test_the_command_refuses_a_target_that_is_none(capsys):
    assert main(["probe", "--target", "rpi6"]) == 1
    assert "did you mean 'rpi5'" in capsys.readouterr().err
