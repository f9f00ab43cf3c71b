"""What is said over ssh: one JSON object a line, in both directions; a file's bytes follow the line that announces them.

Requests: ``{"op": NAME, ...}``. Answers: any number of ``{"event": {...}}``, then ``{"ok": ...}`` or ``{"error": {"kind",
"message"}}``.
"""

from __future__ import annotations

import json
import threading
from typing import IO, Any

MAX_LINE_BYTES = 4 * 1024 * 1024
BEAT_SECONDS = 1.0


class Wire:
    """The board's end."""

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        self._in = incoming
        self._out = outgoing
        self._lock = threading.Lock()

    def request(self) -> dict[str, Any] | None:
        """The next one; None at the end. What is no request ends the conversation too."""
        line = self._in.readline(MAX_LINE_BYTES)
        if not line.endswith(b"\n"):
            return None
        found = json.loads(line)
        return found if isinstance(found, dict) else None

    def read(self, count: int) -> bytes:
        """A file's next ``count`` bytes.

        Raises:
            EOFError: the link broke.
        """
        data = self._in.read(count)
        if len(data) != count:
            raise EOFError("the link broke in the middle of a file")
        return data

    def event(self, event: dict[str, Any]) -> None:
        """Something that happened on the way."""
        self._say({"event": event})

    def ok(self, answer: Any = None) -> None:
        """The request is done."""
        self._say({"ok": answer})

    def error(self, kind: str, message: str) -> None:
        """The request failed."""
        self._say({"error": {"kind": kind, "message": message}})

    def _say(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._out.write(json.dumps(message).encode() + b"\n")
            self._out.flush()
