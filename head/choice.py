"""Which of a bundle's heads runs here, and on what: the fastest by measurement, if its symbols are what they should be.

Lower precision is not faster everywhere: INT8 halves the time of one head on one processor and triples it on another. So the
heads are timed on the board itself, side by side, and the answer is kept in a small file for the next start.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter_ns
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from narrowcast.head.backends import HeadBackend, load_backend
from narrowcast.head.backends.cuda import open_gpu
from narrowcast.head.cache import cache_folder
from narrowcast.head.errors import BackendError
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.bundle.manifest import Precision
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.files import replacing
from narrowcast.transport.selfcheck import reference_frames
from narrowcast.transport.structs import Settings, from_json, to_json

log = logging.getLogger(__name__)

Wanted = Precision | Literal["auto"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")

WARM_RUNS = 3
LEAST_RUNS, MOST_RUNS = 9, 51
MEASURING_MS = 1000.0
# What a precision must gain on fp32: below that, the difference is noise, and fp32 is the more exact.
LEAST_GAIN = 0.05
# Lines of /proc/cpuinfo that tell one processor from another; the others change from second to second.
_CPU_FACTS = ("model name", "flags", "CPU part", "Features", "Model")


class Choice(Settings, frozen=True):
    """Which precision runs, and why.

    Attributes:
        precision: that runs.
        backend: that runs it, with its version.
        head_ms: median time of one frame, by precision; empty where there was nothing to choose.
        rejected: precisions that the bundle has and this board does not run, each with the reason.
        remembered: the measurement was made at an earlier start.
        passed_over: backends that were preferred and do not run the head, each with the reason.
    """

    precision: Precision
    backend: str
    head_ms: dict[Precision, float] = {}
    rejected: dict[Precision, str] = {}
    remembered: bool = False
    passed_over: dict[str, str] = {}

    def __str__(self) -> str:
        """One line."""
        times = ", ".join(f"{name} {self.head_ms[name]:.2f} ms" for name in PRECISIONS if name in self.head_ms)
        when = ", measured at an earlier start" if self.remembered else ""
        reasons = "".join(f"; not {name}: {reason}" for name, reason in self.rejected.items())
        return f"head in {self.precision} on {self.backend}{f' ({times}{when})' if times else ''}{reasons}"


def load_head(
    bundle: Bundle,
    backends: Sequence[str],
    precision: Wanted,
    threads: int,
    check: Callable[[Precision, HeadBackend], str | None],
) -> tuple[HeadBackend, Choice]:
    """The head to run, on the first backend that loads it.

    Args:
        bundle: with one head or several.
        backends: keys of ``BACKENDS``, best first.
        precision: this one, or ``auto``: the fastest here.
        threads: for the backend.
        check: says what is wrong with a head's symbols on this board; None where nothing is. May raise a BackendError:
            the head does not run.

    Raises:
        MissingPartError: the bundle has no head of that precision.
        BackendError: no backend loads any of the heads.
    """
    passed_over: dict[str, str] = {}
    for backend in backends:
        try:
            head, choice = _load_head(bundle, backend, precision, threads, check)
        except BackendError as error:
            passed_over[backend] = str(error)
            if backend != backends[-1]:
                log.warning("the head does not run on %s, the next backend is tried: %s", backend, error)
            continue
        return head, msgspec.structs.replace(choice, passed_over=passed_over)
    raise BackendError("; ".join(passed_over.values()) or "no backend was named")


def _load_head(
    bundle: Bundle,
    backend: str,
    precision: Wanted,
    threads: int,
    check: Callable[[Precision, HeadBackend], str | None],
) -> tuple[HeadBackend, Choice]:
    present = [name for name in PRECISIONS if bundle.has("head", name)]
    if precision == "auto" and len(present) > 1:
        return _Chooser(bundle, backend, threads, present).choose(check)
    name: Precision = precision if precision != "auto" else next(iter(present), "fp32")
    loaded = load_backend(backend, bundle.read("head", name), threads=threads)
    return loaded, Choice(precision=name, backend=loaded.name)


class _Chooser:
    def __init__(self, bundle: Bundle, backend: str, threads: int, present: list[Precision]) -> None:
        self.bundle = bundle
        self.backend = backend
        self.threads = threads
        self.present = present

    def choose(self, check: Callable[[Precision, HeadBackend], str | None]) -> tuple[HeadBackend, Choice]:
        file = _cache_file(self.bundle, self.backend, self.threads)
        if (known := self._remembered(file)) is not None:
            return known
        size, level = self.bundle.manifest.input.size, self.bundle.manifest.codec.levels - 1
        frame = reference_frames(size, 1)[0]
        loaded: dict[Precision, HeadBackend] = {}
        rejected: dict[Precision, str] = {}
        failed: dict[Precision, str] = {}
        for name in self.present:
            try:
                head = self._load(name)
                head.run(frame, level)
                loaded[name] = head
            except BackendError as error:
                failed[name] = str(error)
        times = measure(loaded, size, level) if loaded else {}
        for name in fastest_first(times):
            try:
                if name == "fp32" or (fault := check(name, loaded[name])) is None:
                    break
                rejected[name] = fault
            except BackendError as error:
                failed[name] = str(error)
        else:
            raise BackendError("; ".join(dict.fromkeys([*failed.values(), *rejected.values()])))
        choice = Choice(precision=name, backend=loaded[name].name, head_ms=times, rejected=failed | rejected)
        if not failed:  # memory may have been short: at the next start it is tried again
            _keep(file, choice)
        return loaded[name], choice

    def _load(self, name: Precision) -> HeadBackend:
        return load_backend(self.backend, self.bundle.read("head", name), threads=self.threads)

    def _remembered(self, file: Path | None) -> tuple[HeadBackend, Choice] | None:
        """The choice of an earlier start; None if there is none, or the library is another one now."""
        try:
            choice = from_json(Choice, file.read_bytes(), file.name) if file is not None else None
        except (OSError, ConfigError):
            return None
        if choice is None or choice.precision not in self.present:
            return None
        try:
            loaded = self._load(choice.precision)
        except BackendError:
            return None
        return (loaded, msgspec.structs.replace(choice, remembered=True)) if loaded.name == choice.backend else None


def fastest_first(times: Mapping[Precision, float]) -> list[Precision]:
    """By milliseconds; what is not clearly faster than fp32 comes after it."""
    return sorted(times, key=lambda name: times[name] / (1.0 if name == "fp32" else 1 - LEAST_GAIN))


def measure(heads: Mapping[Precision, HeadBackend], size: tuple[int, int], level: int) -> dict[Precision, float]:
    """Median milliseconds of one frame of ``size``, by precision: heads take turns, so that all see the same weather."""
    frame: npt.NDArray[np.uint8] = reference_frames(size, 1)[0]
    return time_in_turns({name: partial(head.run, frame, level) for name, head in heads.items()})


def time_in_turns(runs: Mapping[Precision, Callable[[], object]]) -> dict[Precision, float]:
    """Median milliseconds of each, rounded; they take turns."""
    for run in runs.values():
        for _ in range(WARM_RUNS):
            run()
    samples: dict[Precision, list[float]] = {name: [] for name in runs}
    started = perf_counter_ns()
    for number in range(MOST_RUNS):
        if number >= LEAST_RUNS and (perf_counter_ns() - started) / 1e6 > MEASURING_MS:
            break
        for name, run in runs.items():
            before = perf_counter_ns()
            run()
            samples[name].append((perf_counter_ns() - before) / 1e6)
    return {name: round(float(np.median(times)), 3) for name, times in samples.items()}


def _cache_file(bundle: Bundle, backend: str, threads: int) -> Path | None:
    folder = cache_folder()
    heads = [part.sha256 for part in bundle.manifest.parts if part.kind in {"head", "selfcheck"}]
    key = "\n".join([*heads, backend, str(threads), *_machine(), *_gpu(backend)])
    return None if folder is None else folder / f"precision-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _gpu(backend: str) -> list[str]:
    """What TensorRT runs on: a card may be changed for another one in the same machine."""
    if backend != "tensorrt":
        return []
    try:
        return [str(open_gpu())]
    except BackendError:  # loading a head says it
        return []


def _machine() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return [platform.machine(), str(os.cpu_count()), *sorted({line for line in lines if line.startswith(_CPU_FACTS)})]


def _keep(file: Path | None, choice: Choice) -> None:
    if file is None:
        return
    try:
        with replacing(file) as out:
            out.write(to_json(choice))
    except OSError:
        return  # a board with a read-only disk measures at every start
