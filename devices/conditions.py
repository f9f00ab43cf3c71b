"""In which state a board is while it is measured: temperatures, clocks, throttling, power mode.

A figure without these cannot be repeated. Whatever a board does not tell is absent, never guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from narrowcast.devices.errors import SensorError
from narrowcast.devices.machine import Machine

# https://www.raspberrypi.com/documentation/computers/os.html#get_throttled: now in bits 0 to 3, since boot 16 bits higher.
_PI_FLAGS = ("under-voltage", "clock capped", "throttled", "soft temperature limit")
_THROTTLED_KEY = "$ vcgencmd get_throttled"
_THROTTLED = re.compile(r"throttled=0x([0-9a-fA-F]{1,8})")
_POWER_MODE = re.compile(r"NV Power Mode:\s*(\S+)")


@dataclass(frozen=True)
class Conditions:
    """What a board tells about itself at one time.

    Attributes:
        temperatures_c: by thermal zone.
        clocks_mhz: by CPU policy and GPU.
        throttled: what slows the board down right now.
        throttled_before: what has done so since it was started (Raspberry Pi).
        throttle_counts: counters of such events; a step between two looks means that it was slowed down between them.
        power_mode: of ``nvpmodel``, or the CPU's governor.
    """

    temperatures_c: dict[str, float] = field(default_factory=dict)
    clocks_mhz: dict[str, float] = field(default_factory=dict)
    throttled: list[str] | None = None
    throttled_before: list[str] | None = None
    throttle_counts: dict[str, int] = field(default_factory=dict)
    power_mode: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class ConditionReader:
    """Finds once what there is, and reads it as often as wanted."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._zones = self._named_zones()
        policies = _glob(machine, "sys/devices/system/cpu/cpufreq/policy*")
        self._clocks = {f"{path}/scaling_cur_freq": (f"cpu-{path.rpartition('policy')[2]}", 1e3) for path in policies}
        for path in _glob(machine, "sys/class/devfreq/*"):
            name = path.rpartition("/")[2]
            if any(part in name for part in ("gpu", "gv11b", "ga10b", "gp10b", "gm20b", "17000000")):
                self._clocks[f"{path}/cur_freq"] = ("gpu", 1e6)
        self._governor = f"{policies[0]}/scaling_governor" if policies else None
        self._counts = {
            path: path.rpartition("/")[2].removesuffix("_event_cnt") for path in _glob(machine, _OVERCURRENT)
        }
        for path in _glob(machine, _CORE_THROTTLE):  # every core has its package's counter
            core = path.split("/")[4]
            package = self._text(f"sys/devices/system/cpu/{core}/topology/physical_package_id")
            name = f"{core} thermal" if package is None else f"package {package} thermal"
            if name not in self._counts.values():
                self._counts[path] = name
        alarms = [path for pattern in _ALARMS for path in _glob(machine, pattern)]
        self._alarms = {"/".join(path.rsplit("/", 2)[1:]): path for path in alarms}  # one sensor, seen by several paths
        self._modes: str | None = self._power_mode()
        self._is_pi = (
            self._text(_THROTTLED_KEY) is not None
        )  # asked for once: elsewhere it would start a process each time

    def _named_zones(self) -> dict[str, str]:
        """Thermal zones by path: by their type, and by number as well where several are of one type."""
        paths = _glob(self._machine, "sys/class/thermal/thermal_zone*")
        types = {path: self._text(f"{path}/type") or path for path in paths}
        of_type = Counter(types.values())
        number = {path: path.rpartition("thermal_zone")[2] for path in paths}
        return {path: kind if of_type[kind] == 1 else f"{kind} {number[path]}" for path, kind in types.items()}

    def read(self) -> Conditions:
        """The conditions now. What cannot be read is left out. The power mode is that of the beginning."""
        temperatures = {
            name: value / 1000
            for path, name in self._zones.items()
            if (value := self._number(f"{path}/temp")) is not None
        }
        clocks = {
            name: value / scale
            for path, (name, scale) in self._clocks.items()
            if (value := self._number(path)) is not None
        }
        counts = {name: int(value) for path, name in self._counts.items() if (value := self._number(path)) is not None}
        now, before = self._throttled()
        return Conditions(temperatures, clocks, now, before, counts, self._modes)

    def _throttled(self) -> tuple[list[str] | None, list[str] | None]:
        match = _THROTTLED.search((self._text(_THROTTLED_KEY) if self._is_pi else None) or "")
        if match:
            bits = int(match[1], 16)
            flags = [(name, bits >> k & 1, bits >> (16 + k) & 1) for k, name in enumerate(_PI_FLAGS)]
            return [name for name, now, _ in flags if now], [name for name, _, before in flags if before]
        values = {path: self._number(path) for path in self._alarms.values()}
        if all(value is None for value in values.values()):
            return None, None
        return [f"over-current ({path.rpartition('/')[2]})" for path, value in values.items() if value], None

    def _power_mode(self) -> str | None:
        match = _POWER_MODE.search(self._text("$ nvpmodel -q") or "")
        return match[1] if match else self._text(self._governor) if self._governor else None

    def _text(self, key: str) -> str | None:
        try:
            return self._machine.read(key)
        except (FileNotFoundError, SensorError):
            return None

    def _number(self, key: str) -> float | None:
        text = self._text(key)
        try:
            return float(text) if text else None
        except ValueError:
            return None


_OVERCURRENT = "sys/class/hwmon/hwmon*/oc*_event_cnt"
_CORE_THROTTLE = "sys/devices/system/cpu/cpu*/thermal_throttle/package_throttle_count"
_ALARMS = (
    "sys/class/hwmon/hwmon*/curr*_crit_alarm",
    "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/curr*_crit_alarm",
    "sys/devices/platform/*/*/*/*/hwmon/hwmon*/curr*_crit_alarm",
)


def _glob(machine: Machine, pattern: str) -> list[str]:
    try:
        return machine.glob(pattern)
    except SensorError:
        return []


def changes(first: Conditions, last: Conditions) -> dict[str, int]:
    """Throttle counters that have moved between two looks, and by how much."""
    return {
        name: count - first.throttle_counts[name]
        for name, count in last.throttle_counts.items()
        if count != first.throttle_counts.get(name, count)
    }
