"""Records a board while it runs: its identity, sensors and conditions over time, into one file that replays anywhere."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from narrowcast.devices.conditions import ConditionReader
from narrowcast.devices.errors import MeterError, RecordingError, SensorError
from narrowcast.devices.machine import Machine
from narrowcast.devices.machine.recording import MAX_BYTES, Recorder, Recording
from narrowcast.devices.power import PowerSource, open_power
from narrowcast.devices.probe import probe
from narrowcast.devices.targets import load_target

_CONDITIONS_NS = 1_000_000_000


class Recorded(NamedTuple):
    """What was recorded.

    Attributes:
        frames: looks at the board.
        failed: looks in which its power could not be read; they are in the recording too.
        why_no_power: where there is no power in it at all: why.
    """

    frames: int
    failed: int
    why_no_power: str | None


def record(
    path: Path,
    machine: Machine,
    seconds: float,
    *,
    hz: float | None = None,
    meter: str | None = None,
    architecture: str | None = None,
    target: str | Path | None = None,
    source: str = "",
    progress: Callable[[float], None] = lambda done: None,
) -> Recorded:
    """Records for so many ``seconds``.

    What is read is kept exactly as it was, failures too. Serial numbers and host names are not read or are left out. A
    meter of somebody's own class cannot be recorded: it reads where this does not see.

    Args:
        path: the file; it appears when it is whole.
        machine: usually the running one.
        seconds: at least one look is taken.
        hz: looks a second; the sensor's own rate if None.
        meter: instead of the board's own sensors; replays with the same ``meter``.
        architecture: of the machine; what a recording says, or this one's, if None.
        target: the kind of board, a name or a file of one's own: it says which sensors to read; recognised if None.
        source: what to say about where the values are from.
        progress: is told the seconds that are done.

    Raises:
        RecordingError: the file cannot be written, or grew too large.
        TargetError: there is no such target.
    """
    if architecture is None:
        architecture = machine.header.architecture if isinstance(machine, Recording) else platform.machine()
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            recorder = Recorder(machine, file, architecture=architecture, source=source)
            power, why, rate = _open(recorder, architecture, meter, target)
            done = _loop(recorder, power, seconds, hz or rate, progress, lambda: file.tell() > MAX_BYTES)
        part.replace(path)
    except OSError as error:
        raise RecordingError(f"{path} cannot be written: {os.strerror(error.errno or 0)}") from error
    finally:
        part.unlink(missing_ok=True)
    return Recorded(*done, why)


def _open(
    recorder: Recorder, architecture: str, meter: str | None, target: str | Path | None
) -> tuple[PowerSource | None, str | None, float]:
    with suppress(OSError, SensorError):
        recorder.read("proc/cpuinfo")  # the running machine's processors are counted in another way
    board = probe(recorder, architecture=architecture, meter=meter, target=target)
    target = target or board.target
    if target is None:
        return None, board.measures[0].why_not, 1.0
    try:
        source = open_power(load_target(target), recorder, meter=meter)
    except (MeterError, SensorError) as error:
        return None, str(error), 1.0
    return source, board.measures[0].why_not if source is None else None, source.sample_hz if source else 1.0


def _loop(
    recorder: Recorder,
    power: PowerSource | None,
    seconds: float,
    hz: float,
    progress: Callable[[float], None],
    full: Callable[[], bool],
) -> tuple[int, int]:
    conditions = ConditionReader(recorder)
    start = due = recorder.now_ns()
    slow = start
    frames = failed = 0
    while True:
        at = recorder.now_ns()
        try:
            if power is not None:
                at = power.reader.read().monotonic_ns
        except SensorError:
            failed += 1
        if at >= slow:
            conditions.read()
            slow = at + _CONDITIONS_NS
        recorder.frame(at)
        frames += 1
        progress((recorder.now_ns() - start) / 1e9)
        if full():
            raise RecordingError(f"the recording is larger than {MAX_BYTES >> 20} MiB: record for a shorter time")
        due = max(due + round(1e9 / hz), recorder.now_ns())
        if due - start > seconds * 1e9:
            return frames, failed
        recorder.sleep((due - recorder.now_ns()) / 1e9)
