"""What is normal for one camera at one level: its numbers, how they go together, and how their sums wander.

A camera that jumps between scenes has numbers that differ more than mild fog makes them differ, but they do not differ in
every direction: three scenes span a plane. So beside the numbers themselves their principal components are watched, here
*relations*: weighted sums of the numbers, uncorrelated over the frames that were learned from. The small ones, which hardly
change whatever the camera sees, are the ones that tell (Jackson and Mudholkar, "Control procedures for residuals associated
with principal component analysis", Technometrics 21, 1979).

Frames of one camera are alike, so their profiles are correlated, and a sum of ``n`` of them wanders by more than ``sqrt(n)``
standard deviations. The *long-run* deviation says by how much. It is estimated from the means of blocks of frames, at
several block lengths, and corrected for what short blocks miss ("lugsail": twice the estimate of long blocks less that of
blocks half as long; Vats and Flegal, "Lugsail lag windows for estimating time-average covariance matrices", Biometrika 109,
2022). The largest estimate counts: too small a one would raise false alarms.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]

BLOCKS = (1, 5, 25, 50)  # frames; the last is twice the one before
LONG_BLOCK = BLOCKS[-1]
CLIP = 4.0  # standard deviations: one odd frame counts no more than this
FLOOR = 0.004  # deviations are not smaller: log2 of bits (bytes are whole), or symbol steps


@dataclass
class Learned:
    """A baseline that is learned: vectors with an entry for each number of a profile, then for each relation.

    Attributes:
        relations: ``[number, relation]``: the weights of the numbers in each. The absolute weights of a relation add up to
            one: numbers that each move by less than something move no relation by more.
        mean: of the clipped values.
        deviation: of single frames.
        long_run: of a sum of ``n`` frames, divided by ``sqrt(n)``, for a large ``n``.
        lift: by how much the long-run variance exceeds what blocks of 50 frames show.
        frames: that it was learned from so far.
        start: the mean when it was first learned: how far slow adaptation has led since can be seen.
    """

    relations: Vector
    mean: Vector
    deviation: Vector
    long_run: Vector
    lift: Vector
    frames: int
    start: Vector

    def away(self, profile: Vector) -> Vector:
        """How far a frame's numbers and relations are from their means, clipped."""
        most = CLIP * self.deviation
        values = np.concatenate((profile, profile @ self.relations))
        return np.minimum(np.maximum(values - self.mean, -most), most)


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
        self._values = array("f")
        self.learned = learned
        self._block: Vector | float = 0.0
        self._in_block = 0

    def learn(self, profile: Vector) -> None:
        """Takes one more of the first frames; :attr:`learned` is there after the last of them."""
        self._values.frombytes(profile.astype(np.float32).tobytes())
        if len(self._values) >= self._learn * len(profile):
            self.learned = summarize(np.array(self._values, np.float64).reshape(-1, len(profile)))
            self._values = array("f")

    @property
    def waiting(self) -> int:
        """Numbers that are held in memory while it learns."""
        return len(self._values)

    def follow(self, away: Vector) -> None:
        """Moves a little towards one more frame.

        Args:
            away: its clipped distance from the mean.
        """
        learned = self.learned
        assert learned is not None
        learned.frames += 1
        rate = 1.0 / min(learned.frames, self._memory)
        learned.mean += rate * away
        variance = learned.deviation**2
        learned.deviation = np.sqrt(np.maximum(variance + rate * (away * away - variance), FLOOR**2))
        self._block = self._block + away
        self._in_block += 1
        if self._in_block == LONG_BLOCK:
            rate = LONG_BLOCK / min(learned.frames, self._memory)
            variance = learned.long_run**2
            seen = learned.lift * self._block**2 / LONG_BLOCK
            learned.long_run = np.maximum(learned.deviation, np.sqrt(variance + rate * (seen - variance)))
            self._block, self._in_block = 0.0, 0


def summarize(profiles: Vector) -> Learned:
    """What ``profiles`` ``[frames, numbers]``, in their order, say, without being led astray by a few odd ones."""
    relations = _relations(_clipped(profiles))
    clipped = _clipped(np.concatenate([profiles, profiles @ relations], 1))
    variances = []
    for block in BLOCKS:
        count = len(clipped) // block
        means = clipped[: count * block].reshape(count, block, -1).mean(1)
        variances.append(np.maximum(block * means.var(0, ddof=1), FLOOR**2))
    longest = np.maximum(np.max(variances, axis=0), 2 * variances[-1] - variances[-2])
    lift = np.clip(longest / variances[-1], 1.0, 4.0)
    mean = clipped.mean(0)
    return Learned(relations, mean, np.sqrt(variances[0]), np.sqrt(longest), lift, len(profiles), mean.copy())


def _clipped(values: Vector) -> Vector:
    """``[frames, numbers]`` without odd ones."""
    median = np.median(values, axis=0)
    spread = np.maximum(1.4826 * np.median(np.abs(values - median), axis=0), 0.5 * values.std(0))
    most = CLIP * np.maximum(spread, FLOOR)
    clipped: Vector = np.clip(values, median - most, median + most)
    return clipped


def _relations(profiles: Vector) -> Vector:
    """Weights of the principal components of standardised numbers ``[frames, numbers]``, the smallest one first."""
    deviation = np.maximum(profiles.std(0), FLOOR)
    _, components = np.linalg.eigh(np.cov((profiles / deviation).T))
    weights = components / deviation[:, None]
    largest = np.take_along_axis(weights, np.abs(weights).argmax(0)[None], 0)
    scaled: Vector = weights * np.sign(largest) / np.abs(weights).sum(0)  # which sign comes out depends on the library
    return scaled
