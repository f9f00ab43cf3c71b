"""Recorded boards: the files that a board's sensors and kernel would show."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from narrowcast.devices.machine.recording import Failure, Frame, Header, Recording

# VDD_IN's 5072 mV and 1312 mA are from a real board; the other two are made up, on the sensor's grid of 8 mV and 8 mA.
READINGS = {"VDD_IN": (5072, 1312), "VDD_CPU_GPU_CV": (5064, 480), "VDD_SOC": (5064, 360)}


def record_orin(root: Path) -> Path:
    """Files of a Jetson Orin Nano under ``root``, which stands for ``/``."""
    sensor = root / "sys/class/hwmon/hwmon3"
    sensor.mkdir(parents=True)
    (sensor / "name").write_text("ina3221\n")
    for number, (label, (millivolts, milliamperes)) in enumerate(READINGS.items(), 1):
        (sensor / f"in{number}_label").write_text(f"{label}\n")
        (sensor / f"in{number}_input").write_text(f"{millivolts}\n")
        (sensor / f"curr{number}_input").write_text(f"{milliamperes}\n")
    (sensor / "in7_label").write_text("sum of shunt voltages\n")
    (sensor / "in7_input").write_text("11\n")
    other = root / "sys/class/hwmon/hwmon0"
    other.mkdir()
    (other / "name").write_text("tmp451\n")
    tree = root / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    (root / "proc/cpuinfo").write_text("".join(f"processor\t: {k}\n" for k in range(6)))
    (root / "proc/meminfo").write_text("MemTotal:        7802736 kB\n")
    (root / "etc").mkdir()
    (root / "etc/os-release").write_text('NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.4 LTS"\n')
    return root


RECORDED = Path(__file__).resolve().parents[1] / "fixtures" / "boards"


class Golden(NamedTuple):
    """What a recorded board must give. Worked out by hand from the values in the recording.

    Attributes:
        target: the board's.
        reader: the sensor's name.
        rails: what it can measure.
        idle_mw: the board's total, 0-2 s and 8-10 s.
        loaded_mw: 2-8 s.
        meter: where the board has no sensor of its own that is used.
    """

    target: str
    reader: str
    rails: list[str]
    idle_mw: float
    loaded_mw: float
    meter: str | None = None


_ORIN = ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]
_PI5 = [
    *("3V7_WL_SW", "3V3_SYS", "1V8_SYS", "DDR_VDD2", "DDR_VDDQ", "1V1_SYS"),
    *("0V8_SW", "VDD_CORE", "3V3_DAC", "3V3_ADC", "0V8_AON", "HDMI"),
]
_AGX = ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]
GOLDEN = {
    "jetson-orin-nano": Golden("jetson-orin-nano", "ina3221", _ORIN, 5072 * 640 / 1000, 5072 * 1312 / 1000),
    "jetson-orin-nx": Golden("jetson-orin-nx", "ina3221", _ORIN, 5072 * 640 / 1000, 5072 * 1312 / 1000),
    "jetson-xavier-nx": Golden("jetson-xavier-nx", "ina3221", _ORIN, 5048 * 504 / 1000, 5048 * 904 / 1000),
    "jetson-xavier-nx-jetpack4": Golden("jetson-xavier-nx", "ina3221", _ORIN, 2544, 4563),
    "jetson-nano": Golden("jetson-nano", "ina3221", ["POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"], 1384, 2729),
    "jetson-agx-orin": Golden(
        "jetson-agx-orin", "ina3221", _AGX, 12.008 * 220 + 4.968 * 900, 12.008 * 320 + 4.968 * 980
    ),
    # Sum over the twelve pairs of the capture; VDD_CORE is 6.22421 A x 0.861733 V of it, 1 A while idle.
    "rpi5": Golden("rpi5", "pi5-pmic", _PI5, 7239.8188 - 5224.21 * 0.861733, 7239.8188),
    "rpi4": Golden("rpi4", "ina2xx", ["external"], 3040, 5560),
    "rpi4-registers": Golden(
        "rpi4", "ina219", ["external"], 5.056 * 600, 5.056 * 1100, "ina219:bus=1,address=0x40,shunt_ohm=0.1"
    ),
    "jetson-agx-xavier": Golden(
        "jetson-agx-xavier",
        "ina3221",
        ["GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"],
        19.080 * (40 + 60 + 100 + 20) + 4.968 * 460,
        19.080 * (240 + 140 + 160 + 80) + 4.968 * 540,
    ),
    # The kernel's own power, in steps of 25 mW: not voltage times current.
    "arm64": Golden("arm64", "ina2xx", ["external"], 3725, 8400),
    "x86-64": Golden("x86-64", "rapl", ["package-0", "package-0/core", "package-0/dram", "psys"], 10_000, 40_000),
}


def replay(name: str) -> Recording:
    """A recorded board of ``tests/fixtures/boards``, at its first frame."""
    return Recording.open(RECORDED / f"{name}.jsonl")


def made(*frames: dict[str, str | Failure | None], step_s: float = 0.1, architecture: str = "x86_64") -> Recording:
    """A board of these files, commands and registers, one frame after the other."""
    header = Header(format="narrowcast-board", version=1, architecture=architecture)
    return Recording(header, [Frame(ns=round(k * step_s * 1e9), set=values) for k, values in enumerate(frames)])
