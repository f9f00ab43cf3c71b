"""``narrowcast probe`` on recorded boards."""

from __future__ import annotations

import json
import re
from importlib import resources

import pytest
from support.boards import GOLDEN, RECORDED

from narrowcast.cli import main

PI5 = str(RECORDED / "rpi5.jsonl")


def test_probe_shows_what_can_be_measured_and_what_not(capsys):
    assert main(["probe", "--root", PI5]) == 0
    out = capsys.readouterr().out
    assert "rpi5 (Raspberry Pi 5)" in out
    assert "pi5-pmic: total_mw 2738" in out
    assert "not its losses, nor USB" in out
    assert "throttling  under-voltage" in out
    assert main(["probe", "--root", str(RECORDED / "rpi4-registers.jsonl")]) == 0
    assert "--meter ina219:bus=1,address=0x40,shunt_ohm=0.1" in capsys.readouterr().out


def test_probe_takes_a_meter(capsys):
    meter = GOLDEN["rpi4-registers"].meter
    assert main(["probe", "--root", str(RECORDED / "rpi4-registers.jsonl"), "--meter", meter, "--json"]) == 0
    power = json.loads(capsys.readouterr().out)["measures"][0]
    assert power["by"] == "ina219"
    assert power["now"]["total_mw"] == pytest.approx(5.056 * 600)


def test_probe_samples_and_shows_the_cost(capsys):
    assert main(["probe", "--root", PI5, "--sample", "30", "--json"]) == 0
    taken = json.loads(capsys.readouterr().out)["sampled"]
    assert taken["samples"] == 101
    mean = (GOLDEN["rpi5"].idle_mw * 40 + GOLDEN["rpi5"].loaded_mw * 60) / 100
    assert taken["rails"]["total"]["mean_mw"] == pytest.approx(mean, rel=1e-3)
    assert taken["sampler_cpu_s"] > 0
    assert taken["sampler_cpu_percent"] is None


def test_probe_records_and_the_recording_replays(capsys, tmp_path):
    file = tmp_path / "board.jsonl"
    agx = str(RECORDED / "jetson-agx-orin.jsonl")
    assert (
        main(["probe", "--root", agx, "--architecture", "aarch64", "--record", str(file), "--seconds", "2", "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["frames"] == 21
    assert main(["probe", "--root", str(file), "--json"]) == 0
    board = json.loads(capsys.readouterr().out)
    assert board["target"] == "jetson-agx-orin"
    assert board["measures"][0]["now"]["total_mw"] == pytest.approx(GOLDEN["jetson-agx-orin"].idle_mw)


@pytest.mark.parametrize("name", ["my-board", "rpi4"])
def test_a_target_file_says_which_rails_whatever_it_calls_itself(capsys, tmp_path, name):
    """One of a name that no target has, and one of another board's name: the Pi 5's sensor, and one rail as the total."""
    text = resources.files("narrowcast.devices.targets").joinpath("rpi5.toml").read_text()
    text = text.replace('name = "rpi5"', f'name = "{name}"')
    file, recording = tmp_path / "mine.toml", tmp_path / "board.jsonl"
    file.write_text(re.sub(r"total = \[.*?\]", 'total = ["VDD_CORE"]', text, flags=re.DOTALL))
    for words in (["--root", PI5], ["--root", str(recording)]):
        assert main(["probe", *words, "--target", str(file), "--sample", "1", "--json", "--quiet"]) == 0
        rails = json.loads(capsys.readouterr().out)["sampled"]["rails"]
        assert rails["total"]["mean_mw"] == rails["VDD_CORE"]["mean_mw"] > 0
        if not recording.exists():
            taken = ["probe", *words, "--target", str(file), "--record", str(recording), "--seconds", "2", "--quiet"]
            assert main(taken) == 0
            assert "its power is not in it" not in capsys.readouterr().out


def test_a_boards_own_target_says_what_a_recording_holds(capsys, tmp_path):
    """Recognised as a board with another sensor, named as one with the sensor that it has."""
    text = (
        (RECORDED / "rpi5.jsonl").read_text().replace("Raspberry Pi 5 Model B", "My Board").replace("bcm2712", "none")
    )
    (tmp_path / "unknown.jsonl").write_text(text)
    words = [
        "probe",
        "--root",
        str(tmp_path / "unknown.jsonl"),
        "--record",
        str(tmp_path / "x.jsonl"),
        "--seconds",
        "1",
    ]
    assert main([*words, "--quiet"]) == 0
    assert "its power is not in it" in capsys.readouterr().out
    assert main([*words, "--quiet", "--target", "rpi5"]) == 0
    assert "its power is not in it" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--root", "{tmp}/none.jsonl"], "there is no"),
        (["--root", "{tmp}/notes.txt"], "no recorded board"),
        (["--record", "{tmp}/none/board.jsonl", "--seconds", "1"], "cannot be written"),
        (["--root", "{tmp}/empty", "--architecture", "aarch64", "--sample", "1"], "no power sensor here"),
    ],
)
def test_probe_says_what_is_wrong(capsys, tmp_path, words, message):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    assert main(["probe", *(word.format(tmp=tmp_path) for word in words)]) == 1
    assert message in capsys.readouterr().err
