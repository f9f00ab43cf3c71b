"""``narrowcast probe`` on recorded boards."""

from __future__ import annotations

import json

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
