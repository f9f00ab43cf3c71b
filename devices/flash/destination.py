"""Boards as people name them: ``user@host``, a name of ``~/.ssh/config``, ``ssh://user@host:port``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from narrowcast.devices.flash.errors import DestinationError

_PLAIN = re.compile(r"(?:[^\s@/:-][^\s@/:]*@)?(?P<host>[^\s@/:-][^\s@/:]*)")
_SIX = re.compile(r"(?:[^\s@/:-][^\s@/:]*@)?(?P<host>[0-9A-Fa-f:.]+(?:%\w+)?)")


@dataclass(frozen=True)
class Destination:
    """A board.

    Attributes:
        text: as it was given.
        words: for ssh's command line.
        host: to name it in messages.
    """

    text: str
    words: tuple[str, ...]
    host: str

    @classmethod
    def parse(cls, text: str) -> Destination:
        """From what a user wrote.

        Raises:
            DestinationError: it is none; above all nothing that ssh would take for an option.
        """
        if text.startswith("ssh://"):
            try:
                found = urlsplit(text)
                host, port = found.hostname, found.port
            except ValueError:
                host, port = None, None
            user = f"{found.username}@" if host and found.username else ""
            if host and not found.path.strip("/") and _PLAIN.fullmatch(user + host.replace(":", "")):
                return cls(text, (*(("-p", str(port)) if port else ()), "--", f"{user}{host}"), host)
        elif (match := _PLAIN.fullmatch(text) or (_SIX.fullmatch(text) if text.count(":") > 1 else None)) is not None:
            return cls(text, ("--", text), match["host"])
        raise DestinationError(
            f"{text[:80]!r} is no board: user@host, a name of ~/.ssh/config, or ssh://user@host:port"
        )
