"""What this board is, what runs the head on it, and what can be measured."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from narrowcast.devices.conditions import ConditionReader
from narrowcast.devices.errors import MeterError, SensorError
from narrowcast.devices.identity import Identity, identify
from narrowcast.devices.machine import Machine, open_machine
from narrowcast.devices.machine.recording import Recording
from narrowcast.devices.power import PowerSource, Reading, open_power
from narrowcast.devices.targets import Target, load_target, recognise
from narrowcast.transport.coder.native import load as load_kernel

_METER = "wire an INA219, INA226 or INA260, or another meter, into its supply"
_OWN_TARGET = "describe it in a file of your own (docs/targets.md), and name that: --target my-board.toml"


@dataclass
class Measurable:
    """One quantity: measurable or not, and why.

    Attributes:
        what: for instance ``power``.
        by: the sensor; None where there is none.
        now: its present value, by rail; None where it cannot be measured.
        why_not: where it cannot, or not wholly: the reason.
        fix: what to do about it.
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
    fix: str | None = None


@dataclass
class Advice:
    """Something that does not fit, and what to do about it."""

    what: str
    fix: str


@dataclass
class Board:
    """What :func:`probe` found; None is "cannot be told".

    Attributes:
        target: the kind of board that it is.
        title: its name.
        identity: what the machine says of itself.
        architecture: of its CPU.
        cpus: that this process may use.
        python: that runs this.
        backends: version by library; None where it is not installed.
        coder: ``c`` or ``python``.
        measures: what can be measured, and what not.
        advice: what does not fit the target.
        recorded: whether it is another board's files that were looked at: Python and libraries are this machine's then.
    """

    target: str | None
    title: str | None
    identity: Identity
    architecture: str
    cpus: int
    python: str
    backends: dict[str, str | None] = field(default_factory=dict)
    coder: str = "python"
    measures: list[Measurable] = field(default_factory=list)
    advice: list[Advice] = field(default_factory=list)
    recorded: bool = False

    @property
    def model(self) -> str | None:
        """What the board calls itself."""
        return self.identity.model

    @property
    def memory_bytes(self) -> int | None:
        """In all."""
        return self.identity.memory_bytes

    @property
    def os(self) -> str | None:
        """The operating system."""
        return self.identity.os

    @property
    def kernel(self) -> str | None:
        """Its kernel's release."""
        return self.identity.kernel

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the identity's facts beside the others."""
        found = asdict(self)
        return {**found.pop("identity"), **found}


def probe(
    root: Machine | str | Path = "/",
    *,
    architecture: str | None = None,
    meter: str | None = None,
    target: str | Path | None = None,
) -> Board:
    """Looks at this machine, or at a recorded board.

    Args:
        root: a machine, or what stands for ``/``. A folder or a file with a recorded board replays it; what only the running
            system knows (Python, installed libraries) is this machine's.
        architecture: of a recorded board; what the recording says, or this machine's, if None.
        meter: measures power instead of the board's own sensors; see :mod:`narrowcast.devices.power.meters`.
        target: the kind of board, a name or a file of one's own; recognised if None.

    Raises:
        RecordingError: ``root`` is a file that is no recording.
        TargetError: there is no such target.
    """
    machine = open_machine(root)
    architecture = architecture or _architecture(machine)
    identity = identify(machine)
    kind = _kind(target, identity, architecture)
    recorded = not machine.running
    board = Board(
        target=kind.name if kind else None,
        title=kind.title if kind else None,
        identity=identity,
        architecture=architecture,
        cpus=identity.cpus if recorded else len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        backends={name: _version(name) for name in ("onnxruntime", "tensorrt")},
        coder="c" if load_kernel() is not None else "python",
        measures=[_power(kind, machine, meter), *_conditions(machine, kind)],
        recorded=recorded,
    )
    board.advice = list(_advice(board, kind))
    return board


