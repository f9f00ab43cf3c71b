"""NVIDIA GPUs' energy counters (Volta and later), through the driver's management library."""

from __future__ import annotations

from narrowcast.devices.errors import SensorError
from narrowcast.devices.machine import Machine
from narrowcast.devices.power import Reading, number
from narrowcast.devices.power.rapl import Counter


class Nvml:
    """See :class:`narrowcast.devices.power.PowerReader`. Rails are ``gpu-0`` and so on; gives joules."""

    name = "nvml"

    def __init__(self, machine: Machine, indices: list[int], missing: dict[str, str]) -> None:
        self._machine, self.missing = machine, missing
        self.rails = [f"gpu-{index}" for index in indices]
        self._keys = {f"gpu-{index}": f"nvml {index} energy_mj" for index in indices}
        now = machine.now_ns()
        self._counters = {
            rail: Counter(rail, 1000 * number(machine, key), None, now) for rail, key in self._keys.items()
        }

    @classmethod
    def find(cls, machine: Machine) -> Nvml | None:
        """All GPUs that count energy; None where there is no driver, no GPU, or none that counts."""
        try:
            count = int(number(machine, "nvml count"))
        except SensorError:
            return None
        missing, found = {}, []
        for index in range(count):
            try:
                number(machine, f"nvml {index} energy_mj")
                found.append(index)
            except SensorError as error:
                missing[f"gpu-{index}"] = str(error)
        return cls(machine, found, missing) if found or missing else None

    def read(self) -> Reading:
        """See :class:`narrowcast.devices.power.PowerReader`."""
        before = self._machine.now_ns()
        raw = {rail: 1000 * number(self._machine, key) for rail, key in self._keys.items()}
        now = (before + self._machine.now_ns()) // 2
        return Reading(now, {}, {rail: self._counters[rail].add(value, now) for rail, value in raw.items()})
