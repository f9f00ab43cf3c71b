"""The windows of a measurement: idle, warm-up, loaded, idle; all by one monotonic clock, on the machine that is measured.

After the rules of MLPerf Power and the practice of Zeus: performance and energy come from the same run, and the window
is set by the workload's own times, never by the sampler's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from narrowcast.transport.structs import Settings

LOADED_S = 30.0  # less is measured too, with a warning


class Clock(Protocol):
    """Where time comes from: a :class:`~narrowcast.devices.machine.Machine` is one."""

    def now_ns(self) -> int:
        """Monotonic."""

    def sleep(self, seconds: float) -> None:
        """Waits."""


class WindowPlan(Settings, frozen=True):
    """How long each window is, in seconds.

    Attributes:
        idle_s: before and after.
        warm_up_s: of work that does not count: caches, clocks, temperature.
        loaded_s: of work that counts; it goes on to the end of a frame.
        settle_s: after the work, before idle is measured again: power does not fall at once.
    """

    idle_s: float = 10.0
    warm_up_s: float = 5.0
    loaded_s: float = LOADED_S
    settle_s: float = 2.0

    def __post_init__(self) -> None:
        if min(self.idle_s, self.warm_up_s, self.settle_s) < 0 or not self.loaded_s > 0:
            raise ValueError("windows are not negative, and loaded_s is more than 0")


class Span(NamedTuple):
    """From and to, in nanoseconds of the monotonic clock."""

    start_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return (self.end_ns - self.start_ns) / 1e9


class Windows(NamedTuple):
    """What ran when.

    Attributes:
        idle_before: nothing of ours ran.
        warm_up: frames that do not count.
        loaded: frames that count, from the end of the last warm-up frame to the end of the last one.
        idle_after: nothing of ours ran.
        frame_ends_ns: when each frame of ``loaded`` was done, rising.
    """

    idle_before: Span
    warm_up: Span
    loaded: Span
    idle_after: Span
    frame_ends_ns: list[int]

    def warnings(self) -> list[str]:
        """What makes figures from these windows weaker than they should be."""
        found = []
        if self.loaded.seconds < LOADED_S:
            found.append(f"loaded for {self.loaded.seconds:.1f} s only; {LOADED_S:.0f} s or more are trustworthy")
        if self.warm_up.seconds == 0:
            found.append("no warm-up: the first frames count")
        return found


def run_windows(work: Callable[[], object], plan: WindowPlan, clock: Clock) -> Windows:
    """Runs the windows; ``work`` does one frame, and returns when it is done. What it raises ends the run."""
    idle_before = _idle(plan.idle_s, clock)
    warm_up, _ = _load(work, plan.warm_up_s, clock)
    loaded, ends = _load(work, plan.loaded_s, clock)
    clock.sleep(plan.settle_s)
    return Windows(idle_before, warm_up, loaded, _idle(plan.idle_s, clock), ends)


def _idle(seconds: float, clock: Clock) -> Span:
    start = clock.now_ns()
    clock.sleep(seconds)
    return Span(start, clock.now_ns())


def _load(work: Callable[[], object], seconds: float, clock: Clock) -> tuple[Span, list[int]]:
    start = now = clock.now_ns()
    ends: list[int] = []
    while now - start < seconds * 1e9:
        work()
        now = clock.now_ns()
        ends.append(now)
    return Span(start, now), ends
