"""Frames that wait: bounded, in three lanes, and each client in its turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from narrowcast.tail.frame import Frame, Priority

# Of every 21 frames that leave a queue with enough of each. No lane starves, so a client that calls all of its frames
# urgent does not shut the others out.
WEIGHTS = {Priority.BACKGROUND: 1, Priority.NORMAL: 4, Priority.URGENT: 16}


class _Lane:
    """The frames of one priority: round robin between clients, first come first served within one.

    All frames of a model cost about the same, so that a deficit (M. Shreedhar and G. Varghese, "Efficient fair queuing using
    deficit round robin", 1995) would always be one frame.
    """

    __slots__ = ("frames", "left", "weight")

    def __init__(self, weight: int) -> None:
        self.weight = self.left = weight
        self.frames: dict[str, deque[Frame]] = {}  # by client, in the order of their turns

    def push(self, frame: Frame) -> None:
        waiting = self.frames.get(frame.client)
        if waiting is None:
            self.frames[frame.client] = waiting = deque()
        waiting.append(frame)

    def pop(self) -> Frame:
        client = next(iter(self.frames))
        waiting = self.frames.pop(client)
        frame = waiting.popleft()
        if waiting:
            self.frames[client] = waiting  # to the end of the line
        return frame

    def remove(self, frame: Frame) -> bool:
        waiting = self.frames.get(frame.client)
        if waiting is None or frame not in waiting:
            return False
        waiting.remove(frame)
        if not waiting:
            del self.frames[frame.client]
        return True


class FairQueue:
    """See the module. Not safe to use from several threads at once.

    Args:
        limit: frames that may wait.
        client_limit: frames of one client that may wait.
    """

    def __init__(self, limit: int, client_limit: int) -> None:
        self.limit = limit
        self.client_limit = client_limit
        self._lanes = [_Lane(WEIGHTS[priority]) for priority in Priority]
        self._by_client: dict[str, int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Frame]:
        for lane in self._lanes:
            for waiting in lane.frames.values():
                yield from waiting

    @property
    def clients(self) -> int:
        """How many clients have frames here."""
        return len(self._by_client)

    def waiting_of(self, client: str) -> int:
        """How many frames of a client wait."""
        return self._by_client.get(client, 0)

    def is_full_for(self, client: str) -> bool:
        """Whether a client's next frame has no place."""
        return self._count >= self.limit or self._by_client.get(client, 0) >= self.client_limit

    def push(self, frame: Frame) -> None:
        """Adds a frame; there must be a place for it."""
        self._lanes[frame.priority].push(frame)
        self._by_client[frame.client] = self._by_client.get(frame.client, 0) + 1
        self._count += 1

    def pop(self) -> Frame:
        """The frame whose turn it is. There must be one."""
        while True:
            for lane in reversed(self._lanes):
                if lane.left and lane.frames:
                    lane.left -= 1
                    return self._left(lane.pop())
            for lane in self._lanes:
                lane.left = lane.weight

    def remove(self, frame: Frame) -> bool:
        """Takes a frame out; False where it is not there any more."""
        found = self._lanes[frame.priority].remove(frame)
        if found:
            self._left(frame)
        return found

    def remove_if(self, unwanted: Callable[[Frame], bool]) -> list[Frame]:
        """Takes out what is unwanted."""
        found = [frame for frame in self if unwanted(frame)]
        for frame in found:
            self.remove(frame)
        return found

    def heads(self) -> Iterator[Frame]:
        """The longest waiting frame of each client and priority."""
        for lane in self._lanes:
            for waiting in lane.frames.values():
                yield waiting[0]

    def _left(self, frame: Frame) -> Frame:
        self._count -= 1
        left = self._by_client[frame.client] - 1
        if left:
            self._by_client[frame.client] = left
        else:
            del self._by_client[frame.client]
        return frame
