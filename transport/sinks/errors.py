"""What can go wrong with a sink.

::

    TransportError
    └── SinkError
        ├── SinkUnavailableError    not now; the same records are worth another try
        └── SinkRejectedError       never: the other side does not want these records
"""

from __future__ import annotations

from narrowcast.transport.errors import TransportError


class SinkError(TransportError):
    """Root of what sinks raise."""


class SinkUnavailableError(SinkError):
    """Delivery failed and is worth another try. ``retry_after_s`` is what the other side asked for, or None."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SinkRejectedError(SinkError):
    """The other side refuses these records for good."""
