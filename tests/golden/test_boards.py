"""Recorded boards with known answers: through the probe, the readers, the sampler's process and the energy figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.boards import GOLDEN, RECORDED, made, replay

from narrowcast.devices.conditions import ConditionReader
from narrowcast.devices.errors import SensorError
from narrowcast.devices.machine.recording import Recording
from narrowcast.devices.power import PowerSource, open_power
from narrowcast.devices.power.figures import energy_figures
from narrowcast.devices.power.sampler import Sampler
from narrowcast.devices.power.trace import Trace
from narrowcast.devices.probe import probe
from narrowcast.devices.record import record
from narrowcast.devices.targets import load_target, target_names
from narrowcast.devices.windows import Span, Windows

# Well inside the recordings' idle (0-2 s, 8-10 s) and loaded (2-8 s) stretches; 28 frames of 200 ms.
WINDOWS = Windows(
    idle_before=Span(0, 1_900_000_000),
    warm_up=Span(1_900_000_000, 2_200_000_000),
    loaded=Span(2_200_000_000, 7_800_000_000),
    idle_after=Span(8_100_000_000, 9_800_000_000),
    frame_ends_ns=[2_200_000_000 + k * 200_000_000 for k in range(1, 29)],
)


def opened(name: str) -> tuple[Recording, PowerSource]:
    machine = replay(name)
    source = open_power(load_target(GOLDEN[name].target), machine, meter=GOLDEN[name].meter)
    assert source is not None
    return machine, source


def sampled(machine: Recording, source: PowerSource) -> Trace:
    """Every frame of a recording, as the sampler would read it."""
    trace = Trace()
    for _ in machine.frames():
        trace.readings.append(source.reader.read())
    return trace


def test_every_recording_has_its_answers_and_says_where_it_is_from():
    assert {path.stem for path in RECORDED.glob("*.jsonl")} == GOLDEN.keys()
    assert {golden.target for golden in GOLDEN.values()} == set(target_names())
    for name in GOLDEN:
        assert "CAPTURES.md" in replay(name).header.source


@pytest.mark.parametrize("name", GOLDEN)
def test_probe_recognises_the_board_and_measures_its_total(name):
    golden = GOLDEN[name]
    board = probe(replay(name), meter=golden.meter)
    assert board.target == golden.target
    assert board.cpus >= 4
    power = board.measures[0]
    assert (power.by, power.why_not, power.missing) == (golden.reader, None, {})
    assert power.now.keys() == {"total_mw"} | {f"{rail}_mw" for rail in golden.rails}
    assert power.now["total_mw"] == pytest.approx(golden.idle_mw, rel=1e-4)
    assert power.scope


@pytest.mark.parametrize("name", GOLDEN)
def test_joules_per_frame_are_those_of_the_recording(name):
    golden = GOLDEN[name]
    machine, source = opened(name)
    assert source.reader.rails and set(source.reader.rails) == set(golden.rails)  # noqa: PT018
    series = sampled(machine, source).series(source.total, stall_s=source.stall_s)
    figures = energy_figures(series, WINDOWS)
    assert figures.why_not is None
    assert (figures.frames, figures.samples) == (28, 57)
    gross, net = figures.gross_joules_per_frame, figures.net_joules_per_frame
    assert gross.value == pytest.approx(golden.loaded_mw / 1000 * 0.2, rel=1e-4)
    assert net.value == pytest.approx((golden.loaded_mw - golden.idle_mw) / 1000 * 0.2, rel=1e-4)
    assert gross.low <= gross.value <= gross.high
    assert any("5.6 s only" in warning for warning in figures.warnings)


@pytest.mark.parametrize("name", ["rpi5", "x86-64"])
def test_the_samplers_process_reads_a_recording_as_this_process_does(name):
    machine, source = opened(name)
    sampler = Sampler(GOLDEN[name].target, RECORDED / f"{name}.jsonl", hz=10)
    info = sampler.start()
    sampler.wait(30)
    trace = sampler.stop()
    assert (info.sensor, info.rails, info.total) == (source.reader.name, source.reader.rails, source.total)
    assert len(trace.readings) == 101
    assert trace.cost.cpu_percent is None  # recorded time costs nothing
    there = energy_figures(trace.series(info.total, stall_s=info.stall_s), WINDOWS)
    here = energy_figures(sampled(machine, source).series(source.total, stall_s=source.stall_s), WINDOWS)
    assert there.gross_joules_per_frame.value == pytest.approx(here.gross_joules_per_frame.value)
    assert len(trace.conditions) >= 9


def test_conditions_of_the_boards():
    machine = replay("rpi5")
    reader = ConditionReader(machine)
    idle = reader.read()
    assert (idle.temperatures_c, idle.clocks_mhz) == ({"cpu-thermal": 50.1}, {"cpu-0": 1500.0})
    assert idle.throttled == idle.throttled_before == ["under-voltage", "throttled"]  # 0x50005
    assert idle.power_mode == "ondemand"
    machine.sleep(5)
    assert reader.read().clocks_mhz == {"cpu-0": 2400.0}
    orin = ConditionReader(replay("jetson-orin-nx")).read()
    assert (orin.power_mode, orin.throttled) == ("15W", [])
    assert ConditionReader(replay("x86-64")).read().throttle_counts == {"cpu0 thermal": 3}
    assert ConditionReader(replay("rpi4-registers")).read().temperatures_c == {}


def test_zones_of_one_type_and_counters_of_one_package_are_told_apart():
    cpu, zone = "sys/devices/system/cpu", "sys/class/thermal/thermal_zone"
    state = {}
    for k, (kind, millidegrees) in enumerate((("acpitz", "91000"), ("acpitz", "28000"), ("gpu", "40000"))):
        state |= {f"{zone}{k}/type": kind, f"{zone}{k}/temp": millidegrees}
    for k, (package, count) in enumerate((("0", "4"), ("0", "4"), ("1", "9"))):
        state |= {f"{cpu}/cpu{k}/thermal_throttle/package_throttle_count": count,
                  f"{cpu}/cpu{k}/topology/physical_package_id": package}  # fmt: skip
    now = ConditionReader(made(state)).read()
    assert now.temperatures_c == {"acpitz 0": 91.0, "acpitz 1": 28.0, "gpu": 40.0}
    assert now.throttle_counts == {"package 0 thermal": 4, "package 1 thermal": 9}


def test_probe_tells_an_alarm_beside_counters_that_have_not_moved():
    hwmon = "sys/class/hwmon/hwmon1"
    machine = made({f"{hwmon}/oc1_event_cnt": "0", f"{hwmon}/curr1_crit_alarm": "1"})
    (throttling,) = (one for one in probe(machine).measures if one.what == "throttling")
    assert throttling.now == {"oc1": 0.0, "over-current (curr1_crit_alarm)": 1.0}


@pytest.mark.parametrize("name", ["jetson-agx-orin", "rpi4-registers", "x86-64"])
def test_a_recorded_board_records_and_replays_the_same(name, tmp_path):
    """The recorder writes what a reader reads: a recording of a replay gives the replay's figures."""
    golden = GOLDEN[name]
    file = tmp_path / "again.jsonl"
    machine = replay(name)
    done = record(file, machine, 3.0, hz=10, meter=golden.meter, architecture=machine.header.architecture)
    assert (done.failed, done.why_no_power) == (0, None)
    again = Recording.open(file)
    assert probe(again, meter=golden.meter).target == golden.target
    machine = Recording.open(file)
    source = open_power(load_target(golden.target), machine, meter=golden.meter)
    trace = sampled(machine, source)
    series = trace.series(source.total, stall_s=source.stall_s)
    last = float(series.times[-1])
    whole = series.integrate(last - 0.4, last, max_gap_s=1.0)
    assert whole.watts == pytest.approx(golden.loaded_mw / 1000, rel=1e-4)


