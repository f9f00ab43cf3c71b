"""What can go wrong on the server.

::

    NarrowcastError
    └── TailError
        ├── StoreError           no bundles, or two of one name and release
        ├── TailBackendError     a tail does not load or run
        ├── ListenError          the address cannot be listened on
        └── FrameRefusedError    one frame cannot be answered; carries the status that its result gets
"""

from __future__ import annotations

from narrowcast.transport.errors import NarrowcastError


class TailError(NarrowcastError):
    """Root of the server's errors."""


class StoreError(TailError):
    """No bundles, or two of one name and release."""


class TailBackendError(TailError):
    """A tail does not load or run."""


class ListenError(TailError):
    """The address cannot be listened on."""


class FrameRefusedError(TailError):
    """One frame cannot be answered. ``code`` is the google.rpc.Code of its result."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
