"""What this board is, what runs the head on it, and what can be measured."""

from __future__ import annotations

import importlib.util
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from narrowcast.devices.errors import SensorError
from narrowcast.devices.power import open_reader, total_mw
from narrowcast.devices.targets import Target, recognise
from narrowcast.transport.coder.native import load as load_kernel


@dataclass
class Measurable:
    """One quantity: measurable or not, and why.

    Attributes:
        what: for instance ``power``.
        by: the sensor; None where there is none.
        now: its present value, by rail; None where it cannot be measured.
        why_not: where it cannot: the reason, and the fix where there is one.
    """

    what: str
    by: str | None = None
    now: dict[str, float] | None = None
    why_not: str | None = None


@dataclass
class Board:
    """What :func:`probe` found; None is "cannot be told"."""

    target: str | None
    title: str | None
    model: str | None
    architecture: str
    cpus: int
    memory_bytes: int | None
    os: str | None
    kernel: str | None
    python: str
    backends: dict[str, str | None] = field(default_factory=dict)
    coder: str = "python"
    measures: list[Measurable] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def probe(root: str | Path = "/", *, architecture: str | None = None) -> Board:
    """Looks at this machine, or at a recorded board.

    Args:
        root: what stands for ``/``. Files of a recorded board replay it; what only the running system knows (Python,
            installed libraries) is this machine's.
        architecture: of a recorded board; this machine's if None.
    """
    root = Path(root)
    architecture = architecture or platform.machine()
    model = _first_line(root / "proc/device-tree/model")
    target = recognise(model or "", architecture)
    return Board(
        target=target.name if target else None,
        title=target.title if target else None,
        model=model,
        architecture=architecture,
        cpus=_cpus(root),
        memory_bytes=_memory(root),
        os=_os_name(root),
        kernel=_first_line(root / "proc/sys/kernel/osrelease"),
        python=platform.python_version(),
        backends={name: _version(name) for name in ("onnxruntime", "tensorrt")},
        coder="c" if load_kernel() is not None else "python",
        measures=[_power(target, root)],
    )


def preferred_backends(root: str | Path = "/", *, architecture: str | None = None) -> list[str]:
    """What runs networks on this board, best first: its target's backends; ONNX Runtime where no target describes it.

    Args:
        root: as of :func:`probe`.
        architecture: likewise.
    """
    model = _first_line(Path(root) / "proc/device-tree/model")
    target = recognise(model or "", architecture or platform.machine())
    return list(target.backends) if target else ["onnxruntime"]


def _power(target: Target | None, root: Path) -> Measurable:
    if target is None:
        return Measurable("power", why_not="no target describes this board")
    if not target.power.sensor:
        return Measurable("power", why_not=f"no power reader for {target.title}")
    try:
        reader = open_reader(target, root)
        if reader is None:
            fix = f"no {target.power.sensor} under /sys/class/hwmon; is its driver loaded (lsmod | grep ina)?"
            return Measurable("power", target.power.sensor, why_not=fix)
        reading = reader.read()
    except SensorError as error:
        return Measurable("power", target.power.sensor, why_not=str(error))
    now = {f"{rail}_mw": value for rail, value in reading.milliwatts.items()}
    total = total_mw(reading, target)
    missing = sorted(set(target.power.total) - reading.milliwatts.keys())
    if total is not None:
        now["total_mw"] = total
    why_not = f"no total: the rail {', '.join(missing)} is missing" if missing else None
    return Measurable("power", reader.name, now, why_not)


def _first_line(path: Path) -> str | None:
    try:
        text = path.read_bytes().split(b"\0", 1)[0].decode("utf-8", "replace").strip()
    except OSError:
        return None
    return text.splitlines()[0] if text else None


def _cpus(root: Path) -> int:
    if root == Path("/"):
        return len(os.sched_getaffinity(0))
    try:
        return sum(line.startswith("processor") for line in (root / "proc/cpuinfo").read_text().splitlines())
    except OSError:
        return 0


def _memory(root: Path) -> int | None:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def _os_name(root: Path) -> str | None:
    try:
        lines = (root / "etc/os-release").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition("=")[2].strip('"') for line in lines if line.startswith("PRETTY_NAME=")), None)


def _version(module: str) -> str | None:
    """The installed version of a library, without importing it; None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    if importlib.util.find_spec(module) is None:
        return None
    try:
        return version(module)
    except PackageNotFoundError:
        return "unknown"
