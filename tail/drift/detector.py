"""One camera's detector: CUSUMs on the numbers of its profiles and on their relations (``docs/drift.md``).

CUSUM: Page, "Continuous inspection schemes", Biometrika 41 (1954). For each number or relation four of them: up and down,
and for small shifts and for large ones, side by side: Sparks, "CUSUM charts for signalling varying location shifts",
Journal of Quality Technology 32 (2000). Standardised by the long-run deviation, a sum of correlated numbers wanders like one
of independent ones, and thresholds for those hold in the long run.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import msgspec
import numpy as np

from narrowcast.tail.drift.baseline import Baseline, Learned, Vector
from narrowcast.tail.drift.profile import NAMES, STATISTICS
from narrowcast.transport.structs import Settings

Positive = Annotated[float, msgspec.Meta(gt=0)]
# Of a threshold: from here on the baseline stands still, so that a drift that begins does not become normal.
FREEZE = 0.4
MAX_LEVELS = 16  # with a baseline, per camera: bounds its memory
_SIDES = np.array([1.0, -1.0, 1.0, -1.0])[:, None]


class DriftSettings(Settings, frozen=True):
    """How cameras are watched. The defaults are those that ``docs/drift.md`` gives figures for.

    Attributes:
        learn_frames: of a camera and level, from which its baseline is learned; a multiple of 50.
        memory_frames: a camera that changes more slowly than this is followed, not reported.
        allowances: shifts of less than this many long-run deviations do not add up, in the CUSUM for small and the one for
            large shifts.
        thresholds: of the two sums of a number, in long-run deviations.
        relation_thresholds: of the two sums of a relation. Higher: a relation that is learned from few scenes wanders more
            than it seems, and what moves relations moves them far.
        least_shift: shifts of less than this (log2 of bits or of spread: 0.015 is 1 %; symbol steps) never add up.
        recover_frames: an alarm ends after so many frames on end that are again like the baseline.
        adopt_frames: an alarm that lasts for so many frames is the new normal: its baseline is learned anew; 0: never.
    """

    learn_frames: Annotated[int, msgspec.Meta(ge=200, le=10_000, multiple_of=50)] = 1500
    memory_frames: Annotated[int, msgspec.Meta(ge=1000)] = 20_000
    allowances: tuple[Positive, Positive] = (0.15, 0.4)
    thresholds: tuple[Positive, Positive] = (42.0, 20.0)
    relation_thresholds: tuple[Positive, Positive] = (60.0, 28.0)
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
    """What of a detector outlives a restart: by level, vectors and relations of :class:`Learned`, and its frames."""

    baselines: dict[int, tuple[list[list[float]], list[list[float]], int]]
    frames: int = 0
    alarm: bool = False


class Detector:
    """Told a camera's profiles one by one.

    Args:
        settings: how to watch.
        state: from an earlier run.

    Attributes:
        alarm: whether the camera is away from its baseline now.
        frames: told so far.
        statistic: which of :data:`~narrowcast.tail.drift.profile.STATISTICS` raised the latest alarm.
        shift: the recent mean distance of that one from its baseline while in alarm; else 0.
    """

    __slots__ = (
        "_allowances", "_away", "_baselines", "_calm", "_in_alarm", "_settings", "_sums", "_thresholds", "alarm", "frames",
        "statistic",
    )  # fmt: skip

    def __init__(self, settings: DriftSettings, state: State | None = None) -> None:
        self._settings = settings
        self._allowances = np.repeat(settings.allowances, 2)[:, None]
        of_both = (settings.thresholds, settings.relation_thresholds)
        self._thresholds = np.repeat(np.repeat(of_both, 2, 1), len(NAMES), 0).T
        self._baselines: dict[int, Baseline] = {}
        self.frames, self.alarm = 0, False
        self.statistic = 0
        self._sums = np.zeros((4, len(STATISTICS)))
        self._away: Vector = np.zeros(len(STATISTICS))
        self._calm = self._in_alarm = 0
        if state is not None:
            self._restore(state)

    def tell(self, profile: Vector, level: int) -> Verdict:
        """One more frame: float64 ``[len(NAMES)]``. Returns what it changed."""
        self.frames += 1
        baseline = self._baselines.get(level)
        if self.alarm and (baseline is None or baseline.learned is None):
            return self._last_in_alarm()  # not learned: what is learned now would be the drift
        if baseline is None:
            if len(self._baselines) >= MAX_LEVELS:
                return Verdict.NOTHING
            settings = self._settings
            baseline = self._baselines[level] = Baseline(settings.learn_frames, settings.memory_frames)
        learned = baseline.learned
        if learned is None:
            baseline.learn(profile)
            return Verdict.LEARNED if baseline.learned else Verdict.NOTHING
        away = learned.away(profile)
        if self.alarm:
            return self._while_in_alarm(away, learned)
        return self._while_calm(away, learned, baseline)

    def _while_calm(self, away: Vector, learned: Learned, baseline: Baseline) -> Verdict:
        settings = self._settings
        # The mean of a young baseline is off by about 1/sqrt(frames) long-run deviations.
        allowances = np.maximum(self._allowances + learned.frames**-0.5, settings.least_shift / learned.long_run)
        self._sums = np.maximum(self._sums + (_SIDES * (away / learned.long_run) - allowances), 0.0)
        filled = self._sums / self._thresholds
        fullest = filled.max()
        if fullest > 1:
            self.alarm = True
            self._calm = self._in_alarm = 0
            self.statistic = int(filled.max(0).argmax())
            self._away = away.copy()
            return Verdict.DRIFT
        if fullest < FREEZE:
            baseline.follow(away)
        return Verdict.NOTHING

    def _while_in_alarm(self, away: Vector, learned: Learned) -> Verdict:
        settings = self._settings
        self._away += (away - self._away) / min(self._in_alarm + 2, settings.recover_frames)
        near = np.maximum(2 * settings.allowances[0] * learned.long_run, settings.least_shift)
        self._calm = self._calm + 1 if (np.abs(self._away) < near).all() else 0
        if self._calm >= settings.recover_frames:
            self._end_alarm()
            return Verdict.RECOVERED
        return self._last_in_alarm()

    def _last_in_alarm(self) -> Verdict:
        """One more frame in alarm, of a level that has a baseline or of one that has none."""
        self._in_alarm += 1
        if self._settings.adopt_frames and self._in_alarm >= self._settings.adopt_frames:
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
        self._sums = np.zeros_like(self._sums)
        self._away = np.zeros_like(self._away)

    @property
    def shift(self) -> float:
        """See the class."""
        return float(self._away[self.statistic])

    @property
    def learned(self) -> dict[int, Learned]:
        """The baselines that are learned, by level."""
        return {level: one.learned for level, one in self._baselines.items() if one.learned}

    @property
    def learning(self) -> bool:
        """Whether no level has a baseline yet."""
        return not self.learned

    @property
    def waiting(self) -> int:
        """Numbers that are held in memory for levels that are still learned."""
        return sum(one.waiting for one in self._baselines.values())

    def stop_learning(self) -> None:
        """Forgets the levels that have no baseline yet."""
        self._baselines = {level: one for level, one in self._baselines.items() if one.learned}

    @property
    def state(self) -> State:
        """What of it outlives a restart."""
        baselines = {}
        for level, it in self.learned.items():
            vectors = (it.mean, it.deviation, it.long_run, it.lift, it.start)
            baselines[level] = ([vector.tolist() for vector in vectors], it.relations.tolist(), it.frames)
        return State(baselines, self.frames, self.alarm)

    def _restore(self, state: State) -> None:
        settings = self._settings
        for level, (rows, weights, frames) in list(state.baselines.items())[:MAX_LEVELS]:
            table, relations = np.array(rows, np.float64), np.array(weights, np.float64)
            shapes = (table.shape, relations.shape) == ((5, len(STATISTICS)), (len(NAMES), len(NAMES)))
            finite = shapes and np.isfinite(table).all() and np.isfinite(relations).all()
            if not finite or frames < 1 or (table[1:4] <= 0).any():
                raise ValueError("a baseline that is none")
            mean, deviation, long_run, lift, start = table
            learned = Learned(relations, mean, deviation, long_run, lift, frames, start)
            self._baselines[level] = Baseline(settings.learn_frames, settings.memory_frames, learned)
        self.frames, self.alarm = state.frames, state.alarm
