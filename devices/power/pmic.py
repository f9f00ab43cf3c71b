"""The power management chip of the Raspberry Pi 5, through its firmware: ``vcgencmd pmic_read_adc``.

A line for each current and each voltage; they are paired by name, not by number. Rails with a voltage only (``EXT5V``,
the 5 V input, and ``BATT``) have no power: what the board draws from its supply is not measured.
"""

from __future__ import annotations

import re

from narrowcast.devices.errors import SensorError
from narrowcast.devices.machine import Machine
from narrowcast.devices.power import Reading

KEY = "$ vcgencmd pmic_read_adc"
_LINE = re.compile(r"(\w+)_([AV]) (?:current|volt)\(\d+\)=(\d+\.\d+)[AV]")


class Pmic:
    """See :class:`narrowcast.devices.power.PowerReader`."""

    name = "pi5-pmic"

    def __init__(self, machine: Machine, rails: list[str], missing: dict[str, str]) -> None:
        self._machine, self.rails, self.missing = machine, rails, missing

    @classmethod
    def find(cls, machine: Machine, wanted: list[str]) -> Pmic | None:
        """The chip, with those of the ``wanted`` rails that it has; None where there is no such command.

        Raises:
            SensorError: the firmware refuses, or answers something else.
        """
        try:
            has = _ask(machine)
        except FileNotFoundError:
            return None
        missing = {rail: "the PMIC gives no pair of current and voltage for it" for rail in wanted if rail not in has}
        return cls(machine, [rail for rail in wanted if rail in has], missing)

    def read(self) -> Reading:
        """See :class:`narrowcast.devices.power.PowerReader`. Takes about 23 ms."""
        before = self._machine.now_ns()
        try:
            values = _ask(self._machine)
        except FileNotFoundError as error:
            raise SensorError("vcgencmd is gone") from error
        lost = [rail for rail in self.rails if rail not in values]
        if lost:
            raise SensorError(f"vcgencmd pmic_read_adc left out {', '.join(lost)}")
        return Reading((before + self._machine.now_ns()) // 2, {rail: values[rail] for rail in self.rails})


def _ask(machine: Machine) -> dict[str, float]:
    """All pairs; an answer that broke off is asked for again, once."""
    try:
        return parse(machine.read(KEY))
    except SensorError as error:
        if error.reason:  # of the system, and not of the text
            raise
        return parse(machine.read(KEY))


def parse(text: str) -> dict[str, float]:
    """Milliwatts by rail, of those that have both a current and a voltage.

    Raises:
        SensorError: the firmware refused (``error_msg``), or a line is none of its own.
    """
    if "error" in text:
        raise SensorError(
            f"the firmware refused pmic_read_adc ({text.strip()[:80]}): only the Pi 5's has it; update: rpi-eeprom-update"
        )
    found: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for line in filter(None, map(str.strip, text.splitlines())):
        match = _LINE.fullmatch(line)
        if match is None:
            raise SensorError(f"vcgencmd pmic_read_adc says {line[:60]!r}, which is no current and no voltage")
        found[match[2]][match[1]] = float(match[3])
    if not found["A"]:
        raise SensorError("vcgencmd pmic_read_adc answered nothing")
    return {rail: 1000 * amperes * found["V"][rail] for rail, amperes in found["A"].items() if rail in found["V"]}
