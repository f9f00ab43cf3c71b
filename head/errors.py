"""What can go wrong on the device.

::

    NarrowcastError
    └── HeadError
        ├── BackendError            the head does not load or run
        └── LinkError
            ├── PeerUnreachableError (4)   no server answers there
            ├── RefusedError               the server is there and will not serve this client; trying again is no use
            └── LinkClosedError            the client was closed while frames were under way
"""

from __future__ import annotations

from narrowcast.transport.errors import NarrowcastError


class HeadError(NarrowcastError):
    """Root of the device's errors."""


class BackendError(HeadError):
    """The head does not load or run."""


class LinkError(HeadError):
    """Root of what happens between client and server."""


class PeerUnreachableError(LinkError):
    """No server answers there."""

    exit_code = 4


class RefusedError(LinkError):
    """The server is there and will not serve this client; trying again is no use."""


class LinkClosedError(LinkError):
    """The client was closed while frames were under way."""
