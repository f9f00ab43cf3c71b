"""Records as JSON lines: to stdout, or to a file that logs are rotated by."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Sequence
from contextlib import suppress

from narrowcast.transport.sinks import Record, SinkRejectedError, SinkUnavailableError


class JsonLines:
    """A :class:`~narrowcast.transport.sinks.outbox.Sink`.

    Args:
        path: of the file, which is appended to; ``-`` for stdout.
    """

    def __init__(self, path: str) -> None:
        self.name = "stdout" if path == "-" else path
        self._path = path
        self._stale = threading.Event()
        self._file: int | None = None

    def deliver(self, records: Sequence[Record]) -> None:
        """Writes whole lines; a disk that fills up in the middle of them is as it was before."""
        data = b"".join(record.to_json() + b"\n" for record in records)
        if self._stale.is_set():
            self._stale.clear()
            self.close()
        try:
            self._append(self._opened(), data)
        except BrokenPipeError as error:
            raise SinkRejectedError("nobody reads it any more") from error
        except OSError as error:
            raise SinkUnavailableError(error.strerror or str(error)) from error

    def _opened(self) -> int:
        if self._path == "-":
            return 1
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        return self._file

    def _append(self, file: int, data: bytes) -> None:
        state = os.fstat(file)
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(file, left) :]
        except OSError:
            if len(left) < len(data) and stat.S_ISREG(state.st_mode):
                with suppress(OSError):
                    os.ftruncate(file, state.st_size)
                    os.lseek(file, state.st_size, os.SEEK_SET)  # else a redirected stdout would leave a hole there
            raise

    def reopen(self) -> None:
        """The file may have been renamed: the next lines go to a new one. From any thread, and never waits: a write may."""
        self._stale.set()

    def close(self) -> None:
        """See :class:`~narrowcast.transport.sinks.outbox.Sink`."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
