"""What a board says of itself before anything is installed."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from narrowcast.devices.flash.agent.files import free_bytes
from narrowcast.devices.flash.agent.layout import Layout

CONNECT_SECONDS = 5.0


def facts(layout: Layout) -> dict[str, Any]:
    """For JSON."""
    return {
        "hostname": socket.gethostname(),
        "architecture": platform.machine(),
        "model": _text("/proc/device-tree/model"),
        "compatible": [word for word in _raw("/proc/device-tree/compatible").split("\0") if word],
        "os": _os_name(),
        "kernel": platform.release(),
        "glibc": platform.libc_ver()[1],
        "python": platform.python_version(),
        "executable": os.path.realpath(sys.executable),
        "venv": _has_venv(),
        "modules": {name: found for name in ("tensorrt", "onnxruntime") if (found := _version(name))},
        "systemd": Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None,
        "root": os.geteuid() == 0,
        "clock": time.time(),
        "free_bytes": free_bytes(Path(layout.program)),
        "cpus": os.cpu_count(),
        "power_sensors": _power_sensors(),
    }


def reach(addresses: list[str]) -> dict[str, str]:
    """Why each ``HOST:PORT`` cannot be reached from here; empty where it can."""
    return {address: why for address in addresses if (why := _unreachable(address))}


def _unreachable(address: str) -> str:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
            return ""
    except (OSError, ValueError) as error:
        return str(error)


def _raw(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _text(path: str) -> str:
    return _raw(path).split("\0")[0].strip()


def _os_name() -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', _raw("/etc/os-release"), re.MULTILINE)
    return found[1] if found else ""


def _has_venv() -> bool:
    return find_spec("venv") is not None


def _version(module: str) -> str:
    if find_spec(module) is None:
        return ""
    from importlib.metadata import PackageNotFoundError, version  # takes longer to load than all else that is asked

    for name in (module, f"{module}-gpu"):
        with suppress(PackageNotFoundError):
            return version(name)
    return ""


def _power_sensors() -> list[str]:
    """What the kernel shows of power, before narrowcast itself can look: a hint, no measurement."""
    patterns = {
        "ina3221": "sys/bus/i2c/drivers/ina3221*/*-*",
        "pi5-pmic": "dev/vcio",
        "rapl": "sys/class/powercap/intel-rapl:*",
    }
    return [name for name, pattern in patterns.items() if any(Path("/").glob(pattern))]
