"""What goes wrong on the board, by the name that the class has on the developer's machine."""

from __future__ import annotations


class AgentError(Exception):
    """A step that failed.

    Attributes:
        kind: a class of :mod:`narrowcast.devices.flash.errors`.
        message: one line: the object, what was seen, what to do.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = " ".join(message.split())
