"""What a source of frames is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from narrowcast.transport.contract import Image


class Captured(NamedTuple):
    """A frame and when it was.

    Attributes:
        image: uint8 ``[H, W, 3]`` RGB.
        captured_at: seconds of ``time.monotonic()``.
        name: of the frame, for people: a file's path, or the source and the frame's place in it.
    """

    image: Image
    captured_at: float
    name: str

    @classmethod
    def now(cls, image: Image, name: str) -> Captured:
        """A frame of this moment."""
        return cls(image, time.monotonic(), name)


class Source(Protocol):
    """Where frames come from. Opened anew for each call of :meth:`frames`.

    Attributes:
        name: for people.
        live: frames come by themselves, and old ones are worth less than new ones; an end is a fault, after which it is
            opened again. A source that is not live waits for whoever takes its frames, and ends.
        paced: frames may be far between without a fault: no watchdog.
    """

    name: str
    live: bool
    paced: bool

    def frames(self) -> Iterator[Captured]:
        """The frames, from opening to the end.

        Raises:
            SourceError: it does not open or go on.
        """

    def close(self) -> None:
        """From any thread: what is being waited for ends, where the system allows."""
