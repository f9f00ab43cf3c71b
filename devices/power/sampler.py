"""Samples power in a process of its own, so that the measured program's Python cannot hold it up, at low priority.

The child reads on a grid of absolute moments and writes lines to a pipe; a thread here keeps the newest of them, up to
a bound. Its times are ``CLOCK_MONOTONIC``, which all processes of a machine share. It ends when told to, when this
process ends in whatever way (its standard input closes, or its parent changes), and at the end of a recorded board. It
never waits for a slow reader: what does not fit into the pipe is dropped and counted. What it costs is measured by
itself, and is in the trace.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from narrowcast.devices.conditions import ConditionReader, Conditions
from narrowcast.devices.errors import SensorError
from narrowcast.devices.machine import Machine, open_machine
from narrowcast.devices.machine.recording import Recording
from narrowcast.devices.power import RESET, PowerSource, Reading, open_power
from narrowcast.devices.power.trace import SamplerCost, Trace, Trouble
from narrowcast.devices.targets import load_target

NICE = 10
MAX_SAMPLES = 200_000  # 5.5 hours at 10 Hz
_MAX_PENDING = 256 << 10
_START_S = 30.0
_STOP_S = 5.0
_NEVER_S = 1e9


@dataclass(frozen=True)
class SamplerInfo:
    """What the sampler found: see :class:`narrowcast.devices.power.PowerSource`."""

    sensor: str
    rails: list[str]
    missing: dict[str, str]
    total: list[str]
    why_no_total: str | None
    scope: str
    sample_hz: float
    stall_s: float


class Sampler:
    """Samples from :meth:`start` to :meth:`stop`, or as a context.

    Args:
        target: the board's target, by name, or a file of one's own.
        root: what stands for ``/``; a recorded board is sampled in its own time, at once.
        meter: instead of the board's own sensors.
        hz: samples a second; the sensor's own rate if None.
        max_samples: how many are kept; older ones go.
        power: False reads conditions alone: temperatures, clocks, throttling, power mode; no target is needed then.
    """

    def __init__(
        self,
        target: str | None,
        root: Path | str = "/",
        *,
        meter: str | None = None,
        hz: float | None = None,
        max_samples: int = MAX_SAMPLES,
        power: bool = True,
    ) -> None:
        self._job = {"target": target, "root": str(root), "meter": meter, "hz": hz, "power": power}
        self._readings: deque[Reading] = deque(maxlen=max_samples)
        self._troubles: deque[Trouble] = deque(maxlen=max_samples)
        self._conditions: deque[tuple[int, Conditions]] = deque(maxlen=max_samples)
        self._cost = SamplerCost()
        self._ready = threading.Event()
        self._info: SamplerInfo | None = None
        self._error: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> SamplerInfo:
        """Starts sampling; returns once the sensor is open.

        Raises:
            SensorError: there is none, or it cannot be read.
        """
        command = [sys.executable, "-m", "narrowcast.devices.power.sampler", json.dumps(self._job)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
        assert self._process.stdout is not None
        self._thread = threading.Thread(target=self._drain, args=(self._process.stdout,), daemon=True)
        self._thread.start()
        self._ready.wait(_START_S)
        if self._info is None:
            code = self._process.poll()
            self.stop()
            ended = f"ended at once with exit code {code}" if code is not None else f"did not start in {_START_S:.0f} s"
            raise SensorError(self._error or f"the power sampler {ended}")
        return self._info

    def stop(self) -> Trace:
        """Ends the process; returns all that was kept. May be called again."""
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()  # the child takes this as the end
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if self._thread is not None:
                self._thread.join(_STOP_S)
        return self.trace()

    def wait(self, seconds: float) -> None:
        """Waits for the end of a recorded board."""
        if self._thread is not None:
            self._thread.join(seconds)

    def trace(self) -> Trace:
        """What there is until now."""
        return Trace(list(self._readings), list(self._troubles), list(self._conditions), self._cost)

    @property
    def pid(self) -> int | None:
        """Of the process; None before it was started."""
        return self._process.pid if self._process else None

    @property
    def newest_ns(self) -> int | None:
        """When the newest reading was; None before the first."""
        return self._readings[-1].monotonic_ns if self._readings else None

    @property
    def newest(self) -> tuple[Reading | None, Conditions | None]:
        """The newest reading and conditions; None before the first."""
        readings, conditions = self._readings, self._conditions
        return (readings[-1] if readings else None), (conditions[-1][1] if conditions else None)

    def __enter__(self) -> Sampler:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def _drain(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            self._take(json.loads(line))
        self._ready.set()

    def _take(self, line: dict[str, Any]) -> None:
        if "s" in line:
            self._readings.append(Reading(*line["s"]))
        elif "e" in line:
            self._troubles.append(Trouble(*line["e"]))
        elif "c" in line:
            self._conditions.append((line["c"][0], Conditions(**line["c"][1])))
        elif "u" in line:
            self._cost = SamplerCost(**line["u"])
        elif "hello" in line:
            self._info = SamplerInfo(**line["hello"])
            self._ready.set()
        elif "error" in line:
            self._error = line["error"]
            if self._info is not None:
                message = f"sampling ended: {self._error}"
                self._troubles.append(Trouble(time.monotonic_ns(), message, False))
            self._ready.set()


class _Lines:
    """Lines to a pipe, never waiting: what does not fit is kept up to a bound, and dropped beyond it."""

    def __init__(self, file: int) -> None:
        self._file, self._pending, self.dropped = file, bytearray(), 0
        os.set_blocking(file, False)

    def send(self, data: dict[str, Any]) -> None:
        line = json.dumps(data).encode() + b"\n"
        if len(self._pending) + len(line) > _MAX_PENDING:
            self.dropped += 1
        else:
            self._pending += line
        self._push()

    def finish(self) -> None:
        os.set_blocking(self._file, True)
        self._push()

    def _push(self) -> None:
        try:
            while self._pending:
                del self._pending[: os.write(self._file, self._pending)]
        except BlockingIOError:
            pass


class _NoPower:
    """Rails of a board whose power is not read."""

    name = ""

    def __init__(self, machine: Machine) -> None:
        self.rails: list[str] = []
        self.missing: dict[str, str] = {}
        self._machine = machine

    def read(self) -> Reading:
        """See :class:`~narrowcast.devices.power.PowerReader`."""
        return Reading(self._machine.now_ns(), {})


class _Loop:
    """The child: reads on a grid of moments until told to stop."""

    def __init__(self, machine: Machine, source: PowerSource, hz: float, lines: _Lines) -> None:
        self._machine, self._source, self._lines = machine, source, lines
        self._period_ns = round(1e9 / hz)
        self._conditions = ConditionReader(machine)
        self._parent = os.getppid()
        self._samples = self._late = 0

    def run(self) -> None:
        began = due = slow = self._machine.now_ns()
        cpu = _cpu_s()
        stop = False
        while not stop:
            self._sample()
            now = self._machine.now_ns()
            if now >= slow:  # once a second: what changes slowly, and what all this costs
                self._lines.send({"c": [now, self._conditions.read().as_dict()]})
                self._usage(_cpu_s() - cpu, now - began)
                slow = now + 1_000_000_000
            due += self._period_ns
            behind = (self._machine.now_ns() - due) // self._period_ns
            if behind > 0:
                self._late += behind
                due += behind * self._period_ns
            stop = self._wait(due)
        self._usage(_cpu_s() - cpu, self._machine.now_ns() - began)

    def _sample(self) -> None:
        try:
            reading = self._source.reader.read()
            self._lines.send({"s": [reading.monotonic_ns, dict(reading.milliwatts), dict(reading.joules)]})
            self._samples += 1
        except SensorError as error:
            self._lines.send({"e": [self._machine.now_ns(), str(error)[:500], error.reason == RESET]})

    def _usage(self, cpu_s: float, wall_ns: int) -> None:
        wall_s = 0.0 if isinstance(self._machine, Recording) else wall_ns / 1e9  # recorded time costs nothing
        cost = SamplerCost(cpu_s, wall_s, self._samples, self._late, self._lines.dropped)
        self._lines.send({"u": asdict(cost)})

    def _wait(self, due_ns: int) -> bool:
        """Until the moment; True where it is time to end."""
        seconds = max(0.0, (due_ns - self._machine.now_ns()) / 1e9)
        if isinstance(self._machine, Recording):
            self._machine.sleep(seconds)
            if self._machine.ended:
                return True
            seconds = 0.0
        closed, _, _ = select.select([0], [], [], seconds)
        return bool(closed) or os.getppid() != self._parent


def _cpu_s() -> float:
    """Of this process, and of the commands that it has run."""
    both = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def main(text: str) -> int:
    """The child's whole life; ``text`` is the job."""
    job = json.loads(text)
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all of a terminal's processes; the parent ends this one
    os.nice(NICE)
    lines = _Lines(os.dup(1))
    os.dup2(2, 1)  # what a meter of one's own prints is for people, and must not come between the lines
    try:
        machine = open_machine(job["root"])
        if job["power"]:
            source = open_power(load_target(job["target"]), machine, meter=job["meter"])
        else:
            source = PowerSource(_NoPower(machine), [], "power is not read", "", 1.0, _NEVER_S)
        if source is None:
            raise SensorError(
                f"target {job['target']} has no power sensor here; `narrowcast probe` says what is missing"
            )
        hz = job["hz"] or source.sample_hz
        reader = source.reader
        info = SamplerInfo(
            reader.name,
            reader.rails,
            reader.missing,
            source.total,
            source.why_no_total,
            source.scope,
            hz,
            source.stall_s,
        )
        lines.send({"hello": asdict(info)})
        _Loop(machine, source, hz, lines).run()
        lines.finish()
    except BrokenPipeError:
        return 0  # nobody is left to tell
    except Exception as error:  # noqa: BLE001  (the child's last boundary: its parent raises it)
        lines.send({"error": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
