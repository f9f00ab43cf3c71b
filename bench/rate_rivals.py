"""Rules that a rate controller is put beside, and the bound that none can pass. For ``bench/rate.py``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rate_links import Scenario

from narrowcast.head.rate.controller import Guess, RateController
from narrowcast.head.rate.estimate import Forecast, LinkEstimate
from narrowcast.head.rate.options import Option

Floats = npt.NDArray[np.float64]
WINDOW = 8


class Rule:
    """Decides a frame's level (None: not sent) and is told what happens."""

    def __init__(self, options: Sequence[Option], deadline: float, fps: float) -> None:
        self.options, self.deadline, self.fps = options, deadline, fps
        self.under_way: dict[int, tuple[float, int]] = {}

    def level(self, frame: int, now: float, elapsed: float) -> int | None:
        raise NotImplementedError

    def encoded(self, level: int, size: int) -> None:
        pass

    def sent(self, frame: int, size: int, now: float) -> None:
        self.under_way[frame] = (now, size)

    def answered(self, frame: int, now: float, server: float, in_time: bool) -> None:
        self.under_way.pop(frame, None)


class Ours(Rule):
    """The product's controller."""

    def __init__(self, options: Sequence[Option], deadline: float, fps: float) -> None:
        super().__init__(options, deadline, fps)
        self.controller = RateController(options, deadline)

    def level(self, frame: int, now: float, elapsed: float) -> int | None:
        return self.controller.decide(now, elapsed).level

    def encoded(self, level: int, size: int) -> None:
        self.controller.encoded(level, size)

    def sent(self, frame: int, size: int, now: float) -> None:
        self.controller.sent(frame, size, now)

    def answered(self, frame: int, now: float, server: float, in_time: bool) -> None:
        self.controller.answered(frame, now, server)


class _Known(LinkEstimate):
    """The link as it is."""

    def answered(self, sent_at: float, answered_at: float, size: int, server_seconds: float) -> None:
        """Tells nothing new."""

    @property
    def pace_deviation(self) -> float:
        return 0.02

    def forecast(self, size: float, ahead_seconds: float = 0.0) -> Forecast:
        return Forecast(ahead_seconds + self.base_seconds + self.pace * size, 0.006)


class _ToldController(RateController):
    """Knows how long the link is busy."""

    queue_seconds = 0.0

    def _guesses(self, now: float) -> list[Guess]:
        return [Guess(self.queue_seconds, self.estimate.pace, 0.0, self.estimate.pace)]


class Told(Ours):
    """The product's rule, told the link's present rate and queue: what is missing then is foresight, not measurement."""

    def __init__(self, options: Sequence[Option], deadline: float, fps: float, base: float) -> None:
        super().__init__(options, deadline, fps)
        self.told = self.controller = _ToldController(options, deadline)
        self.controller.estimate = _Known()
        self.controller.estimate.base_seconds = base

    def tell(self, rate: float, ahead_bytes: float) -> None:
        pace = 1 / max(rate, 1.0)
        self.controller.estimate.pace, self.told.queue_seconds = pace, ahead_bytes * pace


class Fixed(Rule):
    """One level, with at most a window of frames under way: what comes while it is full is dropped."""

    def __init__(
        self, options: Sequence[Option], deadline: float, fps: float, level: int, window: int = WINDOW
    ) -> None:
        super().__init__(options, deadline, fps)
        self.fixed, self.window = level, window

    def level(self, frame: int, now: float, elapsed: float) -> int | None:
        return self.fixed if len(self.under_way) < self.window else None


class FixedDropping(Ours):
    """One level, with our estimate of the link and our early drops: what choosing the level alone is worth."""

    def __init__(self, options: Sequence[Option], deadline: float, fps: float, level: int) -> None:
        super().__init__([options[level]], deadline, fps)


class Aimd(Rule):
    """Additive increase, multiplicative decrease of a rate (Chiu and Jain 1989); the level that fits it is sent."""

    def __init__(
        self, options: Sequence[Option], deadline: float, fps: float, increase: float, decrease: float, window: int
    ) -> None:
        super().__init__(options, deadline, fps)
        self.increase, self.decrease, self.window = increase * options[0].size * fps, decrease, window
        self.least, self.most = options[0].size * fps, options[-1].size * fps * 1.2
        self.rate, self.held_until = self.least, 0.0

    def level(self, frame: int, now: float, elapsed: float) -> int | None:
        late = any(now - at + elapsed > self.deadline for at, _ in self.under_way.values())
        if late:
            self._less(now)
        if len(self.under_way) >= self.window:
            return None
        fitting = [one.level for one in self.options if one.size * self.fps <= self.rate]
        return fitting[-1] if fitting else self.options[0].level

    def answered(self, frame: int, now: float, server: float, in_time: bool) -> None:
        super().answered(frame, now, server, in_time)
        if in_time:
            self.rate = min(self.most, self.rate + self.increase / self.fps)
        else:
            self._less(now)

    def _less(self, now: float) -> None:
        if now >= self.held_until:  # once in the time that an answer may take
            self.rate, self.held_until = max(self.least, self.rate * self.decrease), now + self.deadline


def bound(
    scenario: Scenario, times: Floats, sizes: Floats, accuracy: Sequence[float], last_start: Floats, grid: float
) -> float:
    """An upper bound on the sum of accuracies in time, for every rule that sends frames in their order, whatever it knows.

    Dynamic programming over the time at which the link becomes free, which is rounded *down* to ``grid`` seconds after each
    frame. A link that is free earlier finishes every later frame no later (:meth:`Link.finish` is monotone in its start),
    so rounding can only add to the value: the result is at least the optimum of the problem that is not rounded. Sending a
    frame that will be too late only delays others, as does waiting before sending, so neither needs to be considered.

    Args:
        scenario: the link.
        times: when each frame is ready to be sent, seconds.
        sizes: ``[frame, level]`` in bytes.
        accuracy: by level.
        last_start: by which its last byte must be through to be answered in time, seconds.
        grid: seconds.
    """
    value: Floats = np.zeros(1)  # of the frames from the next one on, by cells after its own time
    for k in range(len(times) - 1, -1, -1):
        cells = max(1, int(np.ceil((last_start[k] - times[k]) / grid)) + 1)
        free = times[k] + np.arange(cells) * grid  # the link is free then
        ahead = times[k + 1] if k + 1 < len(times) else times[k]

        def after(at: Floats, ahead: float = ahead, later: Floats = value) -> Floats:
            cell = np.floor(np.maximum(at - ahead, 0) / grid + 1e-9).astype(int)
            return later[np.minimum(cell, len(later) - 1)]

        best = after(free)
        for level, worth in enumerate(accuracy):
            done = scenario.link.finish(free, sizes[k, level])
            best = np.maximum(best, np.where(done <= last_start[k] + 1e-9, worth + after(done), 0.0))
        value = best
    return float(value[0])
