"""What is computed for a batch: packets decoded, networks run, outputs put into responses. Runs off the event loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import grpc
import numpy as np

from narrowcast.tail.backends import Array
from narrowcast.tail.errors import FrameRefusedError, TailBackendError
from narrowcast.tail.frame import Frame, refusal
from narrowcast.tail.store import Model
from narrowcast.transport.errors import FrameError, PayloadError
from narrowcast.transport.images import decode_image
from narrowcast.transport.packet import Kind
from narrowcast.transport.rpc import tail_pb2 as pb
from narrowcast.transport.rpc.tensors import to_tensor

log = logging.getLogger(__name__)

_INVALID, _INTERNAL = grpc.StatusCode.INVALID_ARGUMENT.value[0], grpc.StatusCode.INTERNAL.value[0]
Response = pb.StreamResponse
_Answering = Callable[[Model, Sequence[Frame], float, int], list[Response]]


def answer_batch(model: Model, batch: Sequence[Frame]) -> list[Response]:
    """A response for each frame, in their order. Symbols and images may be mixed. Never raises."""
    started = time.perf_counter()
    images = [row for row, frame in enumerate(batch) if frame.packet.kind is Kind.IMAGE]
    if not images:
        return _guarded(_answer_symbols, model, batch, started, len(batch))
    symbols = [row for row, frame in enumerate(batch) if frame.packet.kind is not Kind.IMAGE]
    responses: dict[int, Response] = {}
    for rows, answer in ((symbols, _answer_symbols), (images, _answer_images)):
        if rows:
            found = _guarded(answer, model, [batch[row] for row in rows], started, len(batch))
            responses |= dict(zip(rows, found, strict=True))
    return [responses[row] for row in range(len(batch))]


def _guarded(answer: _Answering, model: Model, frames: Sequence[Frame], started: float, size: int) -> list[Response]:
    try:
        return answer(model, frames, started, size)
    except Exception as error:
        log.exception("a batch of %d frames failed", len(frames))
        told = str(error) if isinstance(error, TailBackendError) else f"the tail failed: {error}"
        return [refusal(frame.packet, FrameRefusedError(_INTERNAL, told)) for frame in frames]


def _answer_symbols(model: Model, frames: Sequence[Frame], started: float, size: int) -> list[Response]:
    began = time.perf_counter()
    levels = [frame.packet.level for frame in frames]
    symbols, errors = model.codec.decode_batch([frame.packet.payload for frame in frames], levels)
    decoded = time.perf_counter()
    good = [row for row, error in enumerate(errors) if error is None]
    if len(good) < len(frames):
        symbols = symbols[good]
    outputs: list[dict[str, Array]] = []
    if good:
        outputs = model.answer(
            symbols, np.array([levels[row] for row in good], np.int64), [frames[row].tails for row in good]
        )
    return _responses(frames, good, errors, outputs, _Times(started, decoded - began, decoded, size))


def _answer_images(model: Model, frames: Sequence[Frame], started: float, size: int) -> list[Response]:
    began = time.perf_counter()
    contract = model.manifest.input
    errors: list[PayloadError | None] = []
    prepared = []
    for frame in frames:  # one after the other: a decoded image may be a thousand times its file
        try:
            prepared.append(contract.prepare(decode_image(frame.packet.payload, frame.packet.codec)).image)
            errors.append(None)
        except (PayloadError, FrameError) as error:
            errors.append(PayloadError(str(error)))
    decoded = time.perf_counter()
    good = [row for row, error in enumerate(errors) if error is None]
    outputs: list[dict[str, Array]] = []
    if good:
        outputs = model.answer_images(np.stack(prepared), [frames[row].tails for row in good])
    return _responses(frames, good, errors, outputs, _Times(started, decoded - began, decoded, size))


class _Times:
    """Of a batch, in seconds; ``started`` and ``decoded`` by ``time.perf_counter()``."""

    def __init__(self, started: float, decoding: float, decoded: float, size: int) -> None:
        self.started = started
        self.decode_us = _microseconds(decoding)
        self.tail_us = _microseconds(time.perf_counter() - decoded)
        self.size = size


def _responses(
    frames: Sequence[Frame],
    good: Sequence[int],
    errors: Sequence[PayloadError | None],
    outputs: Sequence[Mapping[str, Array]],
    times: _Times,
) -> list[Response]:
    responses = [
        Response() if error is None else refusal(frame.packet, FrameRefusedError(_INVALID, str(error)))
        for frame, error in zip(frames, errors, strict=True)
    ]
    for row, found in zip(good, outputs, strict=True):
        before = time.perf_counter()
        frame, result = frames[row], responses[row].result
        result.frame_id = frame.packet.frame_id
        result.outputs.extend([to_tensor(name, array) for name, array in found.items()])
        spent = result.times
        spent.queue_us = _microseconds(times.started - frame.arrived)
        spent.decode_us = times.decode_us
        spent.tail_us = times.tail_us
        spent.batch = times.size
        frame.encode_ms = (time.perf_counter() - before) * 1000
    return responses


def _microseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
