"""What goes wrong with power sensors: wrap-around, missing rails, torn reads, permissions, mirrors, wrong wiring."""

from __future__ import annotations

import errno
import subprocess
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from support.boards import made, replay

from narrowcast.devices.errors import MeterError, RecordingError, SensorError
from narrowcast.devices.machine import Folder, commands, i2c, nvml
from narrowcast.devices.machine.recording import Failure, Recording
from narrowcast.devices.power import RESET, open_power, open_reader
from narrowcast.devices.power.meters import open_meter
from narrowcast.devices.power.pmic import KEY, parse
from narrowcast.devices.power.rapl import Counter
from narrowcast.devices.probe import probe
from narrowcast.devices.targets import load_target

X86, PI5, ORIN, NANO = (load_target(name) for name in ("x86-64", "rpi5", "jetson-orin-nano", "jetson-nano"))
RAPL = "sys/class/powercap/intel-rapl"
REFUSED = Failure(error="EACCES")
IIO = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"


def zone(path: str, name: str, energy: str | Failure, top: str = "262143328850") -> dict[str, str | Failure]:
    return {f"{path}/name": name, f"{path}/energy_uj": energy, f"{path}/max_energy_range_uj": top}


# RAPL


def test_a_counter_that_wraps_around_goes_on():
    start = 262143328850 - 1_000_000
    machine = made(zone(f"{RAPL}:0", "package-0", str(start)), {f"{RAPL}:0/energy_uj": "500000"})
    reader = open_reader(X86, machine)
    machine.sleep(0.1)
    assert reader.read().joules == {"package-0": pytest.approx(1.5)}


def test_a_counter_that_was_set_back_is_an_error_and_goes_on_from_there():
    counter = Counter("package-0", 100e9, 262e9, 0)
    with pytest.raises(SensorError, match="set back or jumped") as caught:
        counter.add(1e6, 100_000_000)
    assert caught.value.reason == RESET
    assert counter.add(3e6, 200_000_000) == 2.0


def test_a_counter_that_may_have_wrapped_twice_is_an_error():
    counter = Counter("dram", 0.0, 65_712_999_613, 0)
    with pytest.raises(SensorError, match="may have wrapped twice"):
        counter.add(5e6, 120_000_000_000)


def test_an_unreadable_counter_is_an_error_with_the_fix_and_never_0():
    machine = made(zone(f"{RAPL}:0", "package-0", REFUSED))
    with pytest.raises(SensorError, match=r"sudo chmod a\+r /sys/class/powercap"):
        open_reader(X86, machine)
    power = probe(machine).measures[0]
    assert power.now is None
    assert "root only" in power.why_not


def test_a_total_without_one_of_its_packages_is_no_total():
    machine = made(zone(f"{RAPL}:0", "package-0", "1000000") | zone(f"{RAPL}:1", "package-1", REFUSED))
    source = open_power(X86, machine)
    assert source.reader.rails == ["package-0"]
    assert source.total == []
    assert "package-1 is missing: RAPL can be read by root only" in source.why_no_total


def test_two_packages_are_added_and_what_lies_inside_or_around_them_is_not():
    machine = made(
        zone(f"{RAPL}:0", "package-0", "1000000")
        | zone(f"{RAPL}:0:0", "core", "1")
        | zone(f"{RAPL}:0:1", "dram", "1")
        | zone(f"{RAPL}:1", "package-1", "2000000")
        | zone(f"{RAPL}:1:0", "core", "1")
        | zone(f"{RAPL}:2", "psys", "9")
        | zone(f"{RAPL}-mmio:0", "package-0", "1000000")
    )
    source = open_power(X86, machine)
    assert source.total == ["package-0", "package-1"]
    inside = ["package-0/core", "package-0/dram", "package-1/core", "psys"]
    assert sorted(source.reader.rails) == sorted([*source.total, *inside])


