"""Log lines: one per event, as text or JSON, on stderr. Nothing per frame.

What a client chose (names of models, its own name) is cut and escaped; a flood of one event is counted instead of written.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import sys
import time
from collections.abc import Mapping
from typing import Literal

from narrowcast.tail.events import Field, event_fields
from narrowcast.tail.observe import FrameRecord, Silent, StreamInfo

MAX_FIELD_CHARACTERS = 120
MAX_REASON_CHARACTERS = 600  # of the fields `reason` and `warning`, which tell an operator what to do
MAX_MESSAGE_CHARACTERS = 2000
LINES_PER_SECOND = 20

log = logging.getLogger("narrowcast.events")
_PLAIN = re.compile(r"[\w.:/@%+\[\]-]+", re.ASCII)


def tell(event: str, level: int = logging.INFO, **fields: Field) -> None:
    """Writes one event."""
    log.log(level, event, extra=event_fields(event, **fields))


def set_up(form: Literal["text", "json"]) -> None:
    """Sends every log line of the process to stderr in this form."""
    handler: logging.Handler
    try:
        handler = UnwaitingHandler(sys.stderr.fileno())
    except (AttributeError, OSError):  # something else has taken its place
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)


class UnwaitingHandler(logging.Handler):
    """Writes to a pipe that perhaps nobody reads: what finds no room is left out and counted.

    Lines are written from the event loop, so a write that waits would hold up every board.

    Args:
        fd: the file descriptor.
    """

    # A pipe that can be written to takes this much without waiting (POSIX, PIPE_BUF; Linux: a page).
    ROOM_BYTES = 4096

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._lost = 0
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        """See :class:`logging.Handler`."""
        try:
            if self._lost and self._write(self.format(_lost(self._lost))):
                self._lost = 0
            if self._lost or not self._write(self.format(record)):
                self._lost += 1
        except Exception:  # noqa: BLE001  (as handlers do: what cannot be formatted is told on stderr)
            self.handleError(record)

    def _write(self, line: str) -> bool:
        data = f"{line}\n".encode(errors="backslashreplace")
        try:
            for start in range(0, len(data), self.ROOM_BYTES):
                if not self._poll.poll(0):
                    return False
                os.write(self._fd, data[start : start + self.ROOM_BYTES])
        except OSError:  # who read it is gone
            return False
        return True


def _lost(lines: int) -> logging.LogRecord:
    event = {"event": "lines_lost", "fields": {"lines": lines}}
    return logging.makeLogRecord({"name": log.name, "levelno": logging.WARNING, "levelname": "WARNING", **event})


class TextLines(logging.Formatter):
    """``INFO event key=value``, and ``INFO logger: message`` where a line is no event."""

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        event = getattr(record, "event", None)
        if event is None:
            line = f"{record.levelname} {record.name}: {_escaped(record.getMessage())}"
        else:
            fields: Mapping[str, Field] = getattr(record, "fields", {})
            line = " ".join(
                [record.levelname, event, *(f"{key}={_as_text(_cut(value, key))}" for key, value in fields.items())]
            )
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """One JSON object per line: ``time`` (UTC), ``level``, ``event`` (``log`` where a line is no event), and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See :class:`logging.Formatter`."""
        line: dict[str, object] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
        }
        if line["event"] == "log":
            line |= {"logger": record.name, "message": record.getMessage()[:MAX_MESSAGE_CHARACTERS]}
        line |= {key: _cut(value, key) for key, value in getattr(record, "fields", {}).items()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)  # ASCII alone: everything else is escaped


class EventLog(Silent):
    """Writes an event for each stream that is opened, closed or refused, and for each call that is refused."""

    def __init__(self) -> None:
        self._open: dict[StreamInfo, tuple[float, int]] = {}
        self._frames: dict[StreamInfo, int] = {}
        self._budget: dict[str, _Budget] = {}

    def stream_opened(self, stream: StreamInfo) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        since, streams = self._open.get(stream, (time.monotonic(), 0))
        self._open[stream] = since, streams + 1  # a camera that reconnects may have two for a moment
        self._frames.setdefault(stream, 0)
        self._tell("stream_opened", stream)

    def stream_closed(self, stream: StreamInfo, reason: str) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        since, streams = self._open.pop(stream, (time.monotonic(), 1))
        frames = self._frames.get(stream, 0)
        if streams > 1:
            self._open[stream] = since, streams - 1
        else:
            self._frames.pop(stream, None)
        seconds = round(time.monotonic() - since, 3)
        self._tell("stream_closed", stream, reason=reason, frames=frames, seconds=seconds)

    def refused(self, client: str, model: str, code: str) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        self._tell("refused", StreamInfo(client, model, b""), logging.WARNING, code=code)

    def frame_done(self, record: FrameRecord) -> None:
        """See :class:`~narrowcast.tail.observe.Observer`."""
        if record.stream in self._frames:
            self._frames[record.stream] += 1

    def _tell(self, event: str, stream: StreamInfo, level: int = logging.INFO, **fields: Field) -> None:
        budget = self._budget.setdefault(event, _Budget())
        if not budget.take():
            return
        if budget.left_out:
            fields["left_out"], budget.left_out = budget.left_out, 0
        if stream.stream_id:
            fields["stream"] = stream.stream_id.hex()
        tell(event, level, client=stream.client, model=stream.model, **fields)


class _Budget:
    """Lines that may still be written in this second."""

    def __init__(self) -> None:
        self.left_out = 0
        self._second = 0
        self._lines = 0

    def take(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > LINES_PER_SECOND:
            self.left_out += 1
            return False
        return True


def _cut(value: Field, key: str) -> Field:
    most = MAX_REASON_CHARACTERS if key in ("reason", "warning") else MAX_FIELD_CHARACTERS
    if isinstance(value, str) and len(value) > most:
        return value[:most] + "..."
    return value


def _as_text(value: Field) -> str:
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else json.dumps(value)
    return json.dumps(value, separators=(",", ":"))


def _escaped(message: str) -> str:
    """One line, without characters that a terminal obeys."""
    cut = message[:MAX_MESSAGE_CHARACTERS]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
