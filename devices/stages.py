"""Where time goes, over many frames: what the demo shows and the profiler builds on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np


@dataclass(frozen=True)
class StageSummary:
    """One stage over all frames that passed through it, in milliseconds."""

    stage: str
    frames: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class StageTimer:
    """Collects times by stage, in the order in which stages are first seen.

    ``with timer.stage("resize"): ...`` measures here; :meth:`add` takes what was measured elsewhere.
    """

    def __init__(self) -> None:
        self._samples: dict[str, list[float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures the block by the monotonic clock. A block that raises is not counted."""
        start = perf_counter_ns()
        yield
        self.add(name, (perf_counter_ns() - start) / 1e6)

    def add(self, name: str, milliseconds: float) -> None:
        """Adds one frame's time in a stage."""
        self._samples.setdefault(name, []).append(milliseconds)

    def add_all(self, stages: dict[str, float]) -> None:
        """Adds one frame's times, milliseconds by stage."""
        for name, milliseconds in stages.items():
            self.add(name, milliseconds)

    def summary(self) -> list[StageSummary]:
        """Every stage, with linear interpolation between samples for the percentiles."""
        return [_summarise(name, samples) for name, samples in self._samples.items()]


def _summarise(name: str, samples: list[float]) -> StageSummary:
    p50, p90, p95, p99 = (float(p) for p in np.percentile(samples, [50, 90, 95, 99]))
    return StageSummary(name, len(samples), float(np.mean(samples)), p50, p90, p95, p99)