def test_mirrored_dies_are_counted_once_and_real_ones_both():
    def dies(second: str):
        return made(
            zone(f"{RAPL}:0", "package-0-die-0", "7000000000")
            | zone(f"{RAPL}:1", "package-0-die-1", second)
            | zone(f"{RAPL}:1:0", "core", "5")
        )

    assert open_power(X86, dies("7000001000")).total == ["package-0-die-0"]
    assert "package-0-die-1/core" not in open_reader(X86, dies("7000001000")).rails
    assert open_power(X86, dies("9000000000")).total == ["package-0-die-0", "package-0-die-1"]


def test_no_rapl_is_none_and_probe_says_what_to_do():
    assert open_reader(X86, made({})) is None
    assert "modprobe intel_rapl_msr" in probe(made({})).measures[0].why_not


# INA3221


def test_jetpack_4_power_is_the_power_file_not_voltage_times_current():
    assert open_reader(NANO, replay("jetson-nano")).read().milliwatts["POM_5V_IN"] == 1384  # not 4944 x 560 / 1000


def test_root_only_files_say_the_command():
    machine = replay("jetson-nano")
    reader = open_reader(NANO, machine)
    machine._state[f"{IIO}/in_power0_input"] = REFUSED
    with pytest.raises(SensorError, match=r"sudo chmod a\+r /sys/bus/i2c/drivers/ina3221x.*in_power0_input"):
        reader.read()


def test_a_torn_read_is_read_again():
    class Torn(Recording):
        torn = 2

        def read(self, key: str) -> str:
            text = super().read(key)
            if key.endswith("curr1_input") and self.torn:
                self.torn -= 1
                return ""
            return text

    whole = replay("jetson-orin-nano")
    machine = Torn(whole.header, whole._frames)
    assert open_reader(ORIN, machine).read().milliwatts["VDD_IN"] == 5072 * 640 / 1000
    machine.torn = 3
    with pytest.raises(SensorError, match="no number"):
        open_reader(ORIN, machine).read()


def test_a_channel_that_is_switched_off_says_how_to_switch_it_on():
    machine = replay("jetson-orin-nano")
    reader = open_reader(ORIN, machine)
    machine._state["sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon4/in1_input"] = Failure(error="ENODATA")
    with pytest.raises(SensorError, match=r"VDD_IN's channel is switched off: echo 1 \| sudo tee /sys.*in1_enable"):
        reader.read()


def test_agx_orin_leaves_out_nc_and_adds_three_rails_only():
    source = open_power(load_target("jetson-agx-orin"), replay("jetson-agx-orin"))
    assert "NC" not in source.reader.rails
    assert source.total == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"]


# The Pi 5's PMIC


def test_the_pmic_pairs_by_name_and_leaves_out_what_has_no_current():
    text = "A_RAIL_A current(7)=2.00000000A\nEXT5V_V volt(24)=5.09066000V\nA_RAIL_V volt(1)=0.50000000V"
    assert parse(text) == {"A_RAIL": 1000.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('error=1 error_msg="Command not registered"', "refused pmic_read_adc"),
        ("", "answered nothing"),
        ("VDD_CORE_A current(7)=6.224", None),
        ("VDD_CORE_A current(7)=6.22421000A\n VDD_CORE_V vo", "no current and no voltage"),
    ],
)
def test_an_answer_that_is_none_is_an_error(text, message):
    with pytest.raises(SensorError, match=message or "no current and no voltage"):
        parse(text)


def test_a_torn_answer_is_asked_for_again_and_a_lost_rail_is_an_error():
    machine = replay("rpi5")
    reader = open_reader(PI5, machine)
    machine._state[KEY] = "\n".join(line for line in machine.read(KEY).splitlines() if "HDMI_A" not in line)
    with pytest.raises(SensorError, match="left out HDMI"):
        reader.read()
    source = open_power(PI5, machine)
    assert source.total == []
    assert "HDMI is missing" in source.why_no_total


def test_firmware_messages():
    asked = commands.request("pmic_read_adc")
    assert len(asked) == int.from_bytes(asked[:4], "little") == 6 * 4 + 1024 + 4
    answered = bytearray(asked)
    answered[24:40] = b"throttled=0x0\0\0\0"
    assert commands.answer(bytes(answered), "get_throttled") == "throttled=0x0"
    answered[20] = 1
    with pytest.raises(SensorError, match="refused"):
        commands.answer(bytes(answered), "get_throttled")


