"""The edge client for ordinary code; :class:`AsyncClient`, which does the work, is for asyncio."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from types import TracebackType
from typing import Any

from narrowcast.head import background
from narrowcast.head.accounting import Ledger
from narrowcast.head.ahead import HandedOver, OneAhead, hand_over
from narrowcast.head.async_client import AsyncClient
from narrowcast.head.endpoints import To
from narrowcast.head.offload import OffloadControl
from narrowcast.head.rate.control import RateControl
from narrowcast.head.replay import ReplayCounters
from narrowcast.head.results import Result
from narrowcast.head.session import Encoded, HeadSession
from narrowcast.head.socket_bytes import SocketBytes
from narrowcast.head.sources.base import Captured
from narrowcast.head.unanswered import LinkCounters
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.contract import Image

__all__ = ["AsyncClient", "Client"]

INTERRUPTED_SECONDS = 5.0


class Client:
    """A client for ordinary code, with the network on a background thread. Use it as a context, or call :meth:`close`.

    Takes what :class:`AsyncClient` takes. Not meant to be shared between threads: give each its own.
    """

    def __init__(self, model: Bundle | HeadSession, address: To, **options: Any) -> None:
        self.session = model if isinstance(model, HeadSession) else HeadSession(model)
        self.window = max(1, options.get("window", 8))

        async def make() -> AsyncClient:  # a link belongs to the loop that it is made on
            return AsyncClient(self.session, address, **options)

        self._client = background.start(make()).result()

    @property
    def counters(self) -> LinkCounters:
        """What the link has done so far."""
        return self._client.counters

    @property
    def rate(self) -> RateControl | None:
        """What rate control has decided so far; None where there is none."""
        return self._client.rate

    @property
    def offload(self) -> OffloadControl | None:
        """What the offload decision has done so far; None where there is none."""
        return self._client.offload

    @property
    def ledger(self) -> Ledger:
        """What became of every frame."""
        return self._client.ledger

    @property
    def replay_counters(self) -> ReplayCounters | None:
        """What became of spooled frames; None without a spool."""
        return self._client.replay_counters

    def socket_bytes(self) -> SocketBytes | None:
        """Bytes on the link's sockets so far; None where the system does not tell."""
        return self._client.socket_bytes()

    def infer(self, frame: Image, level: int | None = None, *, deadline_ms: float | None = None) -> Result:
        """One frame, uint8 ``[H, W, 3]`` RGB of any size, to its result; see :meth:`AsyncClient.infer`."""
        handed_over = HandedOver(frame, time.monotonic(), time.perf_counter())
        return self._send(handed_over, self._encoded(handed_over, level, deadline_ms), deadline_ms).result()

    def stream(self, frames: Iterable[Image | Captured], level: int | None = None) -> Iterator[Result]:
        """Results in the order of the frames, with up to ``window`` frames under way at once.

        Frames of a :class:`narrowcast.head.sources.Feed` keep the time of their capture.

        ``frames`` is read on a thread of its own, which resizes the next frame while the head works on this one; so a result
        comes when it is there and not when the next frame is: a camera may block. At most ``window`` frames are read ahead
        of the results that were taken.

        Raises:
            whatever ``frames`` raises, after the results of the frames before; and see :meth:`infer`.
        """
        under_way: queue.SimpleQueue[Future[Result] | BaseException | None] = queue.SimpleQueue()
        room, stopped = threading.Semaphore(self.window), threading.Event()

        def handed_over() -> Iterator[HandedOver]:
            source = iter(frames)
            while not stopped.is_set():
                room.acquire()
                if not stopped.is_set():
                    try:
                        frame = next(source)
                    except StopIteration:
                        return
                    yield hand_over(frame, self.session.contract)

        def read() -> None:
            last: BaseException | None = None
            try:
                for one, encoded in encoding:
                    under_way.put(self._send(one, encoded))
            except BaseException as error:  # noqa: BLE001  (raised again where the results are taken)
                last = error
            under_way.put(last)

        # A thread each: to resize, encode and send: whoever wakes the network's loop loses Python's lock to it for a while.
        ahead = OneAhead(handed_over())
        encoding = OneAhead((one, self._encoded(one, level)) for one in ahead)
        threading.Thread(target=read, name="narrowcast-frames", daemon=True).start()
        try:
            while isinstance(item := under_way.get(), Future):
                result = item.result()
                room.release()
                yield result
            if item is not None:
                raise item
        finally:
            stopped.set()
            ahead.close()
            encoding.close()
            room.release()  # a reader that waits for room ends

    def _encoded(self, one: HandedOver, level: int | None, deadline_ms: float | None = None) -> Encoded:
        """Encodes on the caller's thread, while earlier frames are on the wire and the next one is resized."""
        return self._client.prepare(one.frame, level, one.started, deadline_ms)

    def _send(self, one: HandedOver, encoded: Encoded, deadline_ms: float | None = None) -> Future[Result]:
        async def send() -> Result:
            task = await self._client.submit_encoded(
                encoded, one.started, deadline_ms=deadline_ms, captured_at=one.captured_at
            )
            return await task

        return background.start(send())

    def close(self) -> None:
        """Ends the link; unanswered frames fail."""
        background.start(self._client.close()).result()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            self.close()
        else:  # Ctrl-C: whoever wants to end does not wait for a network that is stuck
            with suppress(FutureTimeoutError):
                background.start(self._client.close()).result(INTERRUPTED_SECONDS)
