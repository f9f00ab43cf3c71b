"""One camera's detector: two two-sided CUSUMs on standardised sizes, with a baseline per level (``docs/drift.md``).

CUSUM: Page, "Continuous inspection schemes", Biometrika 41 (1954). One for small shifts and one for large ones, side by
side: Sparks, "CUSUM charts for signalling varying location shifts", Journal of Quality Technology 32 (2000). Standardised by
the long-run deviation, a sum of correlated sizes wanders like one of independent ones, and thresholds for those hold in the
long run.
"""

from __future__ import annotations

from enum import Enum
from math import log2
from typing import Annotated

import msgspec

from narrowcast.tail.drift.baseline import CLIP, Baseline, Learned
from narrowcast.transport.structs import Settings

Positive = Annotated[float, msgspec.Meta(gt=0)]
FREEZE = (
    0.4  # of a threshold: from here on the baseline stands still, so that a drift that begins does not become normal
)
MAX_LEVELS = 16  # with a baseline, per camera: bounds its memory


class DriftSettings(Settings, frozen=True):
    """How cameras are watched. The defaults are those that ``docs/drift.md`` gives figures for.

    Attributes:
        learn_frames: of a camera and level, from which its baseline is learned; a multiple of 50.
        memory_frames: a camera that changes more slowly than this is followed, not reported.
        allowances: shifts of less than this many long-run deviations do not add up, in the CUSUM for small and the one for
            large shifts.
        thresholds: of the two sums, in long-run deviations.
        least_shift: shifts of less than this many log2 of bytes never add up (0.015 is 1 %).
        recover_frames: an alarm ends after so many frames on end that are again like the baseline.
        adopt_frames: an alarm that lasts for so many frames is the new normal: its baseline is learned anew; 0: never.
    """

    learn_frames: Annotated[int, msgspec.Meta(ge=200, le=10_000, multiple_of=50)] = 1500
    memory_frames: Annotated[int, msgspec.Meta(ge=1000)] = 20_000
    allowances: tuple[Positive, Positive] = (0.15, 0.4)
    thresholds: tuple[Positive, Positive] = (34.0, 18.0)
    least_shift: Annotated[float, msgspec.Meta(ge=0)] = 0.015
    recover_frames: Annotated[int, msgspec.Meta(ge=1)] = 100
    adopt_frames: Annotated[int, msgspec.Meta(ge=0)] = 50_000


class Verdict(Enum):
    """What a frame changed."""

    NOTHING = "nothing"
    LEARNED = "learned"
    DRIFT = "drift"
    RECOVERED = "recovered"
    ADOPTED = "adopted"


class State(msgspec.Struct):
    """What of a detector outlives a restart."""

    baselines: dict[int, Learned]
    sums: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    alarm: bool = False
    frames: int = 0


class Detector:
    """Told a camera's packet sizes one by one.

    Args:
        settings: how to watch.
        state: from an earlier run.

    Attributes:
        alarm: whether the camera is away from its baseline now.
        frames: told so far.
        shift: while in alarm, the recent mean distance from the baseline in log2 of bytes; else 0.
    """

    __slots__ = ("_away", "_baselines", "_calm", "_in_alarm", "_settings", "_sums", "alarm", "frames", "shift")

    def __init__(self, settings: DriftSettings, state: State | None = None) -> None:
        state = state or State({})
        self._settings = settings
        self._baselines = {
            level: Baseline(settings.learn_frames, settings.memory_frames, learned)
            for level, learned in list(state.baselines.items())[:MAX_LEVELS]
        }
        self._sums = state.sums  # small shifts up and down, large shifts up and down
        self.alarm, self.frames = state.alarm, state.frames
        self.shift = 0.0
        self._away = 0.0  # recent mean, in long-run deviations
        self._calm = 0
        self._in_alarm = 0

    def tell(self, payload_bytes: int, level: int) -> Verdict:
        """One more frame. Returns what it changed."""
        self.frames += 1
        baseline = self._baselines.get(level)
        if baseline is None:
            if len(self._baselines) >= MAX_LEVELS:
                return Verdict.NOTHING
            settings = self._settings
            baseline = self._baselines[level] = Baseline(settings.learn_frames, settings.memory_frames)
        value = log2(max(payload_bytes, 1))
        learned = baseline.learned
        if learned is None:
            if self.alarm:  # what is learned now would be the drift
                return Verdict.NOTHING
            baseline.learn(value)
            return Verdict.LEARNED if baseline.learned else Verdict.NOTHING
        away = value - learned.mean
        most = CLIP * learned.deviation
        away = min(max(away, -most), most)
        if self.alarm:
            return self._while_in_alarm(away, learned)
        return self._while_calm(away, learned, baseline)

    def _while_calm(self, away: float, learned: Learned, baseline: Baseline) -> Verdict:
        settings = self._settings
        scaled = away / learned.long_run
        least = settings.least_shift / learned.long_run
        # The mean of a young baseline is off by about 1/sqrt(frames) long-run deviations.
        unsure = learned.frames**-0.5
        small, large = settings.allowances
        small, large = max(small + unsure, least), max(large + unsure, least)
        small_up, small_down, large_up, large_down = self._sums
        small_up, small_down = max(0.0, small_up + scaled - small), max(0.0, small_down - scaled - small)
        large_up, large_down = max(0.0, large_up + scaled - large), max(0.0, large_down - scaled - large)
        self._sums = small_up, small_down, large_up, large_down
        filled = max(
            max(small_up, small_down) / settings.thresholds[0], max(large_up, large_down) / settings.thresholds[1]
        )
        if filled > 1:
            self.alarm = True
            self._calm = self._in_alarm = 0
            self.shift, self._away = away, scaled
            return Verdict.DRIFT
        if filled < FREEZE:
            baseline.follow(away)
        return Verdict.NOTHING

    def _while_in_alarm(self, away: float, learned: Learned) -> Verdict:
        settings = self._settings
        self._in_alarm += 1
        rate = 1.0 / min(self._in_alarm + 1, settings.recover_frames)
        self.shift += rate * (away - self.shift)
        self._away += rate * (away / learned.long_run - self._away)
        near = abs(self._away) < settings.allowances[0] or abs(self.shift) < settings.least_shift
        self._calm = self._calm + 1 if near else 0
        if self._calm >= settings.recover_frames:
            self._end_alarm()
            return Verdict.RECOVERED
        if settings.adopt_frames and self._in_alarm >= settings.adopt_frames:
            self.accept()
            return Verdict.ADOPTED
        return Verdict.NOTHING

    def accept(self) -> None:
        """What the camera sees now is normal: its baselines are learned anew."""
        self._baselines.clear()
        self._end_alarm()

    def dismiss(self) -> None:
        """The alarm was a false one: everything goes on with the old baseline."""
        self._end_alarm()

    def _end_alarm(self) -> None:
        self.alarm = False
        self._sums = (0.0, 0.0, 0.0, 0.0)
        self.shift = 0.0

    @property
    def learned(self) -> dict[int, Learned]:
        """The baselines that are learned, by level."""
        return {level: one.learned for level, one in self._baselines.items() if one.learned}

    @property
    def learning(self) -> bool:
        """Whether no level has a baseline yet."""
        return not any(one.learned for one in self._baselines.values())

    @property
    def state(self) -> State:
        """What of it outlives a restart."""
        return State(self.learned, self._sums, self.alarm, self.frames)
