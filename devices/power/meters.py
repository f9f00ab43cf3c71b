"""Meters on a board's supply: ``--meter NAME:settings``. Ours for INA2xx chips, and anybody's by a class of about 20 lines.

A meter's class has ``rails``, ``total`` (those that make up the board's power) and ``read()``, which gives milliwatts
by rail; it is made with the settings' text. It is named as ``module:Class``, or by an entry point in the group
``narrowcast.meters``::

    class Plug:                                     # a wall plug that answers JSON over HTTP
        rails = total = ["wall"]
        scope = "everything behind the plug, with its supply"
        sample_hz = 2.0

        def __init__(self, settings: str) -> None:  # --meter my_plug:Plug:192.168.1.40
            self.url = f"http://{settings}/power"

        def read(self) -> dict[str, float]:
            with urllib.request.urlopen(self.url, timeout=1) as answer:
                return {"wall": 1000 * json.load(answer)["watts"]}
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from narrowcast.devices.errors import MeterError, SensorError
from narrowcast.devices.machine import Machine
from narrowcast.devices.power import PowerReader, PowerSource, Reading
from narrowcast.devices.power.ina2xx import CHIPS, RAIL, HwmonMeter, RegisterMeter
from narrowcast.transport.structs import nearest

GROUP = "narrowcast.meters"
_SUPPLY = "what flows through the meter: the whole board, where that is on its supply"


class Meter(Protocol):
    """What anybody's meter is. ``scope``, ``sample_hz`` (10) and ``stall_s`` (60) may be left out.

    Attributes:
        rails: what it measures.
        total: those of them that make up the board's power.
    """

    rails: list[str]
    total: list[str]

    def read(self) -> dict[str, float]:
        """Milliwatts by rail, now. Whatever it raises is a reading that failed."""


class MeterReader:
    """A :class:`Meter` as a :class:`narrowcast.devices.power.PowerReader`: gives its readings times, and checks them."""

    def __init__(self, meter: Meter, name: str, machine: Machine) -> None:
        self._meter, self._machine = meter, machine
        self.name, self.rails, self.missing = name, list(meter.rails), dict[str, str]()

    def read(self) -> Reading:
        """See :class:`narrowcast.devices.power.PowerReader`."""
        before = self._machine.now_ns()
        try:
            values = self._meter.read()
        except Exception as error:
            raise SensorError(f"meter {self.name}: {type(error).__name__}: {error}") from error
        now = (before + self._machine.now_ns()) // 2
        if not isinstance(values, dict) or set(values) != set(self.rails):
            raise SensorError(f"meter {self.name} gave {values!r:.100}; it has the rails {', '.join(self.rails)}")
        for rail, value in values.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise SensorError(f"meter {self.name} gave {value!r:.40} for {rail}, which is no number of milliwatts")
        return Reading(now, {rail: float(values[rail]) for rail in self.rails})


def open_meter(text: str, machine: Machine) -> PowerSource:
    """The meter that ``text`` names.

    Args:
        text: ``ina219:bus=1,address=0x40,shunt_ohm=0.1`` (also ``ina226``, ``ina260``), ``hwmon:hwmon3``,
            ``NAME[:settings]`` of an entry point, or ``module:Class[:settings]``.
        machine: has the buses.

    Raises:
        MeterError: no such meter, or its settings or its class are wrong.
        SensorError: it is there and cannot be read.
    """
    name, _, settings = text.partition(":")
    if name in CHIPS:
        return _supply(_registers(machine, name, settings))
    if name == "hwmon":
        reader = HwmonMeter.find(machine, settings)
        if reader is None or reader.rails != [RAIL]:
            raise MeterError(f"{settings or 'hwmon:'} is no INA2xx meter under /sys/class/hwmon: --meter hwmon:hwmon3")
        return _supply(reader)
    plugins = {point.name: point for point in entry_points(group=GROUP)}
    if name in plugins:
        return _plugin(plugins[name].load(), name, settings, machine)
    class_name, _, settings = settings.partition(":")
    if not class_name:
        raise MeterError(f"no meter {name!r}{nearest(name, sorted({*CHIPS, 'hwmon', *plugins}))}; or module:Class")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # a file beside the user is what they mean, and an installed program does not see it
    try:
        made = getattr(importlib.import_module(name), class_name)
    except (ImportError, AttributeError) as error:
        raise MeterError(f"meter {name}:{class_name} cannot be imported: {error}") from error
    return _plugin(made, f"{name}:{class_name}", settings, machine)


def _supply(reader: PowerReader) -> PowerSource:
    return PowerSource(reader, [RAIL], None, _SUPPLY, 10.0, 10.0)


def _plugin(make: Callable[[str], Meter], name: str, settings: str, machine: Machine) -> PowerSource:
    try:
        meter = make(settings)
        rails, total = list(meter.rails), list(meter.total)
    except Exception as error:
        raise MeterError(f"meter {name} cannot be opened: {type(error).__name__}: {error}") from error
    if not rails or not total or not set(total) <= set(rails):
        raise MeterError(f"meter {name}: total names {total}; it is a part of rails {rails}")
    scope = str(getattr(meter, "scope", f"what {name} measures"))
    hz, stall = float(getattr(meter, "sample_hz", 10.0)), float(getattr(meter, "stall_s", 60.0))
    if not hz > 0 or not stall > 0:
        raise MeterError(f"meter {name}: sample_hz {hz} and stall_s {stall} are positive")
    return PowerSource(MeterReader(meter, name, machine), total, None, scope, hz, stall)


def _registers(machine: Machine, chip: str, text: str) -> RegisterMeter:
    known = ["bus", "address", "shunt_ohm"]
    found: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            raise MeterError(f"meter {chip}: no setting {key!r}{nearest(key, known)}")
        found[key] = value
    try:
        bus, address = int(found.get("bus", "1"), 0), int(found.get("address", "0x40"), 0)
        shunt = float(found["shunt_ohm"]) if "shunt_ohm" in found else None
    except ValueError as error:
        raise MeterError(f"meter {chip}: a setting in {text!r} is no number") from error
    if bus < 0 or not 0x08 <= address <= 0x77:
        raise MeterError(f"meter {chip}: bus {bus}, address {address:#04x}: addresses are 0x08 to 0x77")
    return RegisterMeter(machine, chip, bus=bus, address=address, shunt_ohm=shunt)
