"""Spooled packets that a server fails on: whether that is the packet's fault or the server's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

# A packet is at fault where a server has failed on it once, and again so often, each time with others answered in between.
STRIKES = 3
# So many failures without an answer between, and the server is left alone for a while: it is broken, or all of these are.
LOOK_AHEAD = 16
# Those that have left the spool for another reason are forgotten in the end.
MAX_REMEMBERED = 256


class Doubts:
    """What is known of packets that a server has failed on, by their numbers in the spool.

    Args:
        fingerprint: of the client's codec.
        live: how many live frames, of that codec, servers have answered so far.
    """

    def __init__(self, fingerprint: bytes, live: Callable[[], int]) -> None:
        self._fingerprint, self._live = fingerprint, live
        self._answered: Counter[bytes] = Counter()
        self._found: dict[int, tuple[int, int]] = {}  # strikes, and what was answered at the last one
        self._in_a_row = 0

    def answered(self, number: int, fingerprint: bytes) -> bool:
        """A server answers a packet of this codec; tells whether those before it that failed are to be tried again now."""
        self._answered[fingerprint] += 1
        self._found.pop(number, None)
        return self._in_a_row > 0

    def failed(self, number: int, fingerprint: bytes) -> bool:
        """A server fails on one; tells whether it is to be given up."""
        answered = self._answered[fingerprint] + (self._live() if fingerprint == self._fingerprint else 0)
        strikes, before = self._found.get(number, (-1, -1))
        if answered > before:
            self._found[number] = (strikes := strikes + 1, answered)
            if len(self._found) > MAX_REMEMBERED:
                del self._found[next(iter(self._found))]
        if strikes >= STRIKES:
            self._found.pop(number, None)
            return True
        self._in_a_row += 1
        return False

    @property
    def pending(self) -> bool:
        """Whether there are some to be tried again."""
        return self._in_a_row > 0

    @property
    def hopeless(self) -> bool:
        """Whether there is no point in going on for now."""
        return self._in_a_row >= LOOK_AHEAD

    def start_over(self) -> None:
        """All are tried again."""
        self._in_a_row = 0
