"""The last minutes of a tally, second by second: rates, and quantiles of the frames that were answered lately."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from narrowcast.tail.operations.histogram import quantile_seconds
from narrowcast.tail.operations.tally import STAGES, ModelTally, Tally

STEP_SECONDS = 1.0
POINTS = 120
RATE_SECONDS = 10.0
LATENCY_SECONDS = 60.0
TOTAL = "total"


class _Sums(NamedTuple):
    frames: int
    received_bytes: int
    durations: tuple[list[int], ...]  # counts per stage, and of the total


class _Snapshot(NamedTuple):
    at: float
    models: dict[str, _Sums]


class Rates(NamedTuple):
    """Answered frames and received bytes per second, over the last ``RATE_SECONDS``.

    None before there are two moments to compare.
    """

    frames: float | None
    received_bytes: float | None


class History:
    """Snapshots of a tally; somebody calls :meth:`tick` every ``STEP_SECONDS``."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._snapshots: deque[_Snapshot] = deque(maxlen=round(LATENCY_SECONDS / STEP_SECONDS) + 1)
        self._points: deque[tuple[float, float | None]] = deque(maxlen=POINTS)

    def tick(self, now: float | None = None) -> None:
        """Takes a snapshot; ``now`` as ``time.monotonic``."""
        at = time.monotonic() if now is None else now
        self._snapshots.append(_Snapshot(at, {name: _sums(model) for name, model in self._tally.models.items()}))
        if len(self._snapshots) > 1:
            self._add_point(self._snapshots[-2], self._snapshots[-1])

    def rates(self, name: str | None = None) -> Rates:
        """Of one model, or of all."""
        ends = self._ends(RATE_SECONDS)
        if ends is None:
            return Rates(None, None)
        first, last = ends
        seconds = last.at - first.at
        names = last.models if name is None else [name]
        frames = sum(_of(last, n).frames - _of(first, n).frames for n in names)
        received = sum(_of(last, n).received_bytes - _of(first, n).received_bytes for n in names)
        return Rates(frames / seconds, received / seconds)

    def quantiles_ms(self, name: str, shares: Sequence[float]) -> dict[str, list[float | None]]:
        """By stage and ``total``: a quantile per share, of the frames of the last ``LATENCY_SECONDS``."""
        ends = self._ends(LATENCY_SECONDS)
        if ends is None:
            return {stage: [None] * len(shares) for stage in (*STAGES, TOTAL)}
        before, after = (_of(end, name).durations for end in ends)
        found = {}
        for stage, old, new in zip((*STAGES, TOTAL), before, after, strict=True):
            lately = _less(new, old)
            found[stage] = [_ms(quantile_seconds(lately, share)) for share in shares]
        return found

    def series(self) -> tuple[list[float], list[float | None]]:
        """Per step, the oldest first: frames per second of all models, and their p95 from arrival to result, in ms."""
        return [rate for rate, _ in self._points], [latency for _, latency in self._points]

    def _add_point(self, before: _Snapshot, after: _Snapshot) -> None:
        frames, lately = 0, [0] * len(_NOTHING.durations[-1])
        for name, sums in after.models.items():
            old = _of(before, name)
            frames += sums.frames - old.frames
            lately = [a + b - c for a, b, c in zip(lately, sums.durations[-1], old.durations[-1], strict=True)]
        rate = round(frames / max(after.at - before.at, 1e-9), 2)
        self._points.append((rate, _ms(quantile_seconds(lately, 0.95))))

    def _ends(self, seconds: float) -> tuple[_Snapshot, _Snapshot] | None:
        """The last snapshot, and the one that is about so much older, or the oldest."""
        if len(self._snapshots) < 2:
            return None
        last = self._snapshots[-1]
        steps = min(len(self._snapshots) - 1, max(1, round(seconds / STEP_SECONDS)))
        first = self._snapshots[-1 - steps]
        return (first, last) if last.at > first.at else None


_NOTHING = _Sums(0, 0, tuple(stage.counts for stage in (*ModelTally().stages, ModelTally().total)))


def _sums(model: ModelTally) -> _Sums:
    durations = tuple(histogram.counts.copy() for histogram in (*model.stages, model.total))
    return _Sums(model.results[0], model.received_bytes, durations)


def _of(snapshot: _Snapshot, name: str) -> _Sums:
    return snapshot.models.get(name, _NOTHING)


def _less(new: list[int], old: list[int]) -> list[int]:
    return [a - b for a, b in zip(new, old, strict=True)]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
