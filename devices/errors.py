"""What can go wrong around boards.

::

    NarrowcastError
    └── DevicesError
        ├── TargetError      no such target, or a target file that is none
        └── SensorError      a sensor that is there and cannot be read (one that is not there is None, not an error)
"""

from __future__ import annotations

from narrowcast.transport.errors import NarrowcastError


class DevicesError(NarrowcastError):
    """Root of the boards' errors."""


class TargetError(DevicesError):
    """No such target, or a target file that is none."""


class SensorError(DevicesError):
    """A sensor that is there and cannot be read."""
