"""What can go wrong in a deployment, beside what goes wrong in the verbs that it is made of.

::

    NarrowcastError
    └── DeployError
        ├── StageError      (2)  no such stage, or one that lacks what another one makes
        ├── StageIoError         this machine's disk or network fails a stage
        ├── PublishError         the server's folder cannot be written, holds another bundle of that name, or is not served
        ├── FleetFailedError     not all boards of a fleet run the release
        ├── ProfileOnBoardError  the board could not measure; exit code as `narrowcast profile` had there
        └── ReportError          the page cannot be made
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from narrowcast.transport.errors import NarrowcastError

if TYPE_CHECKING:
    from narrowcast.devices.fleet.results import FleetReport


class DeployError(NarrowcastError):
    """Root of a deployment's own errors."""


class StageError(DeployError):
    """No such stage, or one that lacks what another one makes."""

    exit_code = 2


class StageIoError(DeployError):
    """This machine's disk or network fails a stage: it is full, or may not be written."""


class PublishError(DeployError):
    """The server's folder cannot be written, holds another bundle of that name, or is not served."""


class ProfileOnBoardError(DeployError):
    """The board could not measure.

    Attributes:
        exit_code: that of ``narrowcast profile`` there; 1 where it was not asked, or ssh ended first.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


class ReportError(DeployError):
    """The page cannot be made."""


class FleetFailedError(DeployError):
    """Not all boards of a fleet run the release.

    Attributes:
        exit_code: that of the boards, where they agree.
        report: what became of each.
    """

    def __init__(self, message: str, exit_code: int, report: FleetReport) -> None:
        super().__init__(message)
        self.report = report
        self.exit_code = exit_code  # type: ignore[misc]
