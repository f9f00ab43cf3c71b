"""What this board is, what runs the head on it, and what can be measured."""

from __future__ import annotations

import importlib.util
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from narrowcast.devices.conditions import ConditionReader
from narrowcast.devices.errors import MeterError, SensorError
from narrowcast.devices.machine import Machine, open_machine
from narrowcast.devices.machine.recording import Recording
from narrowcast.devices.power import PowerSource, Reading, open_power
from narrowcast.devices.targets import Target, recognise
from narrowcast.transport.coder.native import load as load_kernel


@dataclass
class Measurable:
    """One quantity: measurable or not, and why.

    Attributes:
        what: for instance ``power``.
        by: the sensor; None where there is none.
        now: its present value, by rail; None where it cannot be measured.
        why_not: where it, or its total, cannot: the reason, and the fix where there is one.
        missing: by rail: why that one cannot be measured.
        scope: of power: what the total covers.
        sample_hz: of power: how often it is worth reading.
    """

    what: str
    by: str | None = None
    now: dict[str, float] | None = None
    why_not: str | None = None
    missing: dict[str, str] = field(default_factory=dict)
    scope: str | None = None
    sample_hz: float | None = None


@dataclass
class Board:
    """What :func:`probe` found; None is "cannot be told"."""

    target: str | None
    title: str | None
    model: str | None
    architecture: str
    cpus: int
    memory_bytes: int | None
    os: str | None
    kernel: str | None
    python: str
    backends: dict[str, str | None] = field(default_factory=dict)
    coder: str = "python"
    measures: list[Measurable] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def probe(root: Machine | str | Path = "/", *, architecture: str | None = None, meter: str | None = None) -> Board:
    """Looks at this machine, or at a recorded board.

    Args:
        root: a machine, or what stands for ``/``. A folder or a file with a recorded board replays it; what only the running
            system knows (Python, installed libraries) is this machine's.
        architecture: of a recorded board; what the recording says, or this machine's, if None.
        meter: measures power instead of the board's own sensors; see :mod:`narrowcast.devices.power.meters`.

    Raises:
        RecordingError: ``root`` is a file that is no recording.
    """
    machine = open_machine(root)
    architecture = architecture or _architecture(machine)
    model = _first_line(machine, "proc/device-tree/model")
    target = recognise(model or "", architecture)
    return Board(
        target=target.name if target else None,
        title=target.title if target else None,
        model=model,
        architecture=architecture,
        cpus=_cpus(machine),
        memory_bytes=_memory(machine),
        os=_os_name(machine),
        kernel=_first_line(machine, "proc/sys/kernel/osrelease"),
        python=platform.python_version(),
        backends={name: _version(name) for name in ("onnxruntime", "tensorrt")},
        coder="c" if load_kernel() is not None else "python",
        measures=[_power(target, machine, meter), *_conditions(machine, target)],
    )


def preferred_backends(root: Machine | str | Path = "/", *, architecture: str | None = None) -> list[str]:
    """What runs networks on this board, best first: its target's backends; ONNX Runtime where no target describes it.

    Args:
        root: as of :func:`probe`.
        architecture: likewise.
    """
    machine = open_machine(root)
    model = _first_line(machine, "proc/device-tree/model")
    target = recognise(model or "", architecture or _architecture(machine))
    return list(target.backends) if target else ["onnxruntime"]


def _architecture(machine: Machine) -> str:
    return machine.header.architecture if isinstance(machine, Recording) else platform.machine()


_NO_SENSOR = {
    "ina3221": "no INA3221 under /sys/class/hwmon or /sys/bus/i2c/drivers; is its driver loaded (lsmod | grep ina)?",
    "pi5-pmic": "no /dev/vcio and no vcgencmd: sudo apt install raspi-utils (Raspberry Pi OS has it)",
    "ina2xx": (
        "this board has no power sensor of its own: wire an INA219, INA226 or INA260 to its supply and its I2C pins, then "
        "--meter ina219:bus=1,address=0x40,shunt_ohm=0.1; or any other meter (docs/power.md)"
    ),
    "rapl": "no RAPL under /sys/class/powercap: sudo modprobe intel_rapl_msr; virtual machines mostly hide it",
}


