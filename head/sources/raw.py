"""Raw frames, one after the other without anything between, from a pipe, a file or a Unix socket."""

from __future__ import annotations

import os
import select
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from narrowcast.head.errors import SourceError
from narrowcast.head.sources.base import Captured
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.frames import MAX_PIXELS, Layout, to_rgb

_CHANNELS = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, "gray": 1}


class RawForm(NamedTuple):
    """What a raw frame is like.

    Attributes:
        width: in pixels.
        height: in pixels.
        layout: of the pixels.
    """

    width: int
    height: int
    layout: Layout = "rgb"

    @classmethod
    def parse(cls, text: str) -> RawForm:
        """``640x480`` or ``640x480:nv12``.

        Raises:
            ConfigError: not of that form, or no such layout.
        """
        size, _, layout = text.partition(":")
        width, _, height = size.partition("x")
        layouts = get_args(Layout)
        if not (width.isdecimal() and height.isdecimal()) or (layout or "rgb") not in layouts:
            raise ConfigError(
                f"raw frames of {text!r}: WIDTHxHEIGHT[:LAYOUT], such as 640x480:nv12; layouts: {', '.join(layouts)}"
            )
        form = cls(int(width), int(height), next(one for one in layouts if one == (layout or "rgb")))
        odd = form.layout == "nv12" and (form.width % 2 or form.height % 2)
        if not 0 < form.width * form.height <= MAX_PIXELS or odd:
            raise ConfigError(f"raw frames of {text!r}: at most {MAX_PIXELS} pixels; nv12 has even sides")
        return form

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        if self.layout == "nv12":
            return self.height * 3 // 2, self.width
        return self.height, self.width, _CHANNELS[self.layout]

    @property
    def size_bytes(self) -> int:
        """Of one frame."""
        return int(np.prod(self.shape))


class RawFrames:
    """Raw frames from a file descriptor or a path.

    Args:
        path: ``-`` for stdin; a file or named pipe otherwise.
        form: what they are like.
    """

    live = False
    paced = True

    def __init__(self, path: str, form: RawForm) -> None:
        self.name = "stdin" if path == "-" else path
        self._path, self._form = path, form
        self._closed = False

    def frames(self) -> Iterator[Captured]:
        """Frames to the end.

        Raises:
            SourceError: no such file, or a part of a frame at its end.
        """
        try:
            # A pipe whose writer is not there yet is waited for in read_frames, which can be ended. One that is stuck in
            # open would take the bytes of whoever reads the pipe next.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            file = sys.stdin.fileno() if self._path == "-" else os.open(self._path, flags)
        except (OSError, ValueError) as error:
            raise SourceError(f"{self.name}: {error}") from error
        try:
            yield from read_frames(self.name, file, self._form, lambda: self._closed)
        finally:
            if self._path != "-":
                os.close(file)

    def close(self) -> None:
        """Ends it, for good."""
        self._closed = True


class RawSocket:
    """Raw frames from whoever connects to a Unix socket, one writer at a time; another one may come when it has left.

    Args:
        path: of the socket; made here, for this user alone, and removed at the end.
        form: what frames are like.

    Raises:
        SourceError: it cannot be made, or something else is there.
    """

    live = True
    paced = True

    def __init__(self, path: Path, form: RawForm) -> None:
        self.name = f"unix:{path}"
        self._path, self._form = path, form
        self._closed = False
        try:
            if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
                raise SourceError(f"{self.name}: there is a file that is no socket")
            with suppress(FileNotFoundError):
                path.unlink()
            self._server = socket.socket(socket.AF_UNIX)
            before = os.umask(0o177)
            try:
                self._server.bind(str(path))
            finally:
                os.umask(before)
            self._server.listen(1)
        except OSError as error:
            raise SourceError(f"{self.name}: {error}") from error

    def frames(self) -> Iterator[Captured]:
        """One writer's frames.

        Raises:
            SourceError: it left in the middle of a frame.
        """
        while not self._closed:
            ready, _, _ = select.select([self._server], [], [], 0.2)
            if ready:
                break
        if self._closed:
            return
        connection, _ = self._server.accept()
        with connection:
            yield from read_frames(self.name, connection.fileno(), self._form, lambda: self._closed)

    def close(self) -> None:
        """Ends it."""
        self._closed = True
        self._server.close()
        with suppress(OSError):
            self._path.unlink()


def read_frames(name: str, file: int, form: RawForm, is_closed: Callable[[], bool]) -> Iterator[Captured]:
    """Frames from a file descriptor.

    Raises:
        SourceError: it cannot be read, or ends in the middle of a frame.
    """
    count = 0
    while True:
        buffer = bytearray(form.size_bytes)
        view, filled = memoryview(buffer), 0
        while filled < len(buffer):
            try:
                ready, _, _ = select.select([file], [], [], 0.2)
                if is_closed():  # what is there now is somebody else's
                    return
                taken = os.readv(file, [view[filled:]]) if ready else None
            except BlockingIOError:
                continue
            except OSError as error:
                raise SourceError(f"{name}: {error}") from error
            if taken == 0:
                if filled:
                    raise SourceError(
                        f"{name}: it ends after {filled} of the {len(buffer)} bytes of frame {count}: is "
                        f"{form.width}x{form.height}:{form.layout} right?"
                    )
                return
            filled += taken or 0
        pixels = np.frombuffer(buffer, np.uint8).reshape(form.shape)
        yield Captured.now(to_rgb(pixels, form.layout), f"{name}#{count}")
        count += 1
