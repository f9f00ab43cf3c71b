"""INA219, INA226 and INA260 meters on a board's supply: through the kernel's hwmon files, or by their registers.

hwmon (``Documentation/hwmon/ina2xx.rst``): ``in1_input`` bus mV, ``curr1_input`` mA, ``power1_input`` microwatts; the
kernel knows the shunt from the device tree. Registers, without the kernel's driver (data sheets SBOS448, SBOS547,
SBOS656): bus voltage in register 2, shunt voltage (INA260: current) in register 1, both big-endian.
"""

from __future__ import annotations

from typing import NamedTuple

from narrowcast.devices.errors import MeterError, SensorError
from narrowcast.devices.machine import Machine
from narrowcast.devices.power import Reading, number, text_or_none

_DRIVERS = frozenset({"ina209", "ina219", "ina220", "ina226", "ina230", "ina231", "ina260"})
RAIL = "external"


class HwmonMeter:
    """A meter that the kernel reads; see :class:`narrowcast.devices.power.PowerReader`.

    One meter is the rail ``external``. Of several, nobody can tell which measures the whole board: they are
    ``external-1`` and so on, and none is the total until ``--meter hwmon:NAME`` names it.
    """

    name = "ina2xx"

    def __init__(self, machine: Machine, sensors: dict[str, str]) -> None:
        self._machine, self._sensors = machine, sensors
        self.rails = list(sensors)
        names = ", ".join(path.rpartition("/")[2] for path in sensors.values())
        why = f"there are {len(sensors)} meters ({names}): name the one on the supply with --meter hwmon:NAME"
        self.missing = {} if RAIL in sensors else {RAIL: why}

    @classmethod
    def find(cls, machine: Machine, only: str | None = None) -> HwmonMeter | None:
        """All meters, or the ``only`` one (``hwmon3``); None where there is none."""
        paths = [
            path
            for path in machine.glob(f"sys/class/hwmon/{only or 'hwmon*'}")
            if text_or_none(machine, f"{path}/name") in _DRIVERS
        ]
        if len(paths) == 1:
            return cls(machine, {RAIL: paths[0]})
        return cls(machine, {f"{RAIL}-{n}": path for n, path in enumerate(paths, 1)}) if paths else None

    def read(self) -> Reading:
        """See :class:`narrowcast.devices.power.PowerReader`."""
        before = self._machine.now_ns()
        power = {rail: self._milliwatts(path) for rail, path in self._sensors.items()}
        return Reading((before + self._machine.now_ns()) // 2, power)

    def _milliwatts(self, path: str) -> float:
        current = number(self._machine, f"{path}/curr1_input")
        _check_direction(current, path)
        if text_or_none(self._machine, f"{path}/power1_input"):
            return number(self._machine, f"{path}/power1_input") / 1000
        return number(self._machine, f"{path}/in1_input") * current / 1000


class Chip(NamedTuple):
    """What a chip's registers count.

    Attributes:
        bus_mv: of one step of the bus voltage, after shifting it right by ``bus_shift``.
        shunt_mv: of one step of the shunt voltage; 0 where register 1 is the current.
        current_ma: of one step of the current, where register 1 is that.
        full: the largest shunt value; beyond it the meter is saturated.
        die: what registers 0xFE and 0xFF say (manufacturer, die without its revision); none for the INA219.
    """

    bus_mv: float
    bus_shift: int
    shunt_mv: float
    current_ma: float
    full: int
    die: tuple[int, int] | None


CHIPS = {
    "ina219": Chip(4.0, 3, 0.010, 0.0, 32000, None),
    "ina226": Chip(1.25, 0, 0.0025, 0.0, 32767, (0x5449, 0x2260)),
    "ina260": Chip(1.25, 0, 0.0, 1.25, 32767, (0x5449, 0x2270)),
}


class RegisterMeter:
    """A meter read by its registers; see :class:`narrowcast.devices.power.PowerReader`.

    The chip measures on its own after power-on.

    Args:
        machine: has the bus.
        chip: ``ina219``, ``ina226`` or ``ina260``.
        bus: N of ``/dev/i2c-N``.
        address: of the chip, usually 0x40.
        shunt_ohm: of the board's shunt (0.1 on most INA219 boards); not for an INA260, which has its own.

    Raises:
        MeterError: no such bus, another chip answers, or the shunt is missing.
        SensorError: nothing answers.
    """

    def __init__(
        self, machine: Machine, chip: str, *, bus: int = 1, address: int = 0x40, shunt_ohm: float | None = None
    ) -> None:
        self._machine, self._chip = machine, CHIPS[chip]
        self._where = f"i2c {bus} {address:#04x}"
        if self._chip.shunt_mv and not (shunt_ohm and shunt_ohm > 0):
            raise MeterError(
                f"{chip} needs its shunt's resistance: --meter {chip}:bus={bus},address={address:#04x},shunt_ohm=0.1"
            )
        self._shunt_ohm = shunt_ohm or 1.0
        self.name, self.rails, self.missing = chip, [RAIL], dict[str, str]()
        try:
            self._check_die(chip)
            self._read()
        except FileNotFoundError as error:
            fix = "sudo modprobe i2c-dev; on a Raspberry Pi: sudo raspi-config nonint do_i2c 0"
            raise MeterError(f"there is no /dev/i2c-{bus}: {fix}") from error

    def read(self) -> Reading:
        """See :class:`narrowcast.devices.power.PowerReader`."""
        try:
            return self._read()
        except FileNotFoundError as error:  # of an adapter that may be plugged in again
            raise SensorError(f"{self._where} is gone: {error.strerror or error}") from error

    def _read(self) -> Reading:
        before = self._machine.now_ns()
        raw = self._word(1)
        signed = raw - 65536 if raw >= 32768 else raw
        if abs(signed) >= self._chip.full:
            raise SensorError(
                f"{self.name} on {self._where} is saturated: the current is beyond what its shunt can tell"
            )
        milliamperes = signed * (self._chip.current_ma or self._chip.shunt_mv / self._shunt_ohm)
        _check_direction(milliamperes, f"{self.name} on {self._where}")
        millivolts = (self._word(2) >> self._chip.bus_shift) * self._chip.bus_mv
        after = self._machine.now_ns()
        return Reading((before + after) // 2, {RAIL: millivolts * milliamperes / 1000})

    def _check_die(self, chip: str) -> None:
        if self._chip.die is None:
            return
        seen = self._word(0xFE), self._word(0xFF) & 0xFFF0
        if seen != self._chip.die:
            raise MeterError(f"the device at {self._where} says {seen[0]:#06x} {seen[1]:#06x}: that is no {chip}")

    def _word(self, register: int) -> int:
        key = f"{self._where} {register:#04x}"
        text = self._machine.read(key)
        try:
            value = int(text, 16)
        except ValueError as error:
            raise SensorError(f"{key} says {text[:40]!r}, which is no register") from error
        if not 0 <= value <= 0xFFFF:
            raise SensorError(f"{key} says {text[:40]!r}, which is more than 16 bits")
        return value


def _check_direction(milliamperes: float, where: str) -> None:
    if milliamperes < -20:  # less is the offset of an idle shunt
        raise SensorError(f"{where} measures {milliamperes:.0f} mA: the current flows the other way; swap IN+ and IN-")
