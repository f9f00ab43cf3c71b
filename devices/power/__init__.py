"""Power readers: what a board's own sensors, or a meter on its supply, say.

Every reader reads through a :class:`~narrowcast.devices.machine.Machine`, so that recorded boards replay. A rail that is not
there is missing from the reading, and ``missing`` says why; a value that cannot be measured is never 0 and never an
estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

from narrowcast.devices.errors import SensorError
from narrowcast.devices.machine import Machine, open_machine
from narrowcast.devices.targets import PowerSettings, Target

_NOTHING: Mapping[str, float] = MappingProxyType({})
RESET = "RESET"  # SensorError.reason: a counter lost its place; energy across it is unknown


class Reading(NamedTuple):
    """One look at the sensors.

    Attributes:
        monotonic_ns: when, by the machine's monotonic clock: the middle of the look.
        milliwatts: per rail that has a power sensor.
        joules: per rail that has an energy counter: since the reader was opened, wrap-around undone.
    """

    monotonic_ns: int
    milliwatts: Mapping[str, float]
    joules: Mapping[str, float] = _NOTHING


class PowerReader(Protocol):
    """A board's power sensors.

    Attributes:
        name: of the kind of sensor.
        rails: what it can measure, by label.
        missing: rails that should be there and cannot be measured, and why, with the fix.
    """

    name: str
    rails: list[str]
    missing: dict[str, str]

    def read(self) -> Reading:
        """All rails now.

        Raises:
            SensorError: a rail that was there cannot be read.
        """


@dataclass(frozen=True)
class PowerSource:
    """A reader, and what its rails mean together.

    Attributes:
        reader: reads the rails.
        total: the rails whose sum is the board's power; empty where that cannot be measured. Never all rails: others
            lie inside.
        why_no_total: where ``total`` is empty: why.
        scope: what the total covers, in words.
        sample_hz: how often the sensor is worth reading.
        stall_s: for how long it may say the very same before it counts as stalled.
    """

    reader: PowerReader
    total: list[str]
    why_no_total: str | None
    scope: str
    sample_hz: float
    stall_s: float

    def total_mw(self, reading: Reading) -> float | None:
        """The board's power in milliwatts; None where it is not measured, or only counted as energy."""
        parts = [reading.milliwatts.get(rail) for rail in self.total]
        known = [part for part in parts if part is not None]
        return sum(known) if parts and len(known) == len(parts) else None


class Together:
    """Several readers as one; their rails' names differ."""

    def __init__(self, readers: Sequence[PowerReader]) -> None:
        self._readers = readers
        self.name = "+".join(reader.name for reader in readers)
        self.rails = [rail for reader in readers for rail in reader.rails]
        self.missing = {rail: why for reader in readers for rail, why in reader.missing.items()}

    def read(self) -> Reading:
        """See :class:`PowerReader`. The time is the first reader's."""
        readings = [reader.read() for reader in self._readers]
        milliwatts = {rail: value for reading in readings for rail, value in reading.milliwatts.items()}
        joules = {rail: value for reading in readings for rail, value in reading.joules.items()}
        return Reading(readings[0].monotonic_ns, milliwatts, joules)


def open_reader(target: Target, root: Machine | Path | str = "/") -> PowerReader | None:
    """The board's power reader; None where it has no sensor, or the sensor is not there.

    Args:
        target: says which sensors to look for.
        root: a machine, or what stands for ``/``: a folder or a file with a recorded board replays it.

    Raises:
        SensorError: a sensor is there and cannot be read.
    """
    machine = open_machine(root)
    kinds = [target.power.sensor, *target.power.also]
    found = [reader for kind in kinds if kind and (reader := _OPEN[kind](machine, target.power.rails)) is not None]
    return found[0] if len(found) == 1 else Together(found) if found else None