def test_only_known_commands_run_and_missing_ones_are_not_there():
    with pytest.raises(SensorError, match="no command that narrowcast runs"):
        commands.run("rm -rf /")
    with pytest.raises(FileNotFoundError):
        commands.run("nvpmodel -q")


# INA2xx


def test_registers_of_an_ina219():
    source = open_meter("ina219:shunt_ohm=0.1", made({"i2c 1 0x40 0x01": "0x2af8", "i2c 1 0x40 0x02": "0x2782"}))
    assert source.reader.read().milliwatts == {"external": pytest.approx(5056 * 1100 / 1000)}


def test_registers_of_an_ina226_and_an_ina260():
    ids = {"i2c 1 0x41 0xfe": "0x5449", "i2c 1 0x41 0xff": "0x2260"}
    machine = made(ids | {"i2c 1 0x41 0x01": "0x0fa0", "i2c 1 0x41 0x02": "0x0fa0"})
    reader = open_meter("ina226:address=0x41,shunt_ohm=0.01", machine).reader
    assert reader.read().milliwatts == {"external": pytest.approx(5000 * 1000 / 1000)}  # 5 V; 10 mV over 10 mOhm
    with pytest.raises(MeterError, match="no ina260"):
        open_meter("ina260:address=0x41", machine)
    machine._state["i2c 1 0x41 0xff"] = "0x2271"  # any revision
    reader = open_meter("ina260:address=0x41", machine).reader
    assert reader.read().milliwatts == {"external": pytest.approx(5000 * 5000 / 1000)}


@pytest.mark.parametrize(
    ("shunt", "message"),
    [("0x7d00", "saturated"), ("0x8300", "saturated"), ("0xf000", "swap IN"), ("zero", "no register")],
)
def test_wrong_wiring_is_told(shunt, message):
    with pytest.raises(SensorError, match=message):
        open_meter("ina219:shunt_ohm=0.1", made({"i2c 1 0x40 0x01": shunt, "i2c 1 0x40 0x02": "0x2782"}))


def test_of_two_meters_nobody_can_tell_the_total():
    def meter(n: int, microwatts: str) -> dict[str, str]:
        path = f"sys/class/hwmon/hwmon{n}"
        return {f"{path}/name": "ina219", f"{path}/curr1_input": "900", f"{path}/power1_input": microwatts}

    machine = made(meter(2, "4500000") | meter(3, "1500000"), architecture="aarch64")
    source = open_power(load_target("rpi4"), machine)
    assert source.reader.read().milliwatts == {"external-1": 4500.0, "external-2": 1500.0}
    assert source.total == []
    assert "--meter hwmon:NAME" in source.why_no_total
    chosen = open_meter("hwmon:hwmon3", machine)
    assert chosen.total_mw(chosen.reader.read()) == 1500.0


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.EBUSY, "kernel driver holds"), (errno.EREMOTEIO, "check its wires"), (errno.EACCES, "by this user")],
)
def test_i2c_errors_say_what_to_do(number, message):
    assert message in str(i2c._explain("/dev/i2c-1", 0x40, OSError(number, "")))


def test_an_adapter_that_is_unplugged_is_a_failed_reading_until_it_is_back():
    machine = made({"i2c 1 0x40 0x01": "0x2af8", "i2c 1 0x40 0x02": "0x2782"})
    reader = open_meter("ina219:shunt_ohm=0.1", machine).reader
    kept = machine._state.pop("i2c 1 0x40 0x01")
    with pytest.raises(SensorError, match="i2c 1 0x40 is gone"):
        reader.read()
    machine._state["i2c 1 0x40 0x01"] = kept
    assert reader.read().milliwatts["external"] > 5000


def test_a_bus_that_is_not_there():
    with pytest.raises(MeterError, match="modprobe i2c-dev"):
        open_meter("ina219:bus=97,shunt_ohm=0.1", Folder(Path("/")))


