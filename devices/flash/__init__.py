"""Bundles onto boards, over the user's own ssh: verified there, switched atomically, taken back where they are not healthy.

::

    from narrowcast.devices.flash import FlashOptions, flash

    report = flash("model.ncb", "pi@camera-7", "rpi5", options=FlashOptions(to="tail.example:7433", source="/dev/video0"))

``docs/flash.md`` tells what each step does on the board.
"""

from __future__ import annotations

from narrowcast.devices.flash.api import flash, logs, rollback, status, trust
from narrowcast.devices.flash.observer import Observer
from narrowcast.devices.flash.options import Connection, FlashOptions
from narrowcast.devices.flash.plan import STEPS, Command, Plan, PlannedStep
from narrowcast.devices.flash.report import BoardStatus, FlashReport, StepRecord

__all__ = [
    "STEPS",
    "BoardStatus",
    "Command",
    "Connection",
    "FlashOptions",
    "FlashReport",
    "Observer",
    "Plan",
    "PlannedStep",
    "StepRecord",
    "flash",
    "logs",
    "rollback",
    "status",
    "trust",
]
