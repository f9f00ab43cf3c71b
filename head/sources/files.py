"""Image files: one, a folder of them, or a folder in which more appear."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from narrowcast.head.sources.base import Captured
from narrowcast.transport.errors import FrameError
from narrowcast.transport.frames import SUFFIXES, read_image

POLL_SECONDS = 0.5
# A file that cannot be read is tried again for so long: whoever writes it may take a pause.
PATIENCE_SECONDS = 10.0
State = tuple[int, int]  # a file's size, and when it was changed, ns


class ImageFiles:
    """An image file, or all in a folder and below, by name.

    Args:
        path: the file or folder.
        on_trouble: told of files that cannot be read; they are left out.

    Attributes:
        skipped: how many those were.

    Raises:
        FrameError: there is none.
    """

    live = False
    paced = True

    def __init__(self, path: Path, on_trouble: Callable[[str], None] | None = None) -> None:
        self.name = str(path)
        self.skipped = 0
        self._on_trouble = on_trouble or (lambda line: None)
        if path.is_file():
            self.files = [path]
        elif path.is_dir():
            self.files = sorted(
                found for found in path.rglob("*") if found.suffix.lower() in SUFFIXES and found.is_file()
            )
        else:
            raise FrameError(f"no image or folder {path}")
        if not self.files:
            raise FrameError(f"no images under {path}")

    def frames(self) -> Iterator[Captured]:
        """The files' frames."""
        for path in self.files:
            try:
                image = read_image(path)
            except FrameError as error:
                self._on_trouble(f"skipped: {error}")
                self.skipped += 1
                continue
            yield Captured.now(image, str(path))

    def close(self) -> None:
        """Nothing waits."""


def _state_of(path: Path) -> State | None:
    try:
        found = path.stat()
    except OSError:  # deleted since, or a link to nowhere: that is one file, and the next look tells
        return None
    return found.st_size, found.st_mtime_ns


class WatchedFolder:
    """Image files as they appear in a folder: those that are there, by name, then new ones, each once.

    A file counts once its size and time have not changed between two looks; whoever renames finished files into the folder
    is on the safe side. Folders are looked at, not listened to: that works on every file system, also on those of
    other machines.

    Args:
        folder: need not be there yet, or always (a card that is taken out).
        on_trouble: told of files that cannot be read; they are left out in the end.
        new_only: leave out what is there at the beginning.
        poll_seconds: between two looks.
    """

    live = False
    paced = True

    def __init__(
        self,
        folder: Path,
        on_trouble: Callable[[str], None] | None = None,
        *,
        new_only: bool = False,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self.name = str(folder)
        self._folder, self._poll_seconds = folder, poll_seconds
        self._on_trouble = on_trouble or (lambda line: None)
        self._closed = threading.Event()
        self._done: dict[Path, State] = {}
        if new_only:
            self._done = {path: state for path, state in (self._look() or {}).items() if state is not None}

    def _look(self) -> dict[Path, State | None] | None:
        """Images, each with size and time, or None where that cannot be said; None where the folder cannot be read."""
        try:
            paths = sorted(self._folder.iterdir())
        except OSError:  # gone, or goes while it is looked at
            return None
        return {path: _state_of(path) for path in paths if path.suffix.lower() in SUFFIXES and path.name[:1] != "."}

    def frames(self) -> Iterator[Captured]:
        """Frames until :meth:`close`."""
        before: dict[Path, State | None] = {}
        unread: dict[Path, float] = {}
        while not self._closed.is_set():
            now = self._look()
            if now is None:  # what was told stays told: the folder may come back as it was
                self._closed.wait(self._poll_seconds)
                continue
            self._done = {path: state for path, state in self._done.items() if path in now}
            for path, state in now.items():
                if state is None or self._done.get(path) == state or before.get(path) != state:
                    continue
                try:
                    image = read_image(path)
                except FrameError as error:
                    first = unread.setdefault(path, time.monotonic())
                    if time.monotonic() - first > PATIENCE_SECONDS:
                        self._on_trouble(f"skipped: {error}")
                        self._done[path] = state
                    continue
                self._done[path] = state
                unread.pop(path, None)
                yield Captured(image, time.monotonic(), str(path))
            unread = {path: first for path, first in unread.items() if path in now}
            before = now
            self._closed.wait(self._poll_seconds)

    def close(self) -> None:
        """Ends it."""
        self._closed.set()
