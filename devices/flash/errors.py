"""What can go wrong between a developer's machine and a board.

::

    NarrowcastError
    └── DevicesError
        └── FlashError
            ├── DestinationError         (2)  not USER@HOST
            ├── BoardUnreachableError    (4)  no ssh server answers there, or the link broke and did not come back
            ├── LoginError                    it answers, and does not let us in
            ├── HostKeyError             (3)  an unknown host key that nobody accepted, or another one than before
            ├── SudoError                     a step needs root, and sudo asks for a password
            ├── DeclinedError                 the user said no to the plan
            ├── PreflightError                the board cannot run this: Python, disk, clock, architecture
            │   ├── WrongTargetError          the bundle or --target is for another kind of board
            │   ├── DowngradeError            an older release than the one that the board runs
            │   ├── DiskSpaceError            the board's disk is too full
            │   └── ServerUnreachableError (4)  the board does not reach the tail server
            ├── BusyError                     another flash of the board is under way
            ├── WheelhouseError               the board's wheels cannot be brought together
            ├── UploadError                   a file did not arrive as it was sent
            ├── RuntimeSetupError             the environment cannot be built on the board
            ├── BoardVerifyError         (3)  the board refuses the bundle: signature, key, hash, self-test
            ├── EdgeConfigError          (2)  the daemon's configuration does not hold on the board
            ├── NoReleaseError                nothing to roll back to, or nothing flashed yet
            ├── BoardError                    a step failed on the board for another reason; what ran before runs on
            └── RolledBackError          (5)  the new release failed its health gate; the one before it runs again

The board names these classes when a step fails there (:mod:`narrowcast.devices.flash.agent.errors`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from narrowcast.devices.errors import DevicesError

if TYPE_CHECKING:
    from narrowcast.devices.flash.report import FlashReport


class FlashError(DevicesError):
    """Root of what can go wrong when a board is flashed."""


class DestinationError(FlashError):
    """Not a destination as ssh takes it."""

    exit_code = 2


class BoardUnreachableError(FlashError):
    """No ssh server answers there, or the link broke and did not come back."""

    exit_code = 4


class LoginError(FlashError):
    """The board answers and does not let us in."""


class HostKeyError(FlashError):
    """An unknown host key that nobody accepted, or another one than before.

    Attributes:
        fingerprint: of the key that the board shows, ``SHA256:...``; empty where it could not be told.
    """

    exit_code = 3

    def __init__(self, message: str, *, fingerprint: str = "") -> None:
        super().__init__(message)
        self.fingerprint = fingerprint


class SudoError(FlashError):
    """A step needs root, and sudo asks for a password."""


class DeclinedError(FlashError):
    """The user said no to the plan."""


class PreflightError(FlashError):
    """The board cannot run this."""


class WrongTargetError(PreflightError):
    """The bundle or the target is for another kind of board."""


class DowngradeError(PreflightError):
    """An older release than the one that the board runs."""


class DiskSpaceError(PreflightError):
    """The board's disk is too full."""


class ServerUnreachableError(PreflightError):
    """The board does not reach the tail server."""

    exit_code = 4


class BusyError(FlashError):
    """Another flash of the board is under way."""


class WheelhouseError(FlashError):
    """The board's wheels cannot be brought together on this machine."""


class UploadError(FlashError):
    """A file did not arrive as it was sent."""


class RuntimeSetupError(FlashError):
    """The environment cannot be built on the board."""


class BoardVerifyError(FlashError):
    """The board refuses the bundle: signature, key, hash or self-test."""

    exit_code = 3


class EdgeConfigError(FlashError):
    """The daemon's configuration does not hold on the board."""

    exit_code = 2


class NoReleaseError(FlashError):
    """Nothing to roll back to, or nothing flashed yet."""


class BoardError(FlashError):
    """A step failed on the board; what ran before runs on."""


class RolledBackError(FlashError):
    """The new release failed its health gate; the one before it runs again.

    Attributes:
        report: what was done.
    """

    exit_code = 5

    def __init__(self, message: str, report: FlashReport | None = None) -> None:
        super().__init__(message)
        self.report = report


# What a board may answer, by name.
BY_NAME: dict[str, type[FlashError]] = {
    kind.__name__: kind
    for kind in (
        SudoError, PreflightError, WrongTargetError, DowngradeError, DiskSpaceError, ServerUnreachableError, BusyError,
        UploadError, RuntimeSetupError, BoardVerifyError, EdgeConfigError, NoReleaseError, BoardError, RolledBackError,
    )
}  # fmt: skip


def from_board(kind: str, message: str) -> FlashError:
    """The error that a board named; :class:`BoardError` for a name that this release does not know."""
    return BY_NAME.get(kind, BoardError)(message)
