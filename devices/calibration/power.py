"""The board's power, as a calibration watches it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from narrowcast.devices.errors import SensorError
from narrowcast.devices.machine import Machine
from narrowcast.devices.power import Reading, open_power
from narrowcast.devices.targets import load_target


class Meter(NamedTuple):
    """Reads the board's power.

    Attributes:
        milliwatts: now, of a counter the mean since the last call; None where a rail is missing, or the sensor failed
            this once.
        sample_hz: how often that is worth doing.
        scope: what it covers.
    """

    milliwatts: Callable[[], float | None]
    sample_hz: float
    scope: str


def power_meter(
    target: str | Path | None, root: Machine | Path | str = "/", *, meter: str | None = None
) -> Meter | None:
    """The meter of a kind of board; None where its total cannot be measured here.

    Raises:
        TargetError: there is no such target.
        MeterError: there is no such meter.
    """
    if target is None:
        return None
    try:
        source = open_power(load_target(target), root, meter=meter)
        if source is None or not source.total:
            return None
        before = [source.reader.read()]
    except SensorError:
        return None

    def milliwatts() -> float | None:
        try:
            now = source.reader.read()
        except SensorError:  # a torn read; the next one may do
            return None
        last, before[0] = before[0], now
        return source.total_mw(now) if not now.joules else _counted(source.total, last, now)

    return Meter(milliwatts, source.sample_hz, source.scope)


def _counted(total: list[str], last: Reading, now: Reading) -> float | None:
    seconds = (now.monotonic_ns - last.monotonic_ns) / 1e9
    if seconds <= 0 or not all(rail in last.joules and rail in now.joules for rail in total):
        return None
    return 1000 * sum(now.joules[rail] - last.joules[rail] for rail in total) / seconds