# Meters


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ina21", "did you mean 'ina219'"),
        ("ina219:buss=1", "did you mean 'bus'"),
        ("ina219:bus=one", "is no number"),
        ("ina219:address=0x90,shunt_ohm=1", "0x08 to 0x77"),
        ("ina219:bus=1", "needs its shunt's resistance"),
        ("hwmon:hwmon9", "is no INA2xx meter"),
        ("support.meters:Plug", "cannot be imported"),
        ("support.no_such:Plug", "cannot be imported"),
        ("support.meters:Constant:much", "cannot be opened: ValueError"),
        ("support.meters:Nothing:1", "is a part of rails"),
    ],
)
def test_a_wrong_meter_is_told(text, message):
    with pytest.raises(MeterError, match=message):
        open_meter(text, made({}))


def test_a_meter_by_an_entry_point(monkeypatch):
    point = EntryPoint("plug", "support.meters:Constant", "narrowcast.meters")
    monkeypatch.setattr("narrowcast.devices.power.meters.entry_points", lambda group: [point])
    source = open_meter("plug:1500", made({}))
    assert (source.reader.name, source.total, source.sample_hz) == ("plug", ["wall"], 5.0)
    assert source.total_mw(source.reader.read()) == 1500.0
    with pytest.raises(MeterError, match="did you mean 'plug'"):
        open_meter("plugg", made({}))


def test_a_plugins_failures_are_failed_readings():
    assert open_meter("support.meters:Constant:4200", made({})).reader.read().milliwatts == {"wall": 4200.0}
    for text, message in [
        ("support.meters:Constant:-1", "the plug does not answer"),
        ("support.meters:Wrong:1", "has the rails wall"),
        ("support.meters:Constant:nan", "no number of milliwatts"),
    ]:
        with pytest.raises(SensorError, match=message):
            open_meter(text, made({})).reader.read()


# NVML


@pytest.fixture
def nvml_library(tmp_path, monkeypatch):
    source = Path(__file__).parents[2] / "support" / "fake_nvml.c"
    library = tmp_path / "libnvidia-ml.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setenv(nvml.LIBRARY, str(library))
    return library


def test_gpus_count_energy_beside_the_total(nvml_library, tmp_path, monkeypatch):
    live = Folder(Path("/"))

    class WithGpus(Recording):
        def read(self, key: str) -> str:
            return live.read(key) if key.startswith("nvml") else super().read(key)

    whole = replay("x86-64")
    source = open_power(X86, WithGpus(whole.header, whole._frames))
    assert source.reader.name == "rapl+nvml"
    assert source.total == ["package-0"]
    assert "no energy counter" in source.reader.missing["gpu-1"]
    first, second = source.reader.read(), source.reader.read()
    assert second.joules["gpu-0"] - first.joules["gpu-0"] == pytest.approx(1.5)
    assert live.read("nvml 0 name") == "Fake GPU"
    with pytest.raises(SensorError, match="Invalid Argument"):
        live.read("nvml 7 name")


def test_no_driver_is_no_gpu(monkeypatch):
    monkeypatch.setenv(nvml.LIBRARY, "libnone-of-that-name.so")
    with pytest.raises(FileNotFoundError, match="no NVIDIA driver"):
        nvml.figure("count")


# Recordings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1"),
        ("no json\n", "line 1"),
        ('{"format": "other", "version": 1, "architecture": "x"}\n', "line 1"),
        ('{"format": "narrowcast-board", "version": 1, "architecture": "x"}\n', "one frame or more"),
        ('{"format": "narrowcast-board", "version": 1, "architecture": "x"}\n{"ns": "now", "set": {}}\n', "line 2"),
        (
            '{"format": "narrowcast-board", "version": 1, "architecture": "x"}\n'
            '{"ns": 5, "set": {}}\n{"ns": 4, "set": {}}\n',
            "in the order of time",
        ),
    ],
)
def test_a_file_that_is_no_recording_says_where(tmp_path, text, message):
    (tmp_path / "board.jsonl").write_text(text)
    with pytest.raises(RecordingError, match=message):
        probe(tmp_path / "board.jsonl")
