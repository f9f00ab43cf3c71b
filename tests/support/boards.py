"""Recorded boards: the files that a board's sensors and kernel would show."""

from __future__ import annotations

from pathlib import Path

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