def preferred_backends(
    root: Machine | str | Path = "/", *, architecture: str | None = None, target: str | Path | None = None
) -> list[str]:
    """What runs networks on this board, best first: its target's backends; ONNX Runtime where no target describes it.

    Args:
        root: as of :func:`probe`.
        architecture: likewise.
        target: likewise.

    Raises:
        TargetError: there is no such target.
    """
    machine = open_machine(root)
    kind = _kind(target, identify(machine), architecture or _architecture(machine))
    return list(kind.backends) if kind else ["onnxruntime"]


def _kind(target: str | Path | None, identity: Identity, architecture: str) -> Target | None:
    """The board's target: the one that is named, else the one that it is recognised as."""
    return load_target(target) if target else recognise(identity.model or "", architecture, identity.compatible)


def _architecture(machine: Machine) -> str:
    return machine.header.architecture if isinstance(machine, Recording) else platform.machine()


def _advice(board: Board, target: Target | None) -> Iterator[Advice]:
    """What does not fit the target."""
    if target is None:
        yield Advice(f"no target describes this board ({board.architecture})", _OWN_TARGET)
        return
    if target.architecture != board.architecture:
        yield Advice(
            f"{target.name} is {target.architecture}; this machine is {board.architecture}", "name another --target"
        )
    for one in target.refused:
        yield Advice(f"{one.backend} is not used here", one.why)
    own = board.identity.pythons
    if target.python_from == "brought" and not set(own) & set(target.python):
        has = f"its system has Python {', '.join(own)}" if own else "its system's Python is too old"
        yield Advice(has, f"bring Python {target.python[-1]} along: uv python install {target.python[-1]}")
    if board.recorded:
        return
    python = ".".join(board.python.split(".")[:2])
    if python not in target.python:
        yield Advice(
            f"Python {python} runs this; {target.title} is tested with {', '.join(target.python)}",
            f"make the environment with one of these: python{target.python[-1]} -m venv {target.paths.program}",
        )
    if not any(board.backends.get(name) for name in target.backends):
        yield Advice(f"none of {', '.join(target.backends)} is installed", "pip install 'narrowcast[head]'")
    elif "tensorrt" in target.backends and not board.backends.get("tensorrt"):
        yield Advice(
            "TensorRT is not found from this environment: networks run on the CPU",
            "sudo apt install python3-libnvinfer; make the environment with python3 -m venv --system-site-packages",
        )
    if board.coder != "c":
        yield Advice("no C kernel: coding is slow", "sudo apt install gcc python3-dev, then install narrowcast again")


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
        return Measurable("power", why_not="no target describes this board", fix=_OWN_TARGET)
    sensor = meter or target.power.sensor
    if not sensor:
        return Measurable("power", why_not=f"no power reader for {target.title}", fix=_METER)
    try:
        source = open_power(target, machine, meter=meter)
        if source is None:
            return Measurable("power", sensor, why_not=_NO_SENSOR[sensor], fix=target.power.fix or None)
        now = _milliwatts(source, machine)
    except (MeterError, SensorError) as error:
        return Measurable("power", sensor, why_not=str(error), fix=target.power.fix or None)
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
    slowed = {**counts, **(throttled or {})} or throttled
    seen: list[tuple[str, dict[str, float] | None, str]] = [
        ("temperature", now.temperatures_c or None, "no zone under /sys/class/thermal: virtual machines have none"),
        ("clocks", now.clocks_mhz or None, "no policy under /sys/devices/system/cpu/cpufreq"),
        ("throttling", slowed, "neither vcgencmd nor a throttle counter of the kernel tells"),
    ]
    found = [Measurable(what, None, values, None if values is not None else why) for what, values, why in seen]
    mode = "no nvpmodel and no governor" if now.power_mode is None else None
    command = target.clocks.show[0] if target and target.clocks.set_mode else ""
    by = f"{now.power_mode} ({command})" if now.power_mode and command else now.power_mode
    return [*found, Measurable("power mode", by, None, mode)]


def _version(module: str) -> str | None:
    """The installed version of a library, without importing it; None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    if importlib.util.find_spec(module) is None:
        return None
    try:
        return version(module)
    except PackageNotFoundError:
        return "unknown"
