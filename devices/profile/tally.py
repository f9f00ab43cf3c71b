"""What one way's frames took: columns of numbers, so that hours of frames fit into memory."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowcast.devices.profile.figures import StageName
from narrowcast.devices.profile.offset import Bound, bound_of
from narrowcast.devices.profile.runners import Sample, WayInfo
from narrowcast.head.timing import Exchange

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

# What is measured as it is; `network`, `return` and `other` follow from it.
MEASURED: tuple[StageName, ...] = (
    "capture", "resize", "head", "whole", "exit", "encode", "send", "wire", "queue", "decode", "tail",
)  # fmt: skip
MAX_FRAMES = 500_000
MAX_ANSWER_BYTES = 16 << 20
MAX_SIZES = 2000  # different frames whose packets a record tells one by one
_NAN = float("nan")


class Tally:
    """One way's counted frames, one in flight.

    Attributes:
        info: the way.
        blocks: the number of the block that each answered frame belongs to.
        answers: the first outputs for each different frame, by its number.
        failed: frames without an answer, by status.
        frames: counted, failed ones among them.
        socket_up: bytes on the socket over ``socket_frames``; so is ``socket_down``.
        windowed_ms: latencies with several in flight.
        windowed_s: seconds that those took.
        windowed_frames: that were done in them.
    """

    def __init__(self, info: WayInfo) -> None:
        self.info = info
        self.blocks = array("I")
        self.answers: dict[int, dict[str, Array]] = {}
        self.failed: Counter[str] = Counter()
        self.frames = 0
        self.socket_up = self.socket_down = self.socket_frames = 0
        self.windowed_ms = array("d")
        self.windowed_s = 0.0
        self.windowed_frames = 0
        self._kept_bytes = 0
        self._latency = array("d")
        self._bytes = (array("d"), array("d"))
        self._numbers = array("I")  # of answered frames, among the different ones
        self._stages = {name: array("d") for name in MEASURED}
        self._exchanges = {name: array("d") for name in Exchange._fields}

    def add(self, sample: Sample, capture_ms: float | None, block: int, frame: int) -> None:
        """A counted frame of a block; ``frame`` is its number among the different ones."""
        self.frames += 1
        if sample.failed is not None:
            self.failed[sample.failed] += 1
            return
        self.blocks.append(block)
        self._latency.append(sample.latency_ms + (capture_ms or 0.0))
        stages = sample.stages
        for name, column in self._stages.items():
            column.append(stages.get(name, _NAN))
        if capture_ms is not None:
            self._stages["capture"][-1] = capture_ms
        for column, value in zip(self._exchanges.values(), sample.exchange or (_NAN,) * 4, strict=True):
            column.append(value)
        self._numbers.append(frame)
        self._bytes[0].append(sample.up_bytes)
        self._bytes[1].append(sample.down_bytes)
        if frame not in self.answers and self._kept_bytes < MAX_ANSWER_BYTES:
            self.answers[frame] = dict(sample.outputs)
            self._kept_bytes += sum(values.nbytes for values in sample.outputs.values())

    @property
    def latency(self) -> Floats:
        """Of answered frames, in milliseconds."""
        return np.asarray(self._latency, np.float64)

    def stage(self, name: StageName) -> Floats:
        """Milliseconds of answered frames; NaN where the stage was not measured."""
        return np.asarray(self._stages[name], np.float64)

    def exchange(self, name: str) -> Floats:
        """Seconds of answered frames by ``name`` of :class:`narrowcast.head.timing.Exchange`; NaN where there is none."""
        return np.asarray(self._exchanges[name], np.float64)

    def mean_bytes(self) -> tuple[float | None, float | None]:
        """Of packets up and answers down."""
        up, down = (float(np.mean(column)) if len(column) else None for column in self._bytes)
        return up, down

    def up_bytes_by_frame(self) -> list[float | None]:
        """The packet of each different frame, in their order, up to the last one that was answered; None for others."""
        numbers, sizes = np.asarray(self._numbers, np.int64), np.asarray(self._bytes[0], np.float64)
        told = numbers < MAX_SIZES
        counts, sums = np.bincount(numbers[told]), np.bincount(numbers[told], sizes[told])
        return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]

    def by_block(self, values: Floats) -> dict[int, Floats]:
        """``values`` has a row for each answered frame: those of each block, by its number."""
        numbers = np.asarray(self.blocks, np.int64)
        return {int(number): values[numbers == number] for number in np.unique(numbers)}

    def bounds(self) -> list[Bound]:
        """What the exchanges of each block say of the clocks."""
        rows = np.stack([self.exchange(name) for name in Exchange._fields], 1)
        found = (bound_of(block) for block in self.by_block(rows).values())
        return [bound for bound in found if bound is not None]
