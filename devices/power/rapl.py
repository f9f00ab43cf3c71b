"""RAPL, the energy counters of x86 processors, through the kernel's powercap files (``powercap.rst``).

``energy_uj`` counts microjoules and starts again at 0 after ``max_energy_range_uj``; usually only root may read it
(CVE-2020-8694). ``core`` and ``uncore`` lie inside their package, packages inside ``psys``; ``dram`` is listed below a
package and counted apart.
Names here are ``package-0`` and ``package-0/core``.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from narrowcast.devices.errors import SensorError
from narrowcast.devices.machine import Machine
from narrowcast.devices.power import RESET, Reading, number, text_or_none

_ZONES = ("sys/class/powercap/intel-rapl:*", "sys/class/powercap/intel-rapl-mmio:*")
_DIE = re.compile(r"(package-\d+)-die-\d+")
_MIRROR_UJ = 5_000_000  # two dies that have counted since boot, and are less than this apart, count the same
_MOST_W = 20_000.0  # no zone takes more: what looks so is a counter that was set back


class _Zone(NamedTuple):
    path: str
    range_uj: float | None


class Counter:
    """An energy counter that wraps around, as joules since it was first seen. ``range_uj`` None: it never wraps."""

    def __init__(self, name: str, raw_uj: float, range_uj: float | None, now_ns: int) -> None:
        self._name, self._raw, self._range, self._seen_ns = name, raw_uj, range_uj, now_ns
        self._total_uj = 0.0

    def add(self, raw_uj: float, now_ns: int) -> float:
        """Takes the counter's value; returns joules.

        Raises:
            SensorError: with reason ``RESET``: it went back, or may have wrapped more than once since it was last read.
        """
        seconds = max((now_ns - self._seen_ns) / 1e9, 1e-3)
        step = raw_uj - self._raw
        wrapped = step < 0
        if wrapped and self._range:
            step += self._range
        self._raw, self._seen_ns = raw_uj, now_ns
        if step < 0 or step / 1e6 / seconds > _MOST_W:
            raise SensorError(f"{self._name} was set back or jumped: energy across that is unknown", reason=RESET)
        if self._range and seconds * 1000 * 1e6 > self._range:  # at 1 kW
            raise SensorError(
                f"{self._name} was not read for {seconds:.0f} s, and may have wrapped twice", reason=RESET
            )
        self._total_uj += step
        return self._total_uj / 1e6


class Rapl:
    """See :class:`narrowcast.devices.power.PowerReader`. Gives joules."""

    name = "rapl"

    def __init__(self, machine: Machine, zones: dict[str, _Zone], missing: dict[str, str]) -> None:
        self._machine, self._zones, self.missing = machine, zones, missing
        self.rails = list(zones)
        self._counters = {
            label: Counter(label, number(machine, f"{zone.path}/energy_uj"), zone.range_uj, machine.now_ns())
            for label, zone in zones.items()
        }

    @classmethod
    def find(cls, machine: Machine) -> Rapl | None:
        """All zones that can be read; None where there is none.

        Raises:
            SensorError: none of those that are there can be read.
        """
        zones = _zones(machine)
        if not zones:
            return None
        readable: dict[str, float] = {}
        missing: dict[str, str] = {}
        for label, zone in zones.items():
            try:
                readable[label] = number(machine, f"{zone.path}/energy_uj")
            except SensorError as error:
                missing[label] = _fix(error)
        if not readable:
            raise SensorError(next(iter(missing.values())), reason="EACCES")
        for mirror in _mirrors(readable):
            del readable[mirror]
        return cls(machine, {label: zones[label] for label in readable}, missing)

    def read(self) -> Reading:
        """See :class:`narrowcast.devices.power.PowerReader`. One that was set back spoils no other's place."""
        before = self._machine.now_ns()
        raw = {label: number(self._machine, f"{zone.path}/energy_uj") for label, zone in self._zones.items()}
        now = (before + self._machine.now_ns()) // 2
        joules, trouble = {}, None
        for label, value in raw.items():
            try:
                joules[label] = self._counters[label].add(value, now)
            except SensorError as error:
                trouble = error
        if trouble is not None:
            raise trouble
        return Reading(now, {}, joules)


def _zones(machine: Machine) -> dict[str, _Zone]:
    found: dict[str, _Zone] = {}
    for pattern in _ZONES:  # the second is the same counters by another way: what is known already stays
        names: dict[str, str] = {}
        for path in sorted(machine.glob(pattern), key=lambda path: (path.count(":"), path)):
            name = text_or_none(machine, f"{path}/name")
            if name is None:
                continue
            parent = path.rpartition(":")[0]
            label = names[path] = f"{names[parent]}/{name}" if parent in names else name
            if label not in found:
                top = text_or_none(machine, f"{path}/max_energy_range_uj")
                found[label] = _Zone(path, number(machine, f"{path}/max_energy_range_uj") if top else None)
    return found


def _mirrors(readable: dict[str, float]) -> list[str]:
    """Dies, with the zones inside them, that show their package's one counter again."""
    gone: list[str] = []
    first: dict[str, list[str]] = {}
    for label, value in sorted(readable.items()):
        match = _DIE.fullmatch(label)
        if match is None:
            continue
        twins = first.setdefault(match[1], [])
        if any(abs(value - readable[twin]) < _MIRROR_UJ for twin in twins):
            gone += [other for other in readable if other == label or other.startswith(f"{label}/")]
        else:
            twins.append(label)
    return gone


def _fix(error: SensorError) -> str:
    if error.reason != "EACCES":
        return str(error)
    command = "sudo chmod a+r /sys/class/powercap/intel-rapl*/energy_uj"
    return f"RAPL can be read by root only: {command} (until the next boot), or run as root"