def _power(target: Target | None, machine: Machine, meter: str | None) -> Measurable:
    if target is None:
        return Measurable("power", why_not="no target describes this board")
    sensor = meter or target.power.sensor
    if not sensor:
        return Measurable("power", why_not=f"no power reader for {target.title}")
    try:
        source = open_power(target, machine, meter=meter)
        if source is None:
            return Measurable("power", sensor, why_not=_NO_SENSOR[sensor])
        now = _milliwatts(source, machine)
    except (MeterError, SensorError) as error:
        return Measurable("power", sensor, why_not=str(error))
    shown = {"total_mw": sum(now[rail] for rail in source.total)} if source.total else {}
    shown |= {f"{rail}_mw": value for rail, value in now.items()}
    reader = source.reader
    return Measurable("power", reader.name, shown, source.why_no_total, reader.missing, source.scope, source.sample_hz)


def _milliwatts(source: PowerSource, machine: Machine) -> dict[str, float]:
    """Every rail's power; a counter's is the mean over a fifth of a second."""
    first = source.reader.read()
    if not first.joules:
        return dict(first.milliwatts)
    machine.sleep(0.2)
    last = source.reader.read()
    seconds = (last.monotonic_ns - first.monotonic_ns) / 1e9
    if seconds <= 0:
        raise SensorError("the recording is too short to tell an energy counter's power")
    return dict(last.milliwatts) | _mean(first, last, seconds)


def _mean(first: Reading, last: Reading, seconds: float) -> dict[str, float]:
    return {rail: 1000 * (joules - first.joules[rail]) / seconds for rail, joules in last.joules.items()}


def _conditions(machine: Machine, target: Target | None) -> list[Measurable]:
    """Temperatures, clocks, throttling and power mode; each present, or why not."""
    now = ConditionReader(machine).read()
    throttled = None if now.throttled is None else dict.fromkeys(now.throttled, 1.0)
    counts = {name: float(count) for name, count in now.throttle_counts.items()}
    seen: list[tuple[str, dict[str, float] | None, str]] = [
        ("temperature", now.temperatures_c or None, "no zone under /sys/class/thermal: virtual machines have none"),
        ("clocks", now.clocks_mhz or None, "no policy under /sys/devices/system/cpu/cpufreq"),
        ("throttling", counts or throttled, "neither vcgencmd nor a throttle counter of the kernel tells"),
    ]
    found = [Measurable(what, None, values, None if values is not None else why) for what, values, why in seen]
    mode = "no nvpmodel and no governor" if now.power_mode is None else None
    command = target.power_mode_command if target else ""
    by = f"{now.power_mode} ({command})" if now.power_mode and command else now.power_mode
    return [*found, Measurable("power mode", by, None, mode)]


def _first_line(machine: Machine, key: str) -> str | None:
    text = _text(machine, key)
    return text.splitlines()[0].rstrip("\0") if text else None


def _text(machine: Machine, key: str) -> str | None:
    try:
        return machine.read(key)
    except (OSError, SensorError):
        return None


def _cpus(machine: Machine) -> int:
    if machine.running:
        return len(os.sched_getaffinity(0))
    return sum(line.startswith("processor") for line in (_text(machine, "proc/cpuinfo") or "").splitlines())


def _memory(machine: Machine) -> int | None:
    try:
        for line in (_text(machine, "proc/meminfo") or "").splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    except (ValueError, IndexError):
        return None
    return None


def _os_name(machine: Machine) -> str | None:
    lines = (_text(machine, "etc/os-release") or "").splitlines()
    return next((line.partition("=")[2].strip('"') for line in lines if line.startswith("PRETTY_NAME=")), None)


def _version(module: str) -> str | None:
    """The installed version of a library, without importing it; None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    if importlib.util.find_spec(module) is None:
        return None
    try:
        return version(module)
    except PackageNotFoundError:
        return "unknown"
