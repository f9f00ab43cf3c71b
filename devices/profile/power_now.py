"""What whoever watches a run is told of power: of rails that count energy as well, whose power is what they gained since."""

from __future__ import annotations

from collections.abc import Mapping

from narrowcast.devices.conditions import Conditions
from narrowcast.devices.power import Reading
from narrowcast.devices.power.sampler import SamplerInfo
from narrowcast.devices.profile.observer import PowerSample


def watts_of(reading: Reading, before: Reading | None) -> dict[str, float]:
    """By rail; an energy counter's is its mean since the reading before."""
    watts = {rail: value / 1000 for rail, value in reading.milliwatts.items()}
    if before is not None and reading.monotonic_ns > before.monotonic_ns:
        seconds = (reading.monotonic_ns - before.monotonic_ns) / 1e9
        watts |= {
            r: (joules - before.joules[r]) / seconds for r, joules in reading.joules.items() if r in before.joules
        }
    return watts


def total_of(watts: Mapping[str, float], info: SamplerInfo | None) -> float | None:
    """The board's; None where there is no total, or one of its rails is missing."""
    if info is None or not info.total or not all(rail in watts for rail in info.total):
        return None
    return sum(watts[rail] for rail in info.total)


class PowerNow:
    """The newest figures, look by look.

    Args:
        info: what is sampled; None where power is not.
        start_ns: when the run began.
    """

    def __init__(self, info: SamplerInfo | None, start_ns: int) -> None:
        self._info, self._start_ns = info, start_ns
        self._reading: Reading | None = None
        self._watts: dict[str, float] = {}

    def look(self, now_ns: int, reading: Reading | None, state: Conditions | None) -> PowerSample:
        """What there is now; the last figures where there was no new sample since."""
        if reading is not None and (self._reading is None or reading.monotonic_ns > self._reading.monotonic_ns):
            self._watts = watts_of(reading, self._reading)
            self._reading = reading
        return PowerSample(
            (now_ns - self._start_ns) / 1e9, total_of(self._watts, self._info), self._watts,
            {} if state is None else state.temperatures_c, {} if state is None else state.clocks_mhz,
            None if state is None else state.throttled,
        )  # fmt: skip
