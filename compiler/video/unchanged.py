"""Up to which change of its symbols a frame counts as unchanged: only so far as is proven to lose no accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowcast.compiler.judges import top_class
from narrowcast.transport.video import change_between

Symbols = npt.NDArray[np.uint8]
Outputs = Mapping[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float64]

# Where a network gives no class scores, skipping may add this part to the error that the frames' own answers have.
SPARE_ERROR = 0.01
# Of frames of still scenes, in which noise is all that changes, so many count as unchanged; and none that change more.
STILL_SHARE = 0.95
# A limit above 0 wants so many pairs of frames within it. Where none of them is worse, less than 1 % of all are, with 95 %
# confidence (the "rule of three", 3 / n); with fewer, what is called harmless may only have been lucky.
LEAST_PAIRS = 300


def errors_of(answers: Outputs, wanted: Outputs) -> Floats:
    """How wrong each answer is, float64 ``[N]``: 0 or 1 by the top class, else the squared error of all outputs."""
    found, right = top_class(answers), top_class(wanted)
    if found is not None and right is not None:
        wrong: Floats = (found != right).astype(np.float64)
        return wrong
    total = np.zeros(len(next(iter(wanted.values()))))
    for name, values in wanted.items():
        if values.dtype.kind != "f":
            continue
        spread = float(np.var(values)) or 1.0
        away = (answers[name].astype(np.float64) - values) ** 2
        total += away.reshape(len(values), -1).mean(1) / spread
    return total


def limit_of_change(
    clips: Symbols,
    answers: Callable[[Symbols], Outputs],
    wanted: Outputs,
    still: Symbols,
    *,
    least_pairs: int = LEAST_PAIRS,
) -> tuple[int, dict[str, float]]:
    """The largest change with which a frame may have an earlier frame's answer.

    Frames of clips are paired with those before them. With every limit, the frames within it would have the earlier frame's
    answer; how wrong that is, is compared with how wrong their own answers are. The limit is the largest with which no
    frame's top class becomes wrong (without class scores: the error hardly grows), as with every smaller one, and no more
    than noise changes in nearly all frames of a still scene. Where that rests on too few pairs it is 0, which loses
    nothing: the same symbols have the same answer.

    Args:
        clips: uint8 ``[N, T, C, H, W]``, of one level.
        answers: the tail's outputs for symbols uint8 ``[n, C, H, W]``.
        wanted: the teacher's for all ``N * T`` frames.
        still: clips of scenes in which nothing happens, of the same shape.
        least_pairs: how many pairs, besides those that do not differ at all, have to be within a limit above 0.

    Returns:
        the limit, and what was measured within it.
    """
    count, length = clips.shape[:2]
    outputs = answers(clips.reshape(-1, *clips.shape[2:]))
    earlier, later = _pairs(count, length)
    flat = clips.reshape(-1, *clips.shape[2:])
    changes = np.array([change_between(flat[a], flat[b]) for a, b in zip(earlier, later, strict=True)])
    target = {name: values[later] for name, values in wanted.items()}
    own = errors_of({name: values[later] for name, values in outputs.items()}, target)
    skipped = errors_of({name: values[earlier] for name, values in outputs.items()}, target)
    order = np.argsort(changes, kind="stable")
    changes, own, skipped = changes[order], own[order], skipped[order]
    ends = np.flatnonzero(np.append(changes[1:] != changes[:-1], True))  # all frames of one change, or none
    if top_class(outputs) is not None:  # an answer that a skip puts right by chance makes good none that it spoils
        harmless = np.cumsum(skipped > own)[ends] == 0
    else:
        harmless = np.cumsum(skipped)[ends] <= (1 + SPARE_ERROR) * np.cumsum(own)[ends] + 1e-9
    cap = np.quantile(_still_changes(still), STILL_SHARE, method="lower")
    allowed = np.logical_and.accumulate(harmless & (changes[ends] <= cap))
    limit = int(changes[ends][allowed][-1]) if allowed.any() else 0
    if np.count_nonzero((changes > 0) & (changes <= limit)) < least_pairs:
        limit = 0
    within = changes <= limit
    figures = {"pairs": float(len(changes)), "pairs_within": float(within.sum()), "noise": float(cap)}
    return limit, figures


def _pairs(count: int, length: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The numbers of earlier and later frames: those beside one another, and the first with all the others."""
    pairs = [(clip * length + t - 1, clip * length + t) for clip in range(count) for t in range(1, length)]
    pairs += [(clip * length, clip * length + t) for clip in range(count) for t in range(2, length)]
    earlier, later = np.array(pairs, np.int64).T
    return earlier, later


def _still_changes(still: Symbols) -> npt.NDArray[np.int64]:
    return np.array([change_between(a, b) for clip in still for a, b in pairwise(clip)])
