"""Whoever wants to watch a run while it goes on: a live view, a progress bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from narrowcast.devices.profile.schema import Mode


class Outline(NamedTuple):
    """What is going to run.

    Attributes:
        ways: ids, in the order in which they are to be shown.
        titles: by id.
        links: by id; None for what needs none.
        seconds: about how long all will take.
        rounds: turns of each way.
    """

    ways: Sequence[str]
    titles: Mapping[str, str]
    links: Mapping[str, str | None]
    seconds: float
    rounds: int


class PowerSample(NamedTuple):
    """The newest of what is sampled.

    Attributes:
        at_s: since the run began.
        total_watts: None where not measured.
        rails_watts: by rail; of one that counts energy, the mean since the sample before.
        temperatures_c: by zone.
        clocks_mhz: by clock.
        throttled: what slows the board down now; None where nothing tells.
    """

    at_s: float
    total_watts: float | None
    rails_watts: Mapping[str, float]
    temperatures_c: Mapping[str, float]
    clocks_mhz: Mapping[str, float]
    throttled: Sequence[str] | None


class Observer(Protocol):
    """Told what happens, on the profiler's thread or the sampler's, between frames: it must not block or raise.

    What :meth:`frame_done` costs lies outside of the frame's latency, and inside of the block: keep it in microseconds.
    """

    def begun(self, outline: Outline) -> None:
        """The run begins."""

    def phase(self, name: str, seconds: float) -> None:
        """``preparing``, ``idle-before``, ``warm-up``, ``loaded``, ``idle-after`` or ``evaluating``, and about how long."""

    def block_started(self, way: str, mode: Mode, done: int, total: int) -> None:
        """A way's turn; ``done`` of ``total`` blocks are over."""

    def frame_done(self, way: str, latency_ms: float, failed: str | None) -> None:
        """A counted frame has its answer, or the status that it failed with."""

    def sample(self, sample: PowerSample) -> None:
        """About once a second, and after each block."""

    def note(self, line: str) -> None:
        """Something that whoever watches should know."""

    def ended(self, complete: bool) -> None:
        """The measuring is over."""


class Silent:
    """Watches nothing; a base for those that care for some events only."""

    def begun(self, outline: Outline) -> None:
        """See :class:`Observer`."""

    def phase(self, name: str, seconds: float) -> None:
        """See :class:`Observer`."""

    def block_started(self, way: str, mode: Mode, done: int, total: int) -> None:
        """See :class:`Observer`."""

    def frame_done(self, way: str, latency_ms: float, failed: str | None) -> None:
        """See :class:`Observer`."""

    def sample(self, sample: PowerSample) -> None:
        """See :class:`Observer`."""

    def note(self, line: str) -> None:
        """See :class:`Observer`."""

    def ended(self, complete: bool) -> None:
        """See :class:`Observer`."""
