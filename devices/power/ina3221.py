"""The INA3221 of NVIDIA's Jetson Orin boards, through the kernel's hwmon files (JetPack 5 and later).

``Documentation/hwmon/ina3221.rst``: ``inN_label``, ``inN_input`` (mV) and ``currN_input`` (mA) for channels 1 to 3;
``in7`` is the sum of the shunt voltages. There is no ``powerN_input``: power is voltage times current. The hwmon number
changes from boot to boot, so the sensor is found by its name and its rails by their labels.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from narrowcast.devices.errors import SensorError
from narrowcast.devices.power import Reading

_CHANNELS = (1, 2, 3)
_NOT_CONNECTED = "NC"


class _Channel(NamedTuple):
    label: str
    millivolts: Path
    milliamperes: Path


class Ina3221:
    """See :class:`narrowcast.devices.power.PowerReader`. Reads one or several sensors as one."""

    name = "ina3221"

    def __init__(self, channels: list[_Channel]) -> None:
        self._channels = channels
        self.rails = [channel.label for channel in channels]

    @classmethod
    def find(cls, root: Path, wanted: list[str]) -> Ina3221 | None:
        """The sensor under ``root``, with those of the ``wanted`` rails that it has; None where there is none.

        Raises:
            SensorError: it is there and cannot be read.
        """
        channels: dict[str, _Channel] = {}
        for sensor in sorted(root.glob("sys/class/hwmon/hwmon*")):
            if _text(sensor / "name") != cls.name:
                continue
            for number in _CHANNELS:
                label = _text(sensor / f"in{number}_label")
                if label and label != _NOT_CONNECTED and label in wanted and label not in channels:
                    paths = sensor / f"in{number}_input", sensor / f"curr{number}_input"
                    channels[label] = _Channel(label, *paths)
        return cls([channels[label] for label in wanted if label in channels]) if channels else None

    def read(self) -> Reading:
        """See :class:`narrowcast.devices.power.PowerReader`.

        Voltage and current are two reads, milliseconds apart at most; the sensor itself averages over longer.
        """
        now = time.monotonic_ns()
        power = {c.label: _number(c.millivolts) * _number(c.milliamperes) / 1000 for c in self._channels}
        return Reading(now, power)


def _text(path: Path) -> str | None:
    """What a sensor's file says; None where there is no such file."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise SensorError(
            f"{path} cannot be read by this user; add it to the group that can, or run as root"
        ) from error
    except OSError as error:
        raise SensorError(f"{path} cannot be read: {error.strerror}") from error


def _number(path: Path) -> float:
    text = _text(path)
    if text is None:
        raise SensorError(f"{path} is gone: was the driver unloaded?")
    try:
        return float(text)
    except ValueError as error:
        raise SensorError(f"{path} says {text[:40]!r}, which is no number") from error
