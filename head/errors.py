"""What can go wrong on the device.

::

    NarrowcastError
    └── HeadError
        ├── BackendError            the head does not load or run
    ├── ModelRefusedError       a bundle that is not to take the place of the one that runs
    ├── AccountingError         a frame that ends twice, or was never captured: a fault of the program
    ├── SpoolError              a folder that cannot be spooled to
    │   ├── SpoolLockedError    another process has it
    │   └── SpoolFormatError    written by a newer release
    ├── SourceError             a source of frames that does not open or go on
    │   └── StuckSourceError    that only another process may bring back
    ├── StateError              a daemon's folder that cannot be used
    │   └── StateLockedError    another daemon has it
    ├── ListenError             a socket that a daemon cannot listen on
        └── LinkError
            ├── PeerUnreachableError (4)   no server answers there
            ├── RefusedError               the server is there and will not serve this client; trying again is no use
            └── LinkClosedError            the client was closed while frames were under way
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from narrowcast.transport.errors import NarrowcastError


class HeadError(NarrowcastError):
    """Root of the device's errors."""


class BackendError(HeadError):
    """The head does not load or run."""


class ModelRefusedError(HeadError):
    """A bundle that is not to take the place of the one that runs."""


class AccountingError(HeadError):
    """A frame that ends twice, or was never captured: a fault of the program."""


class SpoolError(HeadError):
    """A folder that cannot be spooled to."""


class SpoolLockedError(SpoolError):
    """Another process has it."""


class SpoolFormatError(SpoolError):
    """Written by a newer release."""


class SourceError(HeadError):
    """A source of frames that does not open or go on."""


class StuckSourceError(SourceError):
    """A live source that this process cannot open any more; another one may."""


class StateError(HeadError):
    """A daemon's folder that cannot be used."""


class StateLockedError(StateError):
    """Another daemon has it."""


class ListenError(HeadError):
    """A socket that a daemon cannot listen on."""


class LinkError(HeadError):
    """Root of what happens between client and server."""


class PeerUnreachableError(LinkError):
    """No server answers there."""

    exit_code = 4


class Refusal(NamedTuple):
    """What one server says to a client that it will not serve.

    Attributes:
        status: gRPC's name for it; None where the server does not keep the protocol.
        words: the server's.
    """

    status: str | None
    words: str


class RefusedError(LinkError):
    """The server is there and will not serve this client; trying again is no use.

    Attributes:
        refusals: what each server says, where they were asked.
    """

    def __init__(self, message: str, refusals: Sequence[Refusal] = ()) -> None:
        super().__init__(message)
        self.refusals = tuple(refusals)

    def is_of_codec(self, fingerprint: bytes) -> bool:
        """Whether every server has the model, and none with this codec: the server's word for that names the codec.

        All else may be over tomorrow: a certificate or token that has expired, a proxy in the way, a server whose models
        are not there yet.
        """
        return bool(self.refusals) and all(
            status == "FAILED_PRECONDITION" and fingerprint.hex() in words for status, words in self.refusals
        )


class LinkClosedError(LinkError):
    """The client was closed while frames were under way."""
