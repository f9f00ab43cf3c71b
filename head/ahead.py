"""The next frame is resized while the head works on the one before: two cores are better than one."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from narrowcast.head.sources.base import Captured
from narrowcast.transport.contract import Image, InputContract, Prepared

T = TypeVar("T")
# The head's thread is done with its library and wants Python's lock, which another one holds for up to 5 ms by default.
SWITCH_SECONDS = 0.0005


def take_turns_quickly() -> None:
    """Threads give Python's lock to one another sooner. For programs: it is the whole process's setting."""
    sys.setswitchinterval(min(SWITCH_SECONDS, sys.getswitchinterval()))


class Ready(NamedTuple):
    """A frame that is resized already.

    Attributes:
        frame: uint8 ``[H, W, 3]`` RGB, as it was handed over.
        prepared: as the network takes it.
        contract: that it was prepared by.
        resize_ms: what that took.
    """

    frame: Image
    prepared: Prepared
    contract: InputContract
    resize_ms: float


def made_ready(frame: Image | Ready, contract: InputContract) -> Ready:
    """Resizes a frame, unless that was done by the same contract.

    Raises:
        FrameError: it is no frame.
    """
    if isinstance(frame, Ready):
        if frame.contract == contract:
            return frame
        frame = frame.frame
    started = time.perf_counter()
    prepared = contract.prepare(frame)
    return Ready(frame, prepared, contract, (time.perf_counter() - started) * 1000)


class HandedOver(NamedTuple):
    """A frame on its way to the head.

    Attributes:
        frame: ready where it could be made so; whoever encodes it finds out what is wrong with it otherwise.
        captured_at: seconds of ``time.monotonic()``.
        started: when it was handed over, by ``time.perf_counter()``.
    """

    frame: Image | Ready
    captured_at: float
    started: float


def hand_over(frame: Image | Captured, contract: InputContract) -> HandedOver:
    """A frame, resized. A caller's own array is copied: it may be filled with the next frame before this one is encoded."""
    started = time.perf_counter()
    if isinstance(frame, Captured):
        image, captured_at = frame.image, frame.captured_at
    else:
        image, captured_at = np.array(frame), time.monotonic()
    try:
        return HandedOver(made_ready(image, contract), captured_at, started)
    except Exception:  # noqa: BLE001  (also what a library raises: it is raised again, where the frame is accounted for)
        return HandedOver(image, captured_at, started)


class OneAhead(Generic[T]):
    """An iterator whose next item is made, on a thread of its own, while the present one is used.

    Use it as a context, or call :meth:`close`: the thread then ends with its next item. Errors come where their item would.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self._changed = threading.Condition()
        self._waiting: list[T] = []  # one at most
        self._closed = self._ended = False
        self._failure: BaseException | None = None
        threading.Thread(target=self._work, name="narrowcast-ahead", daemon=True).start()

    def _work(self) -> None:
        try:
            items = iter(self._items)
            while self._has_room():  # a camera's next frame is taken when it is wanted, and not before
                item = next(items)
                with self._changed:
                    self._waiting.append(item)
                    self._changed.notify_all()
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001  (raised again where items are taken)
            self._failure = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        """Waits until the last item is taken; False where nobody takes any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._waiting)
            return not self._closed

    def __iter__(self) -> Iterator[T]:
        """Items to the end; none any more once it is closed.

        Raises:
            whatever making an item raises.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting or self._ended)
                if self._closed:
                    return
                if not self._waiting:
                    if self._failure is not None:
                        raise self._failure
                    return
                item = self._waiting.pop()
                self._changed.notify_all()
            yield item

    def close(self) -> None:
        """Ends it."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def __enter__(self) -> OneAhead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
