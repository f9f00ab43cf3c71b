"""Intervals of an evaluation's figures, and the split beside the image codecs: from the single images, by bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowcast.compiler.bootstrap import Resampler, interval
from narrowcast.compiler.curves import bd_rate
from narrowcast.compiler.samples import Samples
from narrowcast.compiler.scores import BEST, BY, LOSSY, By, Comparison, Evaluation, Floats, Score, curves_of

# A BD-rate has an interval where at most this part of the resamples leaves the curves without a common range.
MAX_APART = 0.05


def add_statistics(evaluation: Evaluation) -> None:
    """Fills in the intervals, differences and comparisons that follow from ``evaluation.outcomes``."""
    resampler = Resampler(evaluation.images)
    drawn = {
        "mean_bytes": _resampled(resampler, [outcome.sizes for outcome in evaluation.outcomes]),
        "accuracy": _resampled(resampler, [outcome.right for outcome in evaluation.outcomes]),
        "agreement": _resampled(resampler, [outcome.agreed for outcome in evaluation.outcomes]),
    }
    for name, columns in drawn.items():
        for score, column in zip(evaluation.scores, columns, strict=True):
            setattr(score, f"{name}_interval", None if column is None else interval(column))
    _add_gains(evaluation.scores, drawn["accuracy"])
    for score in evaluation.front(BEST):
        score.on_front = True
    for by in BY:
        evaluation.comparisons += _comparisons(evaluation.scores, by, drawn["mean_bytes"], drawn[by])


def _resampled(resampler: Resampler, values: Sequence[npt.NDArray[Any] | Samples | None]) -> list[Floats | None]:
    """Per score, the figure of its images in each resample, ``[B]``; None where there is nothing to measure."""
    there = [row for row in values if row is not None]
    if not there:
        return [None] * len(values)
    plain = [row for row in there if isinstance(row, np.ndarray)]
    if len(plain) < len(there):
        return [
            None if row is None or isinstance(row, np.ndarray) or row.figure() is None else row.resampled(resampler)
            for row in values
        ]
    means = iter(resampler.means(np.stack(plain).astype(np.float64)).T)
    return [None if row is None else next(means) for row in values]


def _add_gains(scores: Sequence[Score], drawn: Sequence[Floats | None]) -> None:
    teacher = next((k for k, score in enumerate(scores) if score.way == "teacher"), None)
    if teacher is None:
        return
    base, resampled = scores[teacher].accuracy, drawn[teacher]
    for score, column in zip(scores, drawn, strict=True):
        if score.way == "teacher" or base is None or resampled is None or score.accuracy is None or column is None:
            continue
        score.accuracy_gain = score.accuracy - base
        score.accuracy_gain_interval = interval(column - resampled)


def _comparisons(
    scores: Sequence[Score], by: By, sizes: Sequence[Floats | None], reached: Sequence[Floats | None]
) -> list[Comparison]:
    """Of the split with every lossy codec that was run, and with the best of them."""
    rows = [k for k, score in enumerate(scores) if score.mean_bytes is not None and score.reached(by) is not None]
    groups = [(scores[k].way, scores[k].scale) for k in rows]
    ways = {way for way, _ in groups}
    against = [way for way in LOSSY if way in ways]
    if "split" not in ways or not against:
        return []
    against.append(BEST)
    measured = np.array([(scores[k].mean_bytes, scores[k].reached(by)) for k in rows], np.float64)
    curves = curves_of(groups, *measured.T)
    drawn = [np.stack([column for k in rows if (column := of[k]) is not None], 1) for of in (sizes, reached)]
    rates = _resampled_rates(groups, against, *drawn)
    levels = [score.reached(by) for score in scores if score.way == "split"]
    found = []
    for way in against:
        apart = bd_rate(curves["split"], curves[way])
        sure = apart is not None and len(rates[way]) >= (1 - MAX_APART) * len(drawn[0])
        found.append(
            Comparison(
                against=way,
                by=by,
                bd_rate=apart.bd_rate if apart else None,
                bd_rate_interval=interval(rates[way]) if sure else None,
                low=apart.low if apart else None,
                high=apart.high if apart else None,
                bytes_there=[None if level is None else curves[way].bytes_at(level) for level in levels],
            )
        )
    return found


def _resampled_rates(
    groups: Sequence[tuple[str, float | None]], against: Sequence[str], sizes: Floats, reached: Floats
) -> dict[str, list[float]]:
    """The split's BD-rate against each in those resamples where the two have a common range; rows are resamples."""
    rates: dict[str, list[float]] = {way: [] for way in against}
    for mean_bytes, figures in zip(sizes, reached, strict=True):
        curves = curves_of(groups, mean_bytes, figures)
        for way in against:
            if (apart := bd_rate(curves["split"], curves[way])) is not None:
                rates[way].append(apart.bd_rate)
    return rates
