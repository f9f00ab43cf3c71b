"""A ledger of frames: each one that is captured ends in exactly one way, and the counts always add up."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Literal, NamedTuple

from narrowcast.head.errors import AccountingError

Fate = Literal["answered", "local", "dropped", "spooled"]


class Account(NamedTuple):
    """A ledger's counts at one moment: ``captured`` is the sum of the others.

    Attributes:
        captured: frames that were handed over, or that a source had to drop.
        under_way: that have no end yet.
        answered: by a server.
        local: answered by the local exit.
        spooled: put on disk; the spool's own counters say what became of them since.
        dropped: by reason.
    """

    captured: int
    under_way: int
    answered: int
    local: int
    spooled: int
    dropped: dict[str, int]

    @property
    def adds_up(self) -> bool:
        """Whether every frame is in one place."""
        return self.captured == self.under_way + self.answered + self.local + self.spooled + sum(self.dropped.values())


class Ledger:
    """Keeps account of frames. Safe to use from several threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._captured = 0
        self._under_way: set[int] = set()
        self._ended: Counter[Fate] = Counter()
        self._dropped: Counter[str] = Counter()

    def capture(self) -> int:
        """A frame begins; what is returned names it until its end."""
        with self._mutex:
            frame, self._captured = self._captured, self._captured + 1
            self._under_way.add(frame)
            return frame

    def end(self, frame: int, fate: Fate, reason: str = "") -> None:
        """A frame's one end.

        Args:
            frame: of :meth:`capture`.
            fate: what became of it.
            reason: why it was dropped, in a few words out of a small number: it is a name to count by.

        Raises:
            AccountingError: it has ended before, or never began; or it is dropped without a reason.
        """
        with self._mutex:
            if frame not in self._under_way:
                raise AccountingError(
                    f"frame {frame} ends as {fate!r}, and is not under way: it has ended before, or never began"
                )
            if (fate == "dropped") != bool(reason):
                raise AccountingError(f"frame {frame} ends as {fate!r} with reason {reason!r}: what is dropped has one")
            self._under_way.remove(frame)
            if fate == "dropped":
                self._dropped[reason] += 1
            else:
                self._ended[fate] += 1

    def drop(self, reason: str) -> None:
        """A frame that was captured and goes no further."""
        self.end(self.capture(), "dropped", reason)

    @property
    def account(self) -> Account:
        """The counts, all of the same moment."""
        with self._mutex:
            ended = self._ended
            return Account(
                self._captured,
                len(self._under_way),
                ended["answered"],
                ended["local"],
                ended["spooled"],
                dict(self._dropped),
            )
