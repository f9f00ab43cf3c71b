"""Runs the ways in turns: idle, warm-up, blocks in an order that differs from round to round, idle; by one clock.

Temperature, clocks and other programs drift over minutes. Ways that ran one after the other would each get a weather of
their own; here each has many short turns, spread over the whole run. A turn begins with frames that do not count, in which
what the last way left behind (power still falling, caches, TCP's windows) goes away.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns

from narrowcast.devices.errors import ProfileError
from narrowcast.devices.profile.energy import Turn
from narrowcast.devices.profile.frames import FrameSet
from narrowcast.devices.profile.observer import Observer
from narrowcast.devices.profile.runners import Runner
from narrowcast.devices.profile.schema import Block, Mode
from narrowcast.devices.profile.tally import MAX_FRAMES, Tally
from narrowcast.devices.windows import Clock, Span
from narrowcast.head.errors import LinkError
from narrowcast.transport.contract import Image
from narrowcast.transport.structs import Settings

# A way whose frames take so long that it has had this many times its share is not run further.
_PATIENCE = 3.0
_LOOK_NS = 1_000_000_000
# In a row, after which the server is asked whether it is there at all.
_FAILURES = 3


class Timing(Settings, frozen=True):
    """How long everything takes, in seconds.

    Attributes:
        loaded_s: counted, of each way, one frame in flight.
        windowed_s: the same with several in flight; 0 for none.
        rounds: turns of each way, over which those are divided.
        lead_s: of uncounted frames at the beginning of a turn.
        idle_s: before and after.
        warm_up_s: of all ways in turn, which does not count.
        settle_s: after the work, before idle is measured again.
        seed: of the order.
    """

    loaded_s: float = 30.0
    windowed_s: float = 6.0
    rounds: int = 12
    lead_s: float = 0.5
    idle_s: float = 10.0
    warm_up_s: float = 5.0
    settle_s: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.loaded_s > 0 or self.rounds < 1:
            raise ValueError("loaded_s is more than 0, and there is at least one round")
        if min(self.windowed_s, self.lead_s, self.idle_s, self.warm_up_s, self.settle_s) < 0:
            raise ValueError("windows are not negative")

    @property
    def windowed_rounds(self) -> int:
        """In how many of the rounds there are turns with several in flight: they need longer ones."""
        return max(1, self.rounds // 3) if self.windowed_s > 0 else 0


class ReplayClock:
    """A recorded board's time: waiting costs none of ours, work takes what it takes here."""

    def __init__(self, start_ns: int) -> None:
        self._offset_ns = start_ns - perf_counter_ns()

    def now_ns(self) -> int:
        """See :class:`narrowcast.devices.windows.Clock`."""
        return perf_counter_ns() + self._offset_ns

    def sleep(self, seconds: float) -> None:
        """See :class:`narrowcast.devices.windows.Clock`."""
        self._offset_ns += max(0, round(seconds * 1e9))


