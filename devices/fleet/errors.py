"""What can go wrong with a fleet, beside what goes wrong on one of its boards (:mod:`narrowcast.devices.flash.errors`).

::

    NarrowcastError
    └── DevicesError
        └── FleetError
            ├── InventoryError  (2)  no such inventory, or one that is wrong
            ├── SelectionError  (2)  no such board or group, a canary or a wave that cannot be
            ├── FleetStateError      a rollout's state file that is none, or cannot be written
            ├── FleetBusyError       another rollout of the same inventory is under way
            └── NotWellError         a board has the release already, and it does not work there
"""

from __future__ import annotations

from narrowcast.devices.errors import DevicesError


class FleetError(DevicesError):
    """Root of what can go wrong with a fleet."""


class InventoryError(FleetError):
    """No such inventory, or one that is wrong."""

    exit_code = 2


class SelectionError(FleetError):
    """No such board or group, a canary or a wave that cannot be."""

    exit_code = 2


class FleetStateError(FleetError):
    """A rollout's state file that is none, or cannot be written."""


class FleetBusyError(FleetError):
    """Another rollout of the same inventory is under way."""


class NotWellError(FleetError):
    """A board has the release already, and it does not work there."""
