"""Frames of all streams of one model, answered in batches.

While one batch runs, the next one gathers; a lone frame never waits (unless ``max_delay_ms`` says so). A thread per
model takes the batches out of the queue by itself, so that there is no gap between two of them; decoding and the networks
run there, with the interpreter's lock released by the libraries underneath.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import grpc

from narrowcast.tail.answering import answer_batch
from narrowcast.tail.errors import FrameRefusedError
from narrowcast.tail.fair_queue import FairQueue
from narrowcast.tail.frame import MAIN_ALONE, Frame, Priority
from narrowcast.tail.observe import Observer, Silent
from narrowcast.tail.seldom import Seldom
from narrowcast.tail.store import Model
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.packet import Kind, Packet
from narrowcast.transport.rpc import tail_pb2 as pb

log = logging.getLogger(__name__)

_EXPIRED = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]
# How often, at most, the queue is searched for frames whose deadline has passed.
SWEEP_SECONDS = 0.005
RETRY_MS = (10, 60_000)
# Waking a thread, and the event loop afterwards, costs 0.05 to 0.1 ms; a frame that takes less is answered on the loop.
LIGHT_SECONDS = 100e-6
LIGHT_BYTES = 65_536
# How many light batches, more or less, make a light model; a slow one counts against several.
_LEAST_LIGHT, _MOST_LIGHT, _SLOW_COUNTS = 4, 12, 5
# Of the time per frame, the newest batch counts this much.
_SMOOTHING = 0.2


class Answer(NamedTuple):
    """What the tail made of one frame."""

    outputs: Sequence[pb.Tensor]
    times: pb.ServerTimes


class Batcher:
    """Answers one model's frames. Must be made and used on one event loop.

    Args:
        model: which.
        max_batch: frames per batch, at most.
        max_delay_ms: how long a batch may wait for more frames.
        max_queue: frames that may wait; one more is refused.
        max_client_queue: frames of one client (by name) that may wait; None: half of ``max_queue``.
        observer: is told of each batch.

    Raises:
        ConfigError: a limit that cannot be.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_batch: int = 16,
        max_delay_ms: float = 0.0,
        max_queue: int = 1024,
        max_client_queue: int | None = None,
        observer: Observer | None = None,
    ) -> None:
        client_limit = max(1, max_queue // 2) if max_client_queue is None else max_client_queue
        if max_batch < 1 or max_queue < 1 or client_limit < 1 or not max_delay_ms >= 0:
            raise ConfigError(
                f"batches of {max_batch} frames, {max_queue} that wait ({client_limit} of one client), a delay of "
                f"{max_delay_ms} ms: at least 1, 1 (1) and 0"
            )
        self.model = model
        self.observer: Observer = observer or Silent()
        self.overloaded = False
        self._max_batch = max_batch
        self._max_delay = max_delay_ms / 1000
        self._queue = FairQueue(max_queue, client_limit)
        self._changed = threading.Condition(threading.Lock())  # over the queue and what follows
        self._sleeping = False  # the thread waits for frames
        self._running: Sequence[Frame] = ()
        self._closed = False
        self._failures = Seldom()
        self._frame_seconds: float | None = None
        self._light = _LEAST_LIGHT - 1  # a model is light from its first light frame on
        self._gathered: list[Frame] = []  # to be answered on the event loop, later in this turn
        self._idle = asyncio.Event()
        self._idle.set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        # Not one of an executor's, which the interpreter would wait for at its end however long a network hangs.
        self._thread = threading.Thread(target=self._work, name=f"tail-{model.name}", daemon=True)
        self._thread.start()

    @property
    def client_limit(self) -> int:
        """How many frames of one client may wait."""
        return min(self._queue.client_limit, self._queue.limit)

    @property
    def queued(self) -> int:
        """How many frames wait."""
        return len(self._queue)

    def put(self, frame: Frame, *, more: bool = False) -> None:
        """Queues a frame. It is finished on the event loop; at once where there is no place for it.

        Args:
            frame: the frame.
            more: other frames of its stream are unanswered: their client does not wait for this one alone.
        """
        if self._closed:
            frame.release = self.model.manifest.release
            frame.refuse(FrameRefusedError(_UNAVAILABLE, "the model is being unloaded; send this frame again"))
            return
        if self._is_light(frame):
            if more:
                self._compute_soon(frame)
            else:
                self._compute_here([frame])
            return
        with self._changed:
            full = self._queue.is_full_for(frame.client, len(frame.packet.payload))
            if not full:
                frame.queue = self
                self._queue.push(frame)
                if self._sleeping:
                    self._changed.notify()
        if full:
            frame.release = self.model.manifest.release
            frame.refuse(self._full(frame))
            return
        self._idle.clear()
        self._weigh()
        if frame.deadline is not None:
            self._sweep_at(frame.deadline)

    def submit(
        self,
        packet: Packet,
        tails: frozenset[str] = MAIN_ALONE,
        *,
        client: str = "",
        priority: Priority = Priority.NORMAL,
        deadline: float | None = None,
    ) -> asyncio.Future[Answer]:
        """Queues a frame for some of the model's tails; see :class:`Frame`. One that is cancelled is not computed.

        Returns:
            its answer; fails with :class:`FrameRefusedError` where the frame cannot be answered.
        """
        answer: asyncio.Future[Answer] = self._loop.create_future()

        def done(frame: Frame) -> None:
            assert frame.response is not None
            result = frame.response.result
            if answer.done():
                return
            if result.code:
                answer.set_exception(FrameRefusedError(result.code, result.message, result.retry_after_ms))
            else:
                answer.set_result(Answer(result.outputs, result.times))

        frame = Frame(packet, tails, client=client, priority=priority, deadline=deadline, on_done=done)
        answer.add_done_callback(lambda future: frame.drop() if future.cancelled() else None)
        self.put(frame)
        return answer

    def drop(self, frame: Frame) -> None:
        """Takes a frame out of the queue, where it still is there; see :meth:`Frame.drop`."""
        with self._changed:
            self._queue.remove(frame)
        self._weigh()

    async def idle(self) -> None:
        """Returns once no frame waits and none is computed."""
        await self._idle.wait()

    async def close(self) -> None:
        """Stops; frames that still wait, or are computed, are refused with UNAVAILABLE."""
        with self._changed:
            self._closed = True
            left = [*self._running, *self._gathered, *self._queue.remove_if(lambda frame: True)]
            self._running, self._gathered = (), []
            self._changed.notify()
        if self._sweeping is not None:
            self._sweeping.cancel()
        for frame in left:
            frame.refuse(FrameRefusedError(_UNAVAILABLE, "the server is shutting down"))
        self._weigh()

    # On the event loop

    def _full(self, frame: Frame) -> FrameRefusedError:
        mine, all_of = self._queue.waiting_of(frame.client), len(self._queue)
        own = self._queue.is_share_full(frame.client, len(frame.packet.payload))
        whose = "this client's part of the server's queue" if own else "the server's queue"
        return FrameRefusedError(
            _EXHAUSTED,
            f"{whose} is full ({mine} of {all_of} frames); send this frame later",
            self._retry_ms(mine if own else None),
        )

    def _retry_ms(self, mine: int | None) -> int:
        """When half of what stands in a client's way is likely to be done, by the rate of the last batches; 0: not known."""
        if self._frame_seconds is None:
            return 0
        ahead = len(self._queue) if mine is None else min(mine * self._queue.clients, len(self._queue))
        seconds = self._frame_seconds * ahead / 2
        return min(max(RETRY_MS[0], math.ceil(seconds * 1000)), RETRY_MS[1])

    def _weigh(self) -> None:
        """Sets ``overloaded``, with a wide step between on and off, and ``idle``."""
        count = len(self._queue)
        if count * 2 > self._queue.limit:
            self.overloaded = True
        elif count * 8 <= self._queue.limit:
            self.overloaded = False
            if not count and not self._running and not self._gathered and not self._idle.is_set():
                with self._changed:  # the thread may have just taken what is the last, and not said yet that it runs
                    idle = not self._queue and not self._running
                if idle:
                    self._idle.set()

    def _is_light(self, frame: Frame) -> bool:
        """Whether handing a frame to the thread would cost more than answering it: nothing waits, and it takes no time."""
        return (
            self._light >= _LEAST_LIGHT
            and self._sleeping
            and not self._max_delay
            and (frame.deadline is None or frame.deadline > time.perf_counter())
            and len(frame.packet.payload) <= LIGHT_BYTES
            and frame.packet.kind is not Kind.IMAGE
            and not self._queue
        )

    def _compute_soon(self, frame: Frame) -> None:
        """With what else the event loop finds in this turn: one batch takes less time than as many frames."""
        if not self._gathered:
            self._loop.call_soon(self._compute_gathered)
            self._idle.clear()
        self._gathered.append(frame)

    def _compute_gathered(self) -> None:
        frames, self._gathered = self._gathered, []
        waiting = [frame for frame in frames if not frame.dropped and frame.response is None]
        for start in range(0, len(waiting), self._max_batch):
            self._compute_here(waiting[start : start + self._max_batch])
        self._weigh()

    def _compute_here(self, batch: Sequence[Frame]) -> None:
        began = time.perf_counter()
        responses = self._compute(batch)
        self._measure(time.perf_counter() - began, len(batch))
        self._deliver(batch, responses, (), 0)

    def _compute(self, batch: Sequence[Frame]) -> list[pb.StreamResponse]:
        return answer_batch(self.model, batch, profiled=self.observer.wants_profiles, failures=self._failures)

    def _sweep_at(self, deadline: float) -> None:
        left = max(SWEEP_SECONDS, deadline - time.perf_counter())
        when = self._loop.time() + left
        if self._sweeping is not None:
            if self._sweeping.when() <= when:
                return
            self._sweeping.cancel()
        self._sweeping = self._loop.call_at(when, self._sweep)

    def _sweep(self) -> None:
        """Answers what has expired in the queue, however long the batch before it takes."""
        self._sweeping = None
        now = time.perf_counter()
        with self._changed:
            expired = self._queue.remove_if(lambda frame: frame.deadline is not None and frame.deadline <= now)
            ahead = [frame.deadline for frame in self._queue if frame.deadline is not None]
        self._refuse_expired(expired)
        if ahead:
            self._sweep_at(min(ahead))
        self._weigh()

    def _refuse_expired(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            frame.release = self.model.manifest.release
            waited = (time.perf_counter() - frame.arrived) * 1000
            frame.refuse(
                FrameRefusedError(_EXPIRED, f"it waited {waited:.0f} ms; its deadline has passed, it was not computed")
            )

    def _deliver(
        self, batch: Sequence[Frame], responses: Sequence[pb.StreamResponse], expired: Sequence[Frame], queued: int
    ) -> None:
        self._refuse_expired(expired)
        release = self.model.manifest.release
        for frame, response in zip(batch, responses, strict=True):
            frame.release = release
            frame.finish(response)
        self._weigh()
        if batch:
            self.observer.batch_done(self.model.name, len(batch), queued)

    # On the thread

    def _work(self) -> None:
        while True:
            with self._changed:
                self._gather()
                if self._closed:
                    return
                batch, expired = self._take()
                self._running = batch
            began = time.perf_counter()
            responses = self._compute(batch) if batch else []
            if batch:
                self._measure(time.perf_counter() - began, len(batch))
            self._running = ()
            self._loop_soon(self._deliver, batch, responses, expired, len(self._queue))

    def _loop_soon(self, *call: object) -> None:
        try:
            self._loop.call_soon_threadsafe(*call)  # type: ignore[arg-type]
        except RuntimeError:  # the loop was closed: nobody waits any more
            self._closed = True

    def _gather(self) -> None:
        """Returns with the lock held, when there are frames to take and no more are to be waited for."""
        while not self._closed:
            if len(self._queue) >= self._max_batch or (self._queue and not self._max_delay):
                return
            left = None
            if self._queue:
                left = self._wait_until() - time.perf_counter()
                if left <= 0:
                    return
            self._sleeping = True
            self._changed.wait(left)
            self._sleeping = False

    def _wait_until(self) -> float:
        """Until when a batch may gather; no frame spends more than half of its time on that."""
        return min(
            frame.arrived + self._max_delay
            if frame.deadline is None
            else min(frame.arrived + self._max_delay, (frame.arrived + frame.deadline) / 2)
            for frame in self._queue.heads()
        )

    def _take(self) -> tuple[list[Frame], list[Frame]]:
        """The next batch, and what has expired before it."""
        batch: list[Frame] = []
        expired: list[Frame] = []
        now = time.perf_counter()
        while self._queue and len(batch) < self._max_batch:
            frame = self._queue.pop()
            (expired if frame.deadline is not None and frame.deadline <= now else batch).append(frame)
        return batch, expired

    def _measure(self, seconds: float, frames: int) -> None:
        each = seconds / frames
        before = self._frame_seconds
        self._frame_seconds = each if before is None else before + _SMOOTHING * (each - before)
        # One slow frame may be the machine's doing, that had other things to do; two are the model's.
        light = self._light + 1 if each < LIGHT_SECONDS else self._light - _SLOW_COUNTS
        self._light = min(max(light, 0), _MOST_LIGHT)
