"""What is computed for a batch: packets decoded, networks run, outputs put into responses. Runs off the event loop.

Networks take frames of one size at a time: where a model's frames differ in size, they run once for each size in the batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import grpc
import numpy as np
import numpy.typing as npt

from narrowcast.tail.backends import Array
from narrowcast.tail.decoding import decode
from narrowcast.tail.drift.profile import profiles
from narrowcast.tail.errors import FrameRefusedError, TailBackendError
from narrowcast.tail.frame import Frame, refusal
from narrowcast.tail.seldom import Seldom
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


def answer_batch(
    model: Model, batch: Sequence[Frame], *, profiled: bool = False, failures: Seldom | None = None
) -> list[Response]:
    """A response for each frame, in their order. Symbols and images may be mixed. Never raises.

    Args:
        model: answers.
        batch: at least one frame.
        profiled: give each frame of symbols its profile, too.
        failures: which are told; None: all.
    """
    failures = Seldom() if failures is None else failures
    answer_symbols = partial(_answer_symbols, profiled=profiled)
    started = time.perf_counter()
    images = [row for row, frame in enumerate(batch) if frame.packet.kind is Kind.IMAGE]
    if not images:
        return _guarded(answer_symbols, model, batch, started, len(batch), failures)
    symbols = [row for row, frame in enumerate(batch) if frame.packet.kind is not Kind.IMAGE]
    responses: dict[int, Response] = {}
    for rows, answer in ((symbols, answer_symbols), (images, _answer_images)):
        if rows:
            found = _guarded(answer, model, [batch[row] for row in rows], started, len(batch), failures)
            responses |= dict(zip(rows, found, strict=True))
    return [responses[row] for row in range(len(batch))]


def _guarded(
    answer: _Answering, model: Model, frames: Sequence[Frame], started: float, size: int, failures: Seldom
) -> list[Response]:
    try:
        return answer(model, frames, started, size)
    except Exception as error:
        kind = type(error).__name__  # a lost GPU must not hide that memory is short, too
        if len(frames) > 1:  # one frame that the network cannot take must not fail those of others
            if (more := failures.take(f"batch {kind}")) is not None:
                told = "%r: a batch of %d frames failed, and is computed frame by frame: %s%s"
                log.warning(told, model.name, len(frames), error, more)
            return [one for frame in frames for one in _guarded(answer, model, [frame], started, size, failures)]
        if (more := failures.take(f"frame {kind}")) is not None:
            log.exception("%r: a frame failed%s", model.name, more)
        told = str(error) if isinstance(error, TailBackendError) else f"the tail failed: {error}"
        return [refusal(frame.packet, FrameRefusedError(_INTERNAL, told)) for frame in frames]


def _answer_symbols(
    model: Model, frames: Sequence[Frame], started: float, size: int, *, profiled: bool
) -> list[Response]:
    began = time.perf_counter()
    decoded, errors = decode(model, frames)
    done = time.perf_counter()
    outputs: dict[int, dict[str, Array]] = {}
    for rows, symbols in decoded:
        if profiled:
            _profile(model, [frames[row] for row in rows], symbols)
        levels = np.array([frames[row].packet.level for row in rows], np.int64)
        answers = model.answer(symbols, levels, [frames[row].tails for row in rows])
        outputs |= dict(zip(rows, answers, strict=True))
    good = sorted(outputs)
    found = [outputs[row] for row in good]
    return _responses(frames, good, errors, found, _Times(started, done - began, done, size))


def _profile(model: Model, frames: Sequence[Frame], symbols: npt.NDArray[np.uint8]) -> None:
    """A predicted frame counts as the key frame that it could have been: its own size says what moved, not what is there."""
    sizes = [
        len(f.packet.payload if f.reference is None else model.codec.encode(one, f.packet.level))
        for f, one in zip(frames, symbols, strict=True)
    ]
    for frame, profile in zip(frames, profiles(symbols, sizes), strict=True):
        frame.profile = profile


def _answer_images(model: Model, frames: Sequence[Frame], started: float, size: int) -> list[Response]:
    began = time.perf_counter()
    contract = model.manifest.input
    errors: list[PayloadError | None] = []
    prepared: dict[int, npt.NDArray[np.uint8]] = {}
    for row, frame in enumerate(frames):  # one after the other: a decoded image may be a thousand times its file
        try:
            prepared[row] = contract.prepare(decode_image(frame.packet.payload, frame.packet.codec)).image
            errors.append(None)
        except (PayloadError, FrameError) as error:
            errors.append(PayloadError(str(error)))
    decoded = time.perf_counter()
    outputs: dict[int, dict[str, Array]] = {}
    for shape in {image.shape for image in prepared.values()}:
        rows = [row for row, image in prepared.items() if image.shape == shape]
        answers = model.answer_images(np.stack([prepared[row] for row in rows]), [frames[row].tails for row in rows])
        outputs |= dict(zip(rows, answers, strict=True))
    good = sorted(outputs)
    found = [outputs[row] for row in good]
    return _responses(frames, good, errors, found, _Times(started, decoded - began, decoded, size))


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