@dataclass
class Measured:
    """What ran.

    Attributes:
        start_ns: when the run began, by its clock.
        spans: ``idle-before``, ``warm-up``, ``loaded`` and ``idle-after``, those that there were.
        blocks: in the order of time, nanoseconds since ``start_ns``.
        tallies: by way's id.
        why_incomplete: why it broke off; None where it did not.
        error: then, what ended it.
        warnings: by way's id.
    """

    start_ns: int
    tallies: dict[str, Tally]
    spans: dict[str, Span] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    why_incomplete: str | None = None
    error: BaseException | None = None
    warnings: dict[str, list[str]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all that was planned ran."""
        return self.why_incomplete is None

    def counted(self, way: str, mode: Mode) -> list[Turn]:
        """A way's counted stretches, by the run's clock."""
        return [
            Turn(
                Span(self.start_ns + block.start_ns, self.start_ns + block.end_ns),
                block.frames - block.failed,
                block.failed,
            )
            for block in self.blocks
            if block.way == way and block.mode == mode and block.frames
        ]


class Engine:
    """One run.

    Args:
        runners: the ways.
        frames: what they run on.
        timing: how long.
        clock: the board's.
        observer: is told what happens.
        look: called about once a second, between frames.
        is_there: called where a way has several failures in a row; raises a :class:`LinkError` if its server is gone.
    """

    def __init__(
        self,
        runners: Sequence[Runner],
        frames: FrameSet,
        timing: Timing,
        clock: Clock,
        observer: Observer,
        look: Callable[[], None] = lambda: None,
        is_there: Callable[[], None] = lambda: None,
    ) -> None:
        if not runners:
            raise ProfileError("no way is left to run: give --ways, or a bundle that has what they need")
        self._runners, self._frames, self._timing = runners, frames, timing
        self._clock, self._observer, self._look, self._is_there = clock, observer, look, is_there
        self._failed = Counter[str]()  # in a row, by way
        # By way. What does not count has a row of its own: how much of it there is depends on time, and the frames that
        # count would then be others from run to run, and from way to way.
        self._next = {runner.info.id: 0 for runner in runners}
        self._beside = dict(self._next)
        self._spent = {runner.info.id: 0.0 for runner in runners}
        self._looked = clock.now_ns()
        self.measured = Measured(self._looked, {runner.info.id: Tally(runner.info) for runner in runners})

    def run(self) -> Measured:
        """Everything. What interrupts it, or a link that fails, is noted in what is given back; other errors are raised."""
        try:
            self._run()
        except KeyboardInterrupt as error:
            self._broke_off("interrupted", error)
        except LinkError as error:
            self._broke_off(str(error), error)
        return self.measured

    def _run(self) -> None:
        timing, spans, clock = self._timing, self.measured.spans, self._clock
        spans["idle-before"] = self._idle("idle-before")
        self._observer.phase("warm-up", timing.warm_up_s)
        start = clock.now_ns()
        self._warm_up()
        spans["warm-up"] = Span(start, clock.now_ns())
        turns = list(self.turns())
        self._observer.phase("loaded", sum(seconds for _, _, seconds in turns))
        start = clock.now_ns()
        try:
            for number, (runner, mode, seconds) in enumerate(turns):
                if self._wants(runner):
                    self._observer.block_started(runner.info.id, mode, number, len(turns))
                    self._block(runner, mode, seconds)
        finally:
            spans["loaded"] = Span(start, clock.now_ns())
        clock.sleep(timing.settle_s)
        spans["idle-after"] = self._idle("idle-after")

    def turns(self) -> Iterator[tuple[Runner, Mode, float]]:
        """Who runs when, and for how many counted seconds: each round in an order of its own, the same for one seed."""
        timing = self._timing
        order = random.Random(timing.seed)  # noqa: S311  (nobody is to be kept from guessing it)
        step = timing.rounds // timing.windowed_rounds if timing.windowed_rounds else 0
        for number in range(timing.rounds):
            turns: list[tuple[Runner, Mode, float]] = [
                (runner, "single", timing.loaded_s / timing.rounds) for runner in self._runners
            ]
            if step and number % step == step - 1 and number // step < timing.windowed_rounds:
                seconds = timing.windowed_s / timing.windowed_rounds
                turns += [(runner, "windowed", seconds) for runner in self._runners if runner.info.link is not None]
            order.shuffle(turns)
            yield from turns

    def _idle(self, phase: str) -> Span:
        seconds = self._timing.idle_s
        self._observer.phase(phase, seconds)
        start = self._clock.now_ns()
        while (left := seconds - (self._clock.now_ns() - start) / 1e9) > 0:
            self._clock.sleep(min(1.0, left))
            self._look()
        return Span(start, self._clock.now_ns())

    def _warm_up(self) -> None:
        """A frame of every way in turn, until the time is over: opens links, fills caches, warms the board."""
        start = self._clock.now_ns()
        for number in range(MAX_FRAMES):
            for runner in self._runners:
                runner.run(self._frames.get(number)[0])
                if number and self._clock.now_ns() - start >= self._timing.warm_up_s * 1e9:
                    return
            if self._clock.now_ns() - start >= self._timing.warm_up_s * 1e9:
                return

    def _wants(self, runner: Runner) -> bool:
        """Whether a way is to go on: not if its frames take so long that others would have to wait for ever."""
        way, timing = runner.info.id, self._timing
        share = timing.loaded_s + timing.windowed_s + timing.rounds * timing.lead_s
        if self._spent[way] > _PATIENCE * share:
            if way not in self.measured.warnings:
                frames = self.measured.tallies[way].frames
                self._warn(way, f"its frames take so long that only {frames} were run, in {self._spent[way]:.0f} s")
            return False
        return self.measured.tallies[way].frames < MAX_FRAMES

    def _warn(self, way: str, text: str) -> None:
        self.measured.warnings.setdefault(way, []).append(text)

    def _block(self, runner: Runner, mode: Mode, seconds: float) -> None:
        """One turn. What was counted when it is interrupted stays."""
        way, clock = runner.info.id, self._clock
        lead_ns = clock.now_ns()
        counted = self._single if mode == "single" else self._windowed
        try:
            counted(runner, lead_ns, seconds)
        finally:
            self._spent[way] += (clock.now_ns() - lead_ns) / 1e9
            self._look()

    def _single(self, runner: Runner, lead_ns: int, seconds: float) -> None:
        clock, tally, number = self._clock, self.measured.tallies[runner.info.id], len(self.measured.blocks)
        self._lead(runner, lead_ns)
        before = runner.socket_bytes()
        start = now = clock.now_ns()
        frames = failed = 0
        try:
            while not frames or now - start < seconds * 1e9:
                now, failure = self.count_one(runner, tally, number)
                frames += 1
                failed += failure is not None
                if failure is not None or self._failed[runner.info.id]:
                    self._note_failure(runner.info.id, failure)
        finally:
            self._end(runner, "single", lead_ns, start, now, frames, failed)
        after = runner.socket_bytes()
        if before is not None and after is not None:
            tally.socket_up += after.sent - before.sent
            tally.socket_down += after.received - before.received
            tally.socket_frames += frames

    def count_one(self, runner: Runner, tally: Tally, block: int) -> tuple[int, str | None]:
        """A counted frame; gives when it was done, and its failure. All that profiling adds to a frame is in here."""
        frame, (image, capture_ms) = self._image(runner, self._next)
        sample = runner.run(image)
        now = self._clock.now_ns()
        tally.add(sample, capture_ms, block, frame)
        self._observer.frame_done(runner.info.id, sample.latency_ms, sample.failed)
        if now - self._looked > _LOOK_NS:
            self._looked = now
            self._look()
        return now, sample.failed

    def _note_failure(self, way: str, failed: str | None) -> None:
        if failed is None:
            self._failed[way] = 0
            return
        self._failed[way] += 1
        if self._failed[way] % _FAILURES == 0:
            self._is_there()

    def _lead(self, runner: Runner, lead_ns: int) -> None:
        """At least one frame, unless they are known to take very long."""
        tally = self.measured.tallies[runner.info.id]
        slow = len(tally.blocks) and float(tally.latency[-1]) > 1000 * max(self._timing.lead_s, 1.0)
        while not slow:
            runner.run(self._image(runner, self._beside)[1][0])
            if self._clock.now_ns() - lead_ns >= self._timing.lead_s * 1e9:
                return

    def _windowed(self, runner: Runner, lead_ns: int, seconds: float) -> None:
        """Counts from the lead's end until no more frames are handed over: the window is full all the time."""
        clock, tally = self._clock, self.measured.tallies[runner.info.id]
        lead_s = self._timing.lead_s
        stop = lead_ns + round((lead_s + seconds) * 1e9)
        start: int | None = None
        now, frames, failed = lead_ns, 0, 0
        try:
            for sample in runner.run_many(self._images_until(runner, stop)):
                done = clock.now_ns()
                if start is None:
                    start = done if done - lead_ns >= lead_s * 1e9 else None
                    continue
                if done > stop:
                    continue  # the window empties
                now = done
                frames += 1
                failed += sample.failed is not None
                if sample.failed is None:
                    tally.windowed_ms.append(sample.latency_ms)
                self._observer.frame_done(runner.info.id, sample.latency_ms, sample.failed)
        finally:
            if start is not None and frames:
                tally.windowed_s += (now - start) / 1e9
                tally.windowed_frames += frames - failed
                self._end(runner, "windowed", lead_ns, start, now, frames, failed)

    def _images_until(self, runner: Runner, stop_ns: int) -> Iterator[Image]:
        """The way's frames, as long as there is time for another."""
        for _ in range(MAX_FRAMES):
            yield self._image(runner, self._beside)[1][0]
            if self._clock.now_ns() >= stop_ns:
                return

    def _image(self, runner: Runner, row: dict[str, int]) -> tuple[int, tuple[Image, float | None]]:
        """The way's next frame in a row of frames, and its number among the different ones."""
        way = runner.info.id
        number = row[way]
        row[way] += 1
        return number % len(self._frames), self._frames.get(number)

    def _end(self, runner: Runner, mode: Mode, lead: int, start: int, end: int, frames: int, failed: int) -> None:
        if frames:
            zero = self.measured.start_ns
            self.measured.blocks.append(
                Block(
                    way=runner.info.id, mode=mode, lead_ns=lead - zero, start_ns=start - zero, end_ns=end - zero,
                    frames=frames, failed=failed,
                )
            )  # fmt: skip

    def _broke_off(self, why: str, error: BaseException) -> None:
        self.measured.why_incomplete, self.measured.error = why, error
