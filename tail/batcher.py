"""Frames of all streams of one model, answered in batches.

While one batch runs, the next one gathers; a lone frame never waits (unless ``max_delay_ms`` says so). Decoding and the
tail run off the event loop, on one thread per model: the library underneath has threads of its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import grpc
import numpy as np

from narrowcast.tail.errors import FrameRefusedError, TailBackendError
from narrowcast.tail.store import Model
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.packet import Packet
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.tensors import to_tensor
from narrowcast.transport.tasks import MAIN

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What the tail made of one frame."""

    outputs: list[pb.Tensor]
    times: pb.ServerTimes


class _Frame(NamedTuple):
    packet: Packet
    arrived: float
    answer: asyncio.Future[Answer]
    tails: frozenset[str]


class Batcher:
    """Answers one model's frames. Must be made and used on one event loop.

    Args:
        model: which.
        max_batch: frames per batch, at most.
        max_delay_ms: how long a batch may wait for more frames.
        max_queue: frames that may wait; one more is refused.

    Raises:
        ConfigError: a limit that cannot be.
    """

    def __init__(self, model: Model, *, max_batch: int = 16, max_delay_ms: float = 0.0, max_queue: int = 1024) -> None:
        if max_batch < 1 or max_queue < 1 or not max_delay_ms >= 0:
            raise ConfigError(
                f"batches of {max_batch} frames, {max_queue} that wait, a delay of {max_delay_ms} ms: at least 1, 1 and 0"
            )
        self.model = model
        self._max_batch = max_batch
        self._max_delay = max_delay_ms / 1000
        self._queue: asyncio.Queue[_Frame] = asyncio.Queue(max_queue)
        self._unanswered = 0
        self._batch: list[_Frame] = []  # being gathered or computed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"tail-{model.name}")
        self._task = asyncio.create_task(self._work())

    def submit(self, packet: Packet, tails: frozenset[str] = frozenset([MAIN])) -> asyncio.Future[Answer]:
        """Queues a frame for some of the model's tails.

        Returns:
            its answer; fails with :class:`FrameRefusedError` where the frame cannot be answered.
        """
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait(_Frame(packet, time.perf_counter(), answer, tails))
        except asyncio.QueueFull:
            _refuse(answer, grpc.StatusCode.RESOURCE_EXHAUSTED, "the server's queue is full; send this frame later")
        else:
            self._unanswered += 1
            answer.add_done_callback(self._answered)
        return answer

    @property
    def idle(self) -> bool:
        """Whether all that it has taken is answered."""
        return self._unanswered == 0

    def _answered(self, _: asyncio.Future[Answer]) -> None:
        self._unanswered -= 1

    async def close(self) -> None:
        """Stops; frames that still wait are refused."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        while not self._queue.empty():
            self._batch.append(self._queue.get_nowait())
        for frame in self._batch:
            _refuse(frame.answer, grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
        self._thread.shutdown(wait=False)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._gather()
            answers = await loop.run_in_executor(self._thread, self._compute, self._batch)
            for frame, answer in zip(self._batch, answers, strict=True):
                if frame.answer.done():
                    continue
                if isinstance(answer, FrameRefusedError):
                    frame.answer.set_exception(answer)
                else:
                    frame.answer.set_result(answer)

    async def _gather(self) -> None:
        """The next batch: at least one frame that somebody still waits for."""
        batch = self._batch = []
        while len(batch) < self._max_batch:
            if self._queue.empty() and batch:
                left = batch[0].arrived + self._max_delay - time.perf_counter()
                if left <= 0:
                    break
                try:
                    frame = await asyncio.wait_for(self._queue.get(), left)
                except asyncio.TimeoutError:
                    break
            else:
                frame = await self._queue.get()
            if not frame.answer.done():
                batch.append(frame)

    def _compute(self, batch: Sequence[_Frame]) -> Sequence[Answer | FrameRefusedError]:
        """Runs on the batcher's thread: decodes, runs the tail, packs the outputs. Never raises."""
        try:
            return self._answer(batch)
        except Exception as error:
            log.exception("a batch of %d frames failed", len(batch))
            failed = FrameRefusedError(grpc.StatusCode.INTERNAL.value[0], f"the tail failed: {error}")
            return [failed] * len(batch)

    def _answer(self, batch: Sequence[_Frame]) -> Sequence[Answer | FrameRefusedError]:
        started = time.perf_counter()
        levels = [frame.packet.level for frame in batch]
        symbols, errors = self.model.codec.decode_batch([frame.packet.payload for frame in batch], levels)
        decoded = time.perf_counter()
        good = [k for k, error in enumerate(errors) if error is None]
        results: list[Answer | FrameRefusedError] = [
            FrameRefusedError(grpc.StatusCode.INVALID_ARGUMENT.value[0], str(error)) for error in errors
        ]
        if not good:
            return results
        if len(good) < len(batch):
            symbols = symbols[good]
        try:
            at, wanted = np.array([levels[k] for k in good], np.int64), [batch[k].tails for k in good]
            outputs = self.model.answer(symbols, at, wanted)
        except TailBackendError as error:
            raise FrameRefusedError(grpc.StatusCode.INTERNAL.value[0], str(error)) from error
        done = time.perf_counter()
        for row, k in enumerate(good):
            times = pb.ServerTimes(
                queue_us=_microseconds(started - batch[k].arrived),
                decode_us=_microseconds(decoded - started),
                tail_us=_microseconds(done - decoded),
                batch=len(batch),
            )
            results[k] = Answer([to_tensor(name, array) for name, array in outputs[row].items()], times)
        return results


def _microseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e6))


def _refuse(answer: asyncio.Future[Answer], code: grpc.StatusCode, message: str) -> None:
    if not answer.done():
        answer.set_exception(FrameRefusedError(code.value[0], message))
