"""The INA3221 of NVIDIA's Jetson boards, in the three layouts of its files.

* JetPack 4 (``ina3221x``, industrial I/O): ``rail_name_N``, ``in_voltageN_input`` (mV), ``in_currentN_input`` (mA) and
  ``in_powerN_input`` (mW) for channels 0 to 2. Power is taken from its own file: voltage and current are read at other
  times.
* JetPack 5 (``ina3221``, hwmon below the driver) and JetPack 6 (hwmon in its class, and below the bus): ``inN_label``,
  ``inN_input`` (mV) and ``currN_input`` (mA) for channels 1 to 3; ``in7`` is the sum of the shunt voltages. There is no
  ``powerN_input``: power is voltage times current (``Documentation/hwmon/ina3221.rst``).

The hwmon number changes from boot to boot, so the sensor is found by its name and its rails by their labels.
"""

from __future__ import annotations

from typing import NamedTuple

from narrowcast.devices.errors import SensorError
from narrowcast.devices.machine import Machine
from narrowcast.devices.power import Reading, number, text_or_none

_NOT_CONNECTED = "NC"
_HWMON = (
    "sys/class/hwmon/hwmon*",
    "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*",
    "sys/devices/platform/*/*/*/*/hwmon/hwmon*",
    "sys/devices/*/*/*/hwmon/hwmon*",
)
_IIO = "sys/bus/i2c/drivers/ina3221x/*/iio:device*"


class _Channel(NamedTuple):
    """A rail's files: power itself, or what is to be multiplied."""

    label: str
    milliwatts: str | None
    millivolts: str
    milliamperes: str
    enable: str


class Ina3221:
    """See :class:`narrowcast.devices.power.PowerReader`. Reads one or several sensors as one."""

    name = "ina3221"

    def __init__(self, machine: Machine, channels: list[_Channel], missing: dict[str, str]) -> None:
        self._machine = machine
        self._channels = channels
        self.rails = [channel.label for channel in channels]
        self.missing = missing

    @classmethod
    def find(cls, machine: Machine, wanted: list[str]) -> Ina3221 | None:
        """The machine's sensors, with those of the ``wanted`` rails that they have; None where there is none.

        Raises:
            SensorError: it is there and cannot be read.
        """
        channels: dict[str, _Channel] = {}
        for channel in [*_hwmon_channels(machine), *_iio_channels(machine)]:
            channels.setdefault(channel.label, channel)  # the same sensor is seen by several paths
        if not channels:
            return None
        labels = ", ".join(channels)
        missing = {rail: f"no channel is labelled so (there are: {labels})" for rail in wanted if rail not in channels}
        known = [channels[label] for label in wanted if label in channels]
        if not known:
            raise SensorError(f"the INA3221 has the rails {labels}; this target's are {', '.join(wanted)}")
        return cls(machine, known, missing)

    def read(self) -> Reading:
        """See :class:`narrowcast.devices.power.PowerReader`.

        Voltage and current are two reads, milliseconds apart at most; the sensor itself averages over longer.
        """
        before = self._machine.now_ns()
        power = {channel.label: self._power(channel) for channel in self._channels}
        return Reading((before + self._machine.now_ns()) // 2, power)

    def _power(self, channel: _Channel) -> float:
        try:
            if channel.milliwatts is not None:
                return number(self._machine, channel.milliwatts)
            return number(self._machine, channel.millivolts) * number(self._machine, channel.milliamperes) / 1000
        except SensorError as error:
            if error.reason != "ENODATA":
                raise
            fix = f"echo 1 | sudo tee /{channel.enable}"
            raise SensorError(f"{channel.label}'s channel is switched off: {fix}", reason="ENODATA") from error


def _hwmon_channels(machine: Machine) -> list[_Channel]:
    sensors = [path for pattern in _HWMON for path in machine.glob(pattern)]
    found = []
    for sensor in sensors:
        if text_or_none(machine, f"{sensor}/name") != "ina3221":
            continue
        for n in (1, 2, 3):
            label = text_or_none(machine, f"{sensor}/in{n}_label")
            if label and label != _NOT_CONNECTED:
                files = f"{sensor}/in{n}_input", f"{sensor}/curr{n}_input", f"{sensor}/in{n}_enable"
                found.append(_Channel(label, None, *files))
    return found


def _iio_channels(machine: Machine) -> list[_Channel]:
    found = []
    for sensor in machine.glob(_IIO):
        for n in (0, 1, 2):
            label = text_or_none(machine, f"{sensor}/rail_name_{n}")
            if label and label != _NOT_CONNECTED:
                power, volts, amperes = (f"{sensor}/in_{what}{n}_input" for what in ("power", "voltage", "current"))
                found.append(_Channel(label, power, volts, amperes, f"{sensor}/enable"))
    return found