def test_serial_numbers_stay_out_of_recordings(tmp_path):
    board = json.loads((RECORDED / "rpi5.jsonl").read_text().splitlines()[1])
    board["set"]["proc/cpuinfo"] += "\nSerial\t\t: 10000000abcdef01"
    source = tmp_path / "with.jsonl"
    header = (RECORDED / "rpi5.jsonl").read_text().splitlines()[0]
    source.write_text(header + "\n" + json.dumps(board) + "\n")
    record(tmp_path / "out.jsonl", Recording.open(source), 0.2, architecture="aarch64")
    assert "abcdef01" not in Path(tmp_path / "out.jsonl").read_text()
    assert "processor" in Path(tmp_path / "out.jsonl").read_text()


def test_a_failure_is_recorded_as_it_was(tmp_path):
    lines = (RECORDED / "x86-64.jsonl").read_text().splitlines()[:2]
    frame = json.loads(lines[1])
    frame["set"]["sys/class/powercap/intel-rapl:0/energy_uj"] = {"error": "EACCES"}
    source = tmp_path / "refused.jsonl"
    source.write_text(lines[0] + "\n" + json.dumps(frame) + "\n")
    record(tmp_path / "out.jsonl", Recording.open(source), 0.2, architecture="x86_64")
    with pytest.raises(SensorError, match=r"sudo chmod a\+r"):
        Recording.open(tmp_path / "out.jsonl").read("sys/class/powercap/intel-rapl:0/energy_uj")
