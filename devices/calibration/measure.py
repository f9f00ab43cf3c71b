"""``narrowcast probe --calibrate``: measures the small networks on this board, and fits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from narrowcast.devices.calibration import (
    Calibration,
    KindSettings,
    Machine,
    MeasuredPower,
    PredictionError,
    predict_ms,
)
from narrowcast.devices.calibration.fit import Kind, fit, nonnegative
from narrowcast.devices.calibration.graphs import Graph, graphs
from narrowcast.devices.calibration.operations import Operation, operation
from narrowcast.devices.calibration.power import Meter
from narrowcast.devices.errors import CalibrationError
from narrowcast.devices.probe import Board
from narrowcast.head.backends import load_profiler
from narrowcast.head.errors import BackendError

SECONDS = 120.0
IDLE_SECONDS = 3.0
LEAST_RUNS, MOST_RUNS = 3, 15
# Predictions are tested on a tenth of the graphs at a time, which that fit has not seen.
FOLDS = 10
Progress = Callable[[int], None]


class Measured(NamedTuple):
    """One network: its operators with their microseconds each, and milliseconds in all."""

    operations: Sequence[Operation]
    us: Sequence[float]
    ms: float


def calibrate(
    board: Board,
    *,
    threads: int = 1,
    seconds: float = SECONDS,
    meter: Meter | None = None,
    only: Sequence[Graph] | None = None,
    progress: Progress = lambda done: None,
) -> Calibration:
    """Measures this machine.

    Times are the least of several runs: what the board takes when nothing else runs. With power, another three seconds
    without any work tell what the board takes doing nothing.

    Args:
        board: what it is.
        threads: to compute with.
        seconds: about how long; at least 3 runs of every network are made whatever that takes.
        meter: reads the board's power; None where that cannot be measured.
        only: other networks than :func:`graphs`.
        progress: told of every network that is done: 1.

    Raises:
        CalibrationError: ONNX Runtime is missing, or runs none of the networks.
    """
    chosen = list(graphs() if only is None else only)
    watching = _Watch(meter)
    if meter is not None:
        with watching.to("idle"):
            time.sleep(IDLE_SECONDS)
    with watching.to("busy"):
        measured, blocked, runtime = _measure(chosen, threads, seconds, progress)
    kinds, graph_us, node_us = _fit(measured)
    return Calibration(
        format="narrowcast-calibration",
        version=1,
        machine=Machine(
            target=board.target,
            model=board.model,
            cpu=board.identity.cpu,
            cpus=board.cpus,
            architecture=board.architecture,
            os=board.os,
            kernel=board.kernel,
            jetpack=board.identity.jetpack,
            runtime=runtime,
        ),
        threads=threads,
        blocked=blocked,
        graph_us=graph_us,
        node_us=node_us,
        kinds={
            name: KindSettings(
                coefficients=list(kind.coefficients),
                coordinates=[[round(value, 4) for value in place] for place in kind.coordinates],
                residuals=[round(value, 4) for value in kind.residuals],
            )
            for name, kind in kinds.items()
        },
        error=_error(measured),
        power=watching.power(),
    )


def _measure(
    chosen: Sequence[Graph], threads: int, seconds: float, progress: Progress
) -> tuple[list[Measured], bool, str]:
    measured, blocked, runtime, refused = list[Measured](), False, "", ""
    until = time.monotonic() + seconds
    for done, graph in enumerate(chosen):
        share = max(0.0, until - time.monotonic()) / (len(chosen) - done)
        try:
            profile, name = load_profiler()
            started = time.monotonic()
            found = profile(graph.model, runs=LEAST_RUNS, threads=threads)
            once = (time.monotonic() - started) / (LEAST_RUNS + 2)
            again = min(MOST_RUNS, int((share - (time.monotonic() - started)) / max(once, 1e-6)))
            if again > LEAST_RUNS:
                found = found.least(profile(graph.model, runs=again, threads=threads))
        except BackendError as error:
            refused = f"{graph.name}: {error}"
            progress(1)
            continue
        progress(1)
        operations = [operation(node.op, node.inputs, node.outputs) for node in found.nodes]
        ms, us = found.cpu_ms if threads == 1 else found.ms, [node.us for node in found.nodes]
        # An operator that takes longer than the scheduler's slices is interrupted every time where something else runs; the
        # processor's time is not: what is above that was not the operator's own.
        own = min(1.0, 1e3 * ms / max(sum(us), 1e-6))
        measured.append(Measured(operations, [own * one for one in us], ms))
        blocked, runtime = blocked or found.blocked, name
    if len(measured) < min(len(chosen), FOLDS):
        raise CalibrationError(f"{len(measured)} of {len(chosen)} networks run here; the last that does not: {refused}")
    return measured, blocked, runtime


def _fit(measured: Sequence[Measured]) -> tuple[dict[str, Kind], float, float]:
    """Kinds, and what a run and an operator take besides."""
    operations = [one for graph in measured for one in graph.operations]
    kinds = fit(operations, [us for graph in measured for us in graph.us])
    rows = np.array([[1.0, len(graph.operations)] for graph in measured])
    left = np.array([1e3 * graph.ms - sum(graph.us) for graph in measured])
    weight = 1 / np.array([1e3 * graph.ms for graph in measured])
    graph_us, node_us = nonnegative(rows * weight[:, None], left * weight)
    return kinds, float(graph_us), float(node_us)


def _error(measured: Sequence[Measured]) -> PredictionError:
    """Each graph predicted by a fit without it, and without those that are tested with it."""
    errors = list[float]()
    for fold in range(min(FOLDS, len(measured))):
        kinds, graph_us, node_us = _fit([graph for n, graph in enumerate(measured) if n % FOLDS != fold])
        for graph in measured[fold::FOLDS]:
            ms, _ = predict_ms(kinds, graph.operations, graph_us, node_us)
            errors.append(abs(ms / graph.ms - 1))
    median, p90 = np.percentile(errors, [50, 90])
    return PredictionError(graphs=len(errors), median=round(float(median), 4), p90=round(float(p90), 4))


class _Watch:
    """Samples power in a thread of its own, under the name of what the board is doing."""

    def __init__(self, meter: Meter | None) -> None:
        self._meter = meter
        self._samples: dict[str, list[float]] = {}

    @contextmanager
    def to(self, doing: str) -> Iterator[None]:
        """Samples while the block runs."""
        if self._meter is None:
            yield
            return
        stop, samples = threading.Event(), self._samples.setdefault(doing, [])
        thread = threading.Thread(target=self._sample, args=(stop, samples), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def power(self) -> MeasuredPower | None:
        """What was measured; None without samples of both."""
        idle, busy = self._samples.get("idle", []), self._samples.get("busy", [])
        if self._meter is None or not idle or not busy:
            return None
        return MeasuredPower(
            idle_mw=float(np.mean(idle)), busy_mw=float(np.mean(busy)), samples=len(busy), scope=self._meter.scope
        )

    def _sample(self, stop: threading.Event, samples: list[float]) -> None:
        assert self._meter is not None
        while not stop.wait(1 / self._meter.sample_hz):
            now = self._meter.milliwatts()
            if now is not None:
                samples.append(now)
