"""The bootstrap: how far a mean over images could be off, had other images of the same kind been drawn.

Images are drawn again with replacement, the same draws for every way of getting answers; so what two ways have in common (a
hard image is hard for both) cancels in their difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
CONFIDENCE = 0.95
SEED = 0
_BLOCK_ENTRIES = 4_000_000  # of the drawn weights that are in memory at a time


class Interval(NamedTuple):
    """From ``low`` to ``high``, in the unit of the figure."""

    low: float
    high: float


class Resampler:
    """Means over the same redrawn images, for as many figures as wanted.

    Args:
        images: how many there are.
        resamples: how often they are drawn again.
        seed: of the draws.
    """

    def __init__(self, images: int, resamples: int = RESAMPLES, seed: int = SEED) -> None:
        self.images = images
        self.resamples = resamples
        self.seed = seed

    def means(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The means of ``values`` ``[..., images]`` in every resample: float64 ``[resamples, ...]``.

        A second call draws the same images.
        """
        flat = values.reshape(-1, self.images).astype(np.float64)
        found = np.concatenate([weights @ flat.T for weights in self.weights()]) / self.images
        return found.reshape(self.resamples, *values.shape[:-1])

    def weights(self) -> Iterator[npt.NDArray[np.float64]]:
        """How often each image is drawn, float64 ``[block, images]``, block by block."""
        random = np.random.default_rng(self.seed)
        block = max(1, _BLOCK_ENTRIES // self.images)
        for start in range(0, self.resamples, block):
            rows = min(block, self.resamples - start)
            drawn = random.integers(0, self.images, (rows, self.images)) + self.images * np.arange(rows)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=rows * self.images)
            yield counts.reshape(rows, self.images).astype(np.float64)


def interval(resampled: npt.ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """The percentile interval of a figure's resamples ``[B]``.

    B. Efron, "Nonparametric standard errors and confidence intervals", Canadian Journal of Statistics 9, 1981. Where all
    resamples are equal (every image right, say) it is a point.
    """
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(resampled, np.float64), [tail, 1 - tail])
    return Interval(float(low), float(high))
