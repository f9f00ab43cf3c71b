"""What an evaluation keeps of every image, so that its figure can be had of all images and of any redrawn set of them.

Top-1 is a mean over images. mAP50 and mIoU are not: they are computed from the images' parts together. Each kind of sample
knows its own figure, weighted or not, and so has the same bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from narrowcast.compiler.bootstrap import Resampler

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]
RECALLS = np.linspace(0, 1, 101)  # COCO's
_PART_ENTRIES = 1_000_000  # of resamples by detections that are in memory at a time, in about ten arrays


class Samples(Protocol):
    """Of ``N`` images, in their order."""

    def figure(self) -> float | None:
        """The figure of all of them; None where there is nothing to measure."""

    def resampled(self, resampler: Resampler) -> Floats:
        """The figure of every resample, ``[B]``."""

    def arrays(self) -> Mapping[str, Array]:
        """All that is kept, by name."""


@dataclass(frozen=True)
class Hits:
    """Images whose answer is right, or not: ``right`` bool ``[N]``. The figure is their part."""

    right: npt.NDArray[np.bool_]

    def figure(self) -> float | None:
        """See :class:`Samples`."""
        return float(self.right.mean())

    def resampled(self, resampler: Resampler) -> Floats:
        """See :class:`Samples`."""
        return resampler.means(self.right.astype(np.float64))

    def arrays(self) -> Mapping[str, Array]:
        """See :class:`Samples`."""
        return {"right": self.right}


@dataclass(frozen=True)
class Overlaps:
    """Maps of classes: ``inside`` and ``union`` int64 ``[N, K]``, the pixels in both maps and in either, by class.

    The figure is the mean IoU: inside over union, both summed over the images, the mean over the classes that any map has.
    It is that of scikit-learn's ``jaccard_score`` and of PASCAL VOC.
    """

    inside: npt.NDArray[np.int64]
    union: npt.NDArray[np.int64]

    def figure(self) -> float | None:
        """See :class:`Samples`."""
        return _mean_iou(self.inside.sum(0)[None], self.union.sum(0)[None])[0]

    def resampled(self, resampler: Resampler) -> Floats:
        """See :class:`Samples`."""
        inside, union = (resampler.means(part.T.astype(np.float64)) for part in (self.inside, self.union))
        return np.array(_mean_iou(inside, union), np.float64)

    def arrays(self) -> Mapping[str, Array]:
        """See :class:`Samples`."""
        return {"inside": self.inside, "union": self.union}


def _mean_iou(inside: Array, union: Array) -> list[float | None]:
    there = union > 0
    parts = np.divide(inside, union, out=np.zeros(union.shape), where=there)
    sums, counts = parts.sum(1), there.sum(1)
    return [float(s / c) if c else None for s, c in zip(sums, counts, strict=True)]


@dataclass(frozen=True)
class Matches:
    """Detections that were matched with the truth at IoU 0.5.

    Attributes:
        image, label, score, hit: of each detection ``[M]``, image by image.
        truths: boxes to be found, int64 ``[N, K]``, by image and class.
        mean_precision: COCO's mean average precision at IoU 0.5, as pycocotools gives it; None without any truth.
    """

    image: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    score: Floats
    hit: npt.NDArray[np.bool_]
    truths: npt.NDArray[np.int64]
    mean_precision: float | None

    def figure(self) -> float | None:
        """See :class:`Samples`."""
        return self.mean_precision

    def resampled(self, resampler: Resampler) -> Floats:
        """See :class:`Samples`."""
        return np.concatenate([self.weighted(weights) for weights in resampler.weights()])

    def weighted(self, weights: Floats) -> Floats:
        """The mean average precision with images taken ``weights`` ``[B, N]`` times, ``[B]``; 0 where there is no truth."""
        total, classes = np.zeros(len(weights)), np.zeros(len(weights))
        wanted = weights @ self.truths
        for label in np.flatnonzero(self.truths.sum(0)):
            rows = np.flatnonzero(self.label == label)
            rows = rows[np.argsort(-self.score[rows], kind="stable")]
            there = wanted[:, label] > 0
            if len(rows):
                total += np.where(there, self._precision(weights, rows, wanted[:, label]), 0)
            classes += there
        return np.divide(total, classes, out=np.zeros(len(weights)), where=classes > 0)

    def _precision(self, weights: Floats, rows: npt.NDArray[np.intp], wanted: Floats) -> Floats:
        """Of the detections ``rows``, a few resamples at a time: there may be hundreds of detections for each image."""
        step, image, hit = max(1, _PART_ENTRIES // len(rows)), self.image[rows], self.hit[rows]
        parts = [slice(start, start + step) for start in range(0, len(weights), step)]
        return np.concatenate([_average_precision(weights[part][:, image], hit, wanted[part]) for part in parts])

    def arrays(self) -> Mapping[str, Array]:
        """See :class:`Samples`."""
        mean = np.array(np.nan if self.mean_precision is None else self.mean_precision)
        return {"image": self.image, "label": self.label, "score": self.score, "hit": self.hit, "truths": self.truths,
                "mean_precision": mean}  # fmt: skip


def _average_precision(weights: Floats, hit: npt.NDArray[np.bool_], wanted: Floats) -> Floats:
    """COCO's, of one class.

    Args:
        weights: how often each detection counts, ``[B, M]``, by descending score.
        hit: whether it is one of the truth's, ``[M]``.
        wanted: how many there are to be found, ``[B]``.
    """
    found = np.cumsum(weights * hit, 1)
    seen = np.cumsum(weights, 1)
    precision = found / (seen + np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]  # at this recall or any higher one
    recall = found / np.maximum(wanted, np.spacing(1))[:, None]
    reached = np.searchsorted(RECALLS, recall, side="right")
    steps = np.diff(reached, axis=1, prepend=0)  # of COCO's recalls, how many each detection is the first to reach
    average: Floats = (steps * best).sum(1) / len(RECALLS)
    return average


def restore(arrays: Mapping[str, Array]) -> Samples | None:
    """What :meth:`Samples.arrays` gave; None where it is of no kind.

    Raises:
        KeyError: something is missing.
    """
    if "right" in arrays:
        return Hits(arrays["right"])
    if "union" in arrays:
        return Overlaps(arrays["inside"], arrays["union"])
    if "truths" in arrays:
        mean = float(arrays["mean_precision"])
        return Matches(
            arrays["image"], arrays["label"], arrays["score"], arrays["hit"], arrays["truths"],
            None if np.isnan(mean) else mean,
        )  # fmt: skip
    return None


def mean_of(samples: Samples | None) -> float | None:
    """The figure, where there are samples."""
    return None if samples is None else samples.figure()


def concatenated(parts: Sequence[Overlaps]) -> Overlaps:
    """Those of all chunks."""
    return Overlaps(np.concatenate([p.inside for p in parts]), np.concatenate([p.union for p in parts]))
