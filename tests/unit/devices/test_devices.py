"""Targets, probe, power and stage times, on recorded boards."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.boards import READINGS, record_orin

from narrowcast.devices.errors import SensorError, TargetError
from narrowcast.devices.power import Reading, open_reader, total_mw
from narrowcast.devices.probe import preferred_backends, probe
from narrowcast.devices.stages import StageTimer
from narrowcast.devices.targets import load_target, recognise, target_names

ORIN = load_target("jetson-orin-nano")


@pytest.fixture
def orin(tmp_path) -> Path:
    """A recorded Jetson Orin Nano."""
    return record_orin(tmp_path)


def test_boards_are_recognised_by_what_they_say():
    assert recognise("Raspberry Pi 5 Model B Rev 1.0", "aarch64").name == "rpi5"
    assert recognise("NVIDIA Jetson Orin Nano Developer Kit", "aarch64").name == "jetson-orin-nano"
    assert recognise("Some Board", "aarch64").name == "arm64"
    assert recognise("", "x86_64").name == "x86-64"
    assert recognise("", "riscv64") is None


def test_backends_come_in_the_targets_order(orin, tmp_path):
    assert preferred_backends(orin, architecture="aarch64") == ["tensorrt", "onnxruntime"]
    assert preferred_backends(tmp_path / "empty", architecture="x86_64") == ["onnxruntime"]
    assert preferred_backends(tmp_path / "empty", architecture="riscv64") == ["onnxruntime"]
    assert preferred_backends(orin, architecture="aarch64", target="rpi5") == ["onnxruntime"]
    assert preferred_backends(tmp_path / "empty", target="jetson-orin-nano") == ["tensorrt", "onnxruntime"]


def test_no_such_target():
    with pytest.raises(TargetError, match="did you mean 'rpi5'"):
        load_target("rpi55")


def test_power_is_voltage_times_current_per_rail(orin):
    reader = open_reader(ORIN, orin)
    assert reader.name == "ina3221"
    assert reader.rails == list(READINGS)
    before = time.monotonic_ns()
    reading = reader.read()
    assert before <= reading.monotonic_ns <= time.monotonic_ns()
    assert reading.milliwatts == {label: v * i / 1000 for label, (v, i) in READINGS.items()}


def test_the_total_is_the_input_rail_alone_and_never_a_sum_of_parts_of_it(orin):
    reading = open_reader(ORIN, orin).read()
    assert total_mw(reading, ORIN) == 5072 * 1312 / 1000
    assert total_mw(Reading(0, {"VDD_SOC": 1.0}), ORIN) is None
    assert total_mw(Reading(0, {}), load_target("rpi5")) is None


def test_the_hwmon_number_does_not_matter_and_nc_is_not_a_rail(orin):
    (orin / "sys/class/hwmon/hwmon3").rename(orin / "sys/class/hwmon/hwmon17")
    (orin / "sys/class/hwmon/hwmon17/in2_label").write_text("NC\n")
    assert open_reader(ORIN, orin).rails == ["VDD_IN", "VDD_SOC"]


def test_two_sensors_read_as_one(orin):
    second = orin / "sys/class/hwmon/hwmon4"
    second.mkdir()
    (second / "name").write_text("ina3221\n")
    (orin / "sys/class/hwmon/hwmon3/in3_label").write_text("NC\n")
    for name, text in (("in2_label", "VDD_SOC"), ("in2_input", "5000"), ("curr2_input", "40")):
        (second / name).write_text(text)
    assert open_reader(ORIN, orin).read().milliwatts["VDD_SOC"] == 200.0


def test_no_sensor_is_none_not_zero(tmp_path):
    assert open_reader(ORIN, tmp_path) is None
    assert open_reader(load_target("x86-64"), tmp_path) is None


@pytest.mark.parametrize("text", ["", "garbage", "12 mA"])
def test_a_value_that_is_no_number_is_an_error_not_zero(orin, text):
    reader = open_reader(ORIN, orin)
    (orin / "sys/class/hwmon/hwmon3/curr1_input").write_text(text)
    with pytest.raises(SensorError, match="no number"):
        reader.read()


def test_a_sensor_that_vanishes_is_an_error(orin):
    reader = open_reader(ORIN, orin)
    (orin / "sys/class/hwmon/hwmon3/in1_input").unlink()
    with pytest.raises(SensorError, match="is gone"):
        reader.read()


def test_a_sensor_that_may_not_be_read_says_so(orin, monkeypatch):
    def refused(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(SensorError, match="cannot be read by this user"):
        open_reader(ORIN, orin)


def test_probe_tells_what_a_recorded_board_is(orin):
    board = probe(orin, architecture="aarch64")
    assert (board.target, board.model) == ("jetson-orin-nano", "NVIDIA Jetson Orin Nano Developer Kit")
    assert (board.cpus, board.memory_bytes, board.os) == (6, 7802736 * 1024, "Ubuntu 22.04.4 LTS")
    power = board.measures[0]
    assert power.now["total_mw"] == power.now["VDD_IN_mw"] == 5072 * 1312 / 1000
    assert power.why_not is None


def test_probe_says_why_not(orin, tmp_path):
    (orin / "sys/class/hwmon/hwmon3/in1_label").write_text("NC\n")
    power = probe(orin, architecture="aarch64").measures[0]
    assert "total_mw" not in power.now
    assert "VDD_IN is missing" in power.why_not
    (orin / "sys/class/hwmon/hwmon3/name").write_text("other\n")
    power = probe(orin, architecture="aarch64").measures[0]
    assert power.now is None
    assert "is its driver loaded" in power.why_not
    nothing = probe(tmp_path / "empty", architecture="riscv64").measures[0]
    assert nothing.now is None
    assert "no target" in nothing.why_not


def test_probe_of_this_machine():
    board = probe()
    assert board.target in target_names()
    assert board.cpus >= 1
    assert board.backends["onnxruntime"]


def test_stage_times_are_summed_up():
    timer = StageTimer()
    for value in range(1, 101):
        timer.add("head", float(value))
    timer.add_all({"tail": 2.0, "head": 50.5})
    head, tail = timer.summary()
    assert (head.stage, head.frames, tail.stage, tail.frames) == ("head", 101, "tail", 1)
    assert head.p50_ms == pytest.approx(50.5)
    assert head.p90_ms == pytest.approx(90.0, abs=1)
    assert head.as_dict()["p99_ms"] == head.p99_ms


def test_a_block_that_fails_is_not_counted():
    timer = StageTimer()
    with timer.stage("good"):
        pass
    with pytest.raises(ZeroDivisionError), timer.stage("bad"):
        _ = 1 // 0
    assert [stage.stage for stage in timer.summary()] == ["good"]
    assert timer.summary()[0].mean_ms >= 0
