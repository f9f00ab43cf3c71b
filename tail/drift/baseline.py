"""What is normal for one camera at one level: where the logarithms of its packets' sizes lie, and how their sum wanders.

Frames of one camera are alike, so their sizes are correlated, and a sum of ``n`` of them wanders by more than ``sqrt(n)``
standard deviations. The *long-run* deviation says by how much. It is estimated from the means of blocks of frames, at
several block lengths, and corrected for what short blocks miss ("lugsail": twice the estimate of long blocks less that of
blocks half as long; Vats and Flegal, "Lugsail lag windows for estimating time-average covariance matrices", Biometrika 109,
2022). The largest estimate counts: too small a one would raise false alarms.
"""

from __future__ import annotations

from array import array

import msgspec
import numpy as np
import numpy.typing as npt

BLOCKS = (1, 5, 25, 50)  # frames; the last is twice the one before
LONG_BLOCK = BLOCKS[-1]
CLIP = 4.0  # standard deviations: one odd frame counts no more than this
FLOOR = 0.004  # log2 of bytes: about the rounding to whole bytes of a small packet


class Learned(msgspec.Struct):
    """A baseline that is learned; all in log2 of bytes.

    Attributes:
        mean: of the clipped values.
        deviation: of single frames.
        long_run: of a sum of ``n`` frames, divided by ``sqrt(n)``, for a large ``n``.
        lift: by how much the long-run variance exceeds what blocks of 50 frames show.
        frames: that it was learned from so far.
        start: the mean when it was first learned: how far slow adaptation has led since can be seen.
    """

    mean: float
    deviation: float
    long_run: float
    lift: float
    frames: int
    start: float


class Baseline:
    """Learns from a camera's first frames, then follows slowly.

    Args:
        learn: frames to learn from; a multiple of 50, at least 200.
        memory: frames after which an old frame counts for little: the slow adaptation.
        learned: from an earlier run.
    """

    __slots__ = ("_block", "_in_block", "_learn", "_memory", "_values", "learned")

    def __init__(self, learn: int, memory: int, learned: Learned | None = None) -> None:
        self._learn = learn
        self._memory = memory
        self._values: array[float] | None = None if learned else array("f")
        self.learned = learned
        self._block = 0.0
        self._in_block = 0

    def learn(self, value: float) -> None:
        """Takes one more of the first frames; :attr:`learned` is there after the last of them."""
        assert self._values is not None
        self._values.append(value)
        if len(self._values) >= self._learn:
            self.learned = summarize(np.array(self._values, np.float64))
            self._values = None

    @property
    def progress(self) -> int:
        """Frames learned from."""
        return self.learned.frames if self.learned else len(self._values or ())

    def follow(self, away: float) -> None:
        """Moves a little towards one more frame.

        Args:
            away: its clipped distance from the mean.
        """
        learned = self.learned
        assert learned is not None
        learned.frames += 1
        rate = 1.0 / min(learned.frames, self._memory)
        learned.mean += rate * away
        learned.deviation = max(FLOOR, (learned.deviation**2 + rate * (away * away - learned.deviation**2)) ** 0.5)
        self._block += away
        self._in_block += 1
        if self._in_block == LONG_BLOCK:
            rate = LONG_BLOCK / min(learned.frames, self._memory)
            seen = learned.lift * self._block**2 / LONG_BLOCK
            learned.long_run = max(
                learned.deviation, (learned.long_run**2 + rate * (seen - learned.long_run**2)) ** 0.5
            )
            self._block, self._in_block = 0.0, 0


def summarize(values: npt.NDArray[np.float64]) -> Learned:
    """What ``values`` (log2 of bytes, in their order) say, without being led astray by a few odd ones."""
    median = float(np.median(values))
    spread = max(1.4826 * float(np.median(np.abs(values - median))), 0.5 * float(values.std()), FLOOR)
    clipped = np.clip(values, median - CLIP * spread, median + CLIP * spread)
    variances = []
    for block in BLOCKS:
        count = len(clipped) // block
        means = clipped[: count * block].reshape(count, block).mean(1)
        variances.append(block * float(means.var(ddof=1)))
    deviation = max(FLOOR, variances[0] ** 0.5)
    longest = max(*variances, 2 * variances[-1] - variances[-2], FLOOR**2)
    lift = min(max(longest / max(variances[-1], FLOOR**2), 1.0), 4.0)
    mean = float(clipped.mean())
    return Learned(mean, deviation, longest**0.5, lift, len(values), mean)
