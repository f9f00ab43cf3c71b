"""A link that breaks is made anew: the board goes on with what it was told, and whoever told it listens again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from narrowcast.devices.flash.errors import BoardUnreachableError

T = TypeVar("T")

# A link that broke is tried again so often, with pauses of 1, 2, 4, ... seconds.
RECONNECTS = 6
GOES_ON = "the board goes on by itself; narrowcast flash status shows how it ends"


@dataclass(frozen=True)
class Reconnecting:
    """How one conversation with a board goes on over several connections.

    Attributes:
        there: whether the board has answered once; who never did is not tried again.
        heard: another value than before where the last connection brought anything.
        started: whether the board goes on without us.
        note: is told of what happens.
    """

    there: Callable[[], bool]
    heard: Callable[[], object]
    started: Callable[[], bool]
    note: Callable[[str], object]

    def run(self, once: Callable[[], T]) -> T:
        """What ``once`` gives, over one connection or over the last of several.

        Raises:
            BoardUnreachableError: the link broke and did not come back.
        """
        pauses = _pauses()
        while True:
            heard = self.heard()
            try:
                return once()
            except BoardUnreachableError as error:
                if not self.there():
                    raise
                if heard != self.heard():
                    pauses = _pauses()
                if not pauses:
                    if self.started():
                        self.note(GOES_ON)
                    raise
                self.note(f"{error}; trying again")
                time.sleep(pauses.pop(0))
            except KeyboardInterrupt:
                if self.started():
                    self.note(GOES_ON)
                raise


def _pauses() -> list[float]:
    return [float(2**k) for k in range(RECONNECTS)]