def open_power(target: Target, root: Machine | Path | str = "/", *, meter: str | None = None) -> PowerSource | None:
    """The board's power: its own sensors, or a ``meter`` on its supply instead (:mod:`narrowcast.devices.power.meters`).

    Raises:
        SensorError: the sensor is there and cannot be read.
        MeterError: no such meter, or its settings are wrong.
    """
    machine = open_machine(root)
    if meter:
        from narrowcast.devices.power.meters import open_meter

        return open_meter(meter, machine)
    reader = open_reader(target, machine)
    if reader is None:
        return None
    settings = target.power
    total, why = total_rails(settings, reader)
    return PowerSource(reader, total, why, settings.scope, settings.sample_hz, settings.stall_s)


def total_rails(settings: PowerSettings, reader: PowerReader) -> tuple[list[str], str | None]:
    """The rails that make up the board's total, or none and the reason.

    A pattern (``package-[0-9]``) stands for all such rails, also for those that cannot be read: a sum without one of
    its parts is no total.
    """
    known = [*reader.rails, *(rail for rail in reader.missing if rail not in reader.rails)]
    total: list[str] = []
    for name in settings.total:
        exact = not any(c in name for c in "*?[")
        total += [name] if exact else [rail for rail in known if fnmatchcase(rail, name)]
    lost = [rail for rail in total if rail not in reader.rails]
    if lost:
        why = "; ".join(
            f"{rail} is missing: {reader.missing.get(rail, 'the sensor has no such rail')}" for rail in lost
        )
        return [], f"no total: {why}"
    if not total:
        return (
            [],
            "no total: the target names no rails for it" if not settings.total else "no total: no such rails here",
        )
    return list(dict.fromkeys(total)), None


def total_mw(reading: Reading, target: Target) -> float | None:
    """The board's power in milliwatts: the sum of the rails that the target names as its total, and of no others.

    None where one of them is missing.
    """
    parts = [reading.milliwatts.get(rail) for rail in target.power.total]
    known = [part for part in parts if part is not None]
    return sum(known) if parts and len(known) == len(parts) else None


def number(machine: Machine, key: str) -> float:
    """A sensor's value. What is torn (empty, half a number) or busy is read again, twice.

    Raises:
        SensorError: it stays no number, cannot be read, or is gone.
    """
    for last in (False, False, True):
        try:
            text = machine.read(key)
            value = float(text)
        except FileNotFoundError as error:
            raise SensorError(f"{key} is gone: was the driver unloaded?") from error
        except SensorError as error:
            if last or error.reason not in {"EAGAIN", "EINTR", "EBUSY"}:
                raise
        except ValueError as error:
            if last:
                raise SensorError(f"{key} says {text[:40]!r}, which is no number") from error
        else:
            if value - value == 0:  # neither NaN nor infinite
                return value
            raise SensorError(f"{key} says {text[:40]!r}, which is no number")
    raise AssertionError("unreachable")


def text_or_none(machine: Machine, key: str) -> str | None:
    """A file's text; None where there is no such file."""
    try:
        return machine.read(key)
    except FileNotFoundError:
        return None


def _ina3221(machine: Machine, wanted: list[str]) -> PowerReader | None:
    from narrowcast.devices.power.ina3221 import Ina3221

    return Ina3221.find(machine, wanted)


def _pmic(machine: Machine, wanted: list[str]) -> PowerReader | None:
    from narrowcast.devices.power.pmic import Pmic

    return Pmic.find(machine, wanted)


def _ina2xx(machine: Machine, _wanted: list[str]) -> PowerReader | None:
    from narrowcast.devices.power.ina2xx import HwmonMeter

    return HwmonMeter.find(machine)


def _rapl(machine: Machine, _wanted: list[str]) -> PowerReader | None:
    from narrowcast.devices.power.rapl import Rapl

    return Rapl.find(machine)


def _nvml(machine: Machine, _wanted: list[str]) -> PowerReader | None:
    from narrowcast.devices.power.nvml import Nvml

    return Nvml.find(machine)


_OPEN: dict[str, Callable[[Machine, list[str]], PowerReader | None]] = {
    "ina3221": _ina3221,
    "pi5-pmic": _pmic,
    "ina2xx": _ina2xx,
    "rapl": _rapl,
    "nvml": _nvml,
}
