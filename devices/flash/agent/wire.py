"""What is said over ssh: one JSON object a line, in both directions; a file's bytes follow the line that announces them.

Requests: ``{"op": NAME, ...}``. Answers: any number of ``{"event": {...}}``, then ``{"ok": ...}`` or ``{"error": {"kind",
"message"}}``. ``{"op": "beat"}`` is no request and gets no answer: it says that the other end is there.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

MAX_LINE_BYTES = 4 * 1024 * 1024
BEAT_SECONDS = 1.0
PIECE_BYTES = 16 * 1024  # each of them is a sign of life


class Wire:
    """The board's end.

    Attributes:
        lost_seconds: whole seconds; where the other end says nothing for so long, this process gets SIGALRM. 0: it may
            be silent. A link that dies without a word is else noticed after two hours, when TCP looks after it.
    """

    def __init__(self, incoming: IO[bytes], outgoing: IO[bytes]) -> None:
        self._in = incoming
        self._out = outgoing
        self._lock = threading.Lock()
        self.lost_seconds = 0

    def request(self) -> dict[str, Any] | None:
        """The next one; None at the end. What is no request ends the conversation too."""
        while True:
            with self._listening():
                line = self._in.readline(MAX_LINE_BYTES)
            if not line.endswith(b"\n"):
                return None
            found = json.loads(line)
            if not isinstance(found, dict):
                return None
            if found.get("op") != "beat":
                return found

    def read(self, count: int) -> bytes:
        """A file's next ``count`` bytes.

        Raises:
            EOFError: the link broke.
        """
        data = bytearray()
        while len(data) < count:
            with self._listening():
                piece = self._in.read(min(count - len(data), PIECE_BYTES))
            if not piece:
                raise EOFError("the link broke in the middle of a file")
            data += piece
        return bytes(data)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """While the other end is to say something; not while this one is at work."""
        if not self.lost_seconds:
            yield
            return
        signal.alarm(self.lost_seconds)
        try:
            yield
        finally:
            signal.alarm(0)

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
