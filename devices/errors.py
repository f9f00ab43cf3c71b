"""What can go wrong around boards.

::

    NarrowcastError
    └── DevicesError
        ├── TargetError      no such target, or a target file that is none
        ├── CalibrationError a board cannot be calibrated, or a file is no calibration
        ├── RecordingError   a recorded board's file that is none, or cannot be written
        ├── LinkSettingsError     no such link to emulate, or one whose figures are wrong
        ├── LinkUnavailableError  a link cannot be emulated here, or no longer
        ├── RunError         a file that is no run record of the profiler
        ├── ProfileError     nothing that can be profiled: no ways, no frames
        ├── UnwrittenRunError     a run that is measured, and whose record cannot be written
        ├── MeterError       no such meter, or one whose settings or class are wrong
        └── SensorError      a sensor that is there and cannot be read (one that is not there is None, not an error)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from narrowcast.transport.errors import NarrowcastError

if TYPE_CHECKING:
    from narrowcast.devices.profile.schema import Run


class DevicesError(NarrowcastError):
    """Root of the boards' errors."""


class TargetError(DevicesError):
    """No such target, or a target file that is none."""


class RecordingError(DevicesError):
    """A recorded board's file that is none, or cannot be written."""


class RunError(DevicesError):
    """A file that is no run record of the profiler, or one of a later schema."""


class ProfileError(DevicesError):
    """Nothing that can be profiled: no ways, no frames, or a way that this bundle or server does not have."""


class UnwrittenRunError(DevicesError):
    """A run that is measured, and whose record cannot be written; the cause is the disk's own error.

    Attributes:
        run: what was measured.
        disk: why it is in no file.
    """

    def __init__(self, run: Run, disk: OSError) -> None:
        super().__init__(f"what was measured is in no file: {disk}")
        self.run = run
        self.disk = disk


class MeterError(DevicesError):
    """No such meter, or one whose settings or class are wrong."""


class LinkSettingsError(DevicesError):
    """No such link to emulate, or one whose figures are wrong."""


class LinkUnavailableError(DevicesError):
    """A link cannot be emulated here, or no longer: a tun device, a namespace or a right is missing."""


class CalibrationError(DevicesError):
    """A board cannot be calibrated, or a file is no calibration."""


class SensorError(DevicesError):
    """A sensor that is there and cannot be read.

    Attributes:
        reason: the name of the ``errno`` that the system gave, such as ``EACCES``; empty where the text itself is wrong.
    """

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason
