"""How many unanswered frames a stream may have in flight."""

from __future__ import annotations

MAX_WINDOW = 64


class Credits:
    """The window of one stream: halved while the server is overloaded, doubled again afterwards, a windowful apart.

    Args:
        wished: for by the client.

    Attributes:
        window: what the client was told.
        limit: what the server enforces; above ``window`` while the client may not have read that it shrank.
    """

    __slots__ = ("_answers", "_granted", "limit", "window")

    def __init__(self, wished: int) -> None:
        self._granted = min(max(1, wished), MAX_WINDOW)
        self.window = self.limit = self._granted
        self._answers = 0

    def answered(self, overloaded: bool) -> bool:
        """An answer is on its way to the client.

        A client in whose hands n answers are that were written after a message with a smaller window has had at most
        (what it might have in flight before) - n in flight, or keeps to the new window: so the limit falls by one for each.

        Returns:
            whether ``window`` has changed, and the client is to be told before the next answer.
        """
        if self.limit > self.window:
            self.limit -= 1
        self._answers += 1
        if self._answers < self.window:
            return False
        self._answers = 0
        wanted = max(1, self.window // 2) if overloaded else min(self._granted, self.window * 2)
        if wanted == self.window:
            return False
        self.window = wanted
        self.limit = max(self.limit, wanted)
        return True
