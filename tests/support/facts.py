"""What a board says of itself, where there is none."""

from __future__ import annotations

import time

from narrowcast.devices.flash.board import Rights

RIGHTS = Rights("/usr/bin/python3", "3.11", True)


def facts(**changes):
    """Of a Raspberry Pi 5."""
    return {
        "hostname": "pi", "architecture": "aarch64", "model": "Raspberry Pi 5 Model B Rev 1.0", "compatible": [],
        "os": "Debian", "executable": "/usr/bin/python3.11", "venv": True, "modules": {}, "clock": time.time(),
        "power_sensors": ["pi5-pmic"], "systemd": True, "root": True, **changes,
    }  # fmt: skip
