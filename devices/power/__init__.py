"""Power readers: what a board's own sensors say.

Every reader is made by :func:`open_reader` from a file system root, so that a recorded board replays from a folder. A rail
that is not there is missing from the reading; a value that cannot be measured is never 0 and never an estimate.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from narrowcast.devices.targets import Target


class Reading(NamedTuple):
    """One look at the sensors.

    Attributes:
        monotonic_ns: when, by ``time.monotonic_ns()``.
        milliwatts: per rail.
    """

    monotonic_ns: int
    milliwatts: dict[str, float]


class PowerReader(Protocol):
    """A board's power sensor.

    Attributes:
        name: of the sensor.
        rails: what it can measure, by label.
    """

    name: str
    rails: list[str]

    def read(self) -> Reading:
        """The rails' power now.

        Raises:
            SensorError: a rail that was there cannot be read.
        """


def open_reader(target: Target, root: Path = Path("/")) -> PowerReader | None:
    """The board's power reader; None where it has no sensor, or the sensor is not there.

    Args:
        target: says which sensor to look for.
        root: what stands for ``/``: a folder with a recorded board replays it.

    Raises:
        SensorError: the sensor is there and cannot be read.
    """
    if target.power.sensor == "ina3221":
        from narrowcast.devices.power.ina3221 import Ina3221

        return Ina3221.find(root, target.power.rails)
    return None


def total_mw(reading: Reading, target: Target) -> float | None:
    """The board's power in milliwatts: the sum of the rails that the target names as its total, and of no others.

    None where one of them is missing.
    """
    parts = [reading.milliwatts.get(rail) for rail in target.power.total]
    known = [part for part in parts if part is not None]
    return sum(known) if parts and len(known) == len(parts) else None
