"""Joules of a frame by a way that ran in turns with others: the energy of its own blocks, by its own answered frames.

Each block is one observation of a ratio; the spread of blocks, which lie all over the run, gives the interval. How power is
integrated, and what is refused, is in :mod:`narrowcast.devices.power.trace`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from narrowcast.devices.batch_means import MIN_BATCHES, merged_half
from narrowcast.devices.power.figures import MIN_IDLE_SAMPLES, MIN_SAMPLES, idle_half
from narrowcast.devices.power.sampler import SamplerInfo
from narrowcast.devices.power.trace import Integral, Series, Trace, max_gap_s
from narrowcast.devices.profile.figures import Energy, Estimate
from narrowcast.devices.windows import LOADED_S, Span

# Samples that a block should have, where that leaves blocks enough, and periods of the sensor that its lead should last.
BLOCK_SAMPLES = 10
LEAD_SAMPLES = 2


class Idle(NamedTuple):
    """An idle board.

    Attributes:
        watts: mean of before and after; None where they cannot be told.
        half: half its 95 % interval; None where that cannot be told.
        why_not: for None.
        warning: where the board had not settled.
    """

    watts: float | None
    half: float | None
    why_not: str | None = None
    warning: str | None = None


class Turn(NamedTuple):
    """A counted stretch of a way.

    Attributes:
        span: when.
        answered: frames in it.
        failed: frames in it that were not answered.
    """

    span: Span
    answered: int
    failed: int = 0


class PowerOver:
    """A run's power: figures of any of its stretches.

    Args:
        info: what the sampler found.
        trace: all that it kept.
    """

    def __init__(self, info: SamplerInfo, trace: Trace) -> None:
        self.why_not: str | None = info.why_no_total if not info.total else None
        self._series: Series | None = None
        if self.why_not is None and not trace.readings:
            self.why_not = trace.troubles[0].message if trace.troubles else "the sensor gave no sample"
        if self.why_not is None:
            self._series = trace.series(info.total, stall_s=info.stall_s)
            if not len(self._series.times):
                self._series, self.why_not = None, "no sample has all the rails of the total"
        self._gap = max_gap_s(info.sample_hz)

    def integrate(self, span: Span, least: int = 2) -> Integral:
        """The board's energy over a stretch; at least ``least`` samples must lie in it."""
        if self._series is None:
            return Integral(None, span.seconds, 0, None, self.why_not)
        return self._series.integrate(span.start_ns / 1e9, span.end_ns / 1e9, max_gap_s=self._gap, min_samples=least)

    def idle(self, before: Span | None, after: Span | None) -> Idle:
        """The idle board's power."""
        if before is None or after is None or not before.seconds or not after.seconds:
            return Idle(None, None, "idle power was not measured")
        first, last = (self.integrate(span, MIN_IDLE_SAMPLES) for span in (before, after))
        if first.watts is None or last.watts is None or self._series is None:
            return Idle(None, None, f"idle: {first.why_not or last.why_not}")
        watts = (first.watts + last.watts) / 2
        half = idle_half(self._series, (before, after), first.watts, last.watts)
        moved = abs(first.watts - last.watts) > 0.1 * watts
        warning = f"idle power went from {first.watts:.2f} W to {last.watts:.2f} W: the board had not settled"
        return Idle(watts, half, None, warning if moved else None)

    def energy(self, turns: Sequence[Turn], idle: Idle) -> Energy:
        """Of one way: what its turns took, by the frames that were answered.

        A frame that fails may take no time at all (a server that refuses it), or far too much; either way it gives nobody
        an answer. What it takes is a part of what answers cost, and it is none of those that this is divided by.

        Args:
            turns: its counted stretches.
            idle: the idle board.
        """
        pieces = [(self.integrate(turn.span), turn) for turn in turns]
        good = [(piece, turn) for piece, turn in pieces if piece.joules is not None]
        seconds = sum(piece.seconds for piece, _ in good)
        samples = sum(piece.samples for piece, _ in good)
        failed = sum(turn.failed for _, turn in good)
        if not good:
            reason = next((piece.why_not for piece, _ in pieces if piece.why_not), "the way did not run")
            return Energy(why_not=self.why_not or reason)
        if not any(turn.answered for _, turn in good):
            return Energy(seconds=seconds, samples=samples, why_not="no frame was answered")
        if samples < MIN_SAMPLES:
            return Energy(
                seconds=seconds, samples=samples,
                why_not=f"{samples} samples lie in its blocks, and {MIN_SAMPLES} are wanted: measure for longer",
            )  # fmt: skip
        warnings = [idle.warning] if idle.warning else []
        if failed:
            counted = failed + sum(turn.answered for _, turn in good)
            warnings.append(f"{failed} of {counted} frames were not answered: what they took is in the others' joules")
        if len(good) < len(pieces):
            bad = next(piece.why_not for piece, _ in pieces if piece.why_not)
            warnings.append(f"{len(pieces) - len(good)} of {len(pieces)} blocks are left out: {bad}")
        if seconds < LOADED_S:
            warnings.append(f"loaded for {seconds:.1f} s only; {LOADED_S:.0f} s or more are trustworthy")
        joules = np.array([piece.joules for piece, _ in good], np.float64)
        answered = np.array([turn.answered for _, turn in good], np.float64)
        return _figures(joules, answered, seconds, samples, idle, warnings)


def _figures(
    joules: np.ndarray[tuple[int], np.dtype[np.float64]],
    frames: np.ndarray[tuple[int], np.dtype[np.float64]],
    seconds: float,
    samples: int,
    idle: Idle,
    warnings: list[str],
) -> Energy:
    total = float(frames.sum())
    gross = float(joules.sum()) / total
    half = merged_half(joules - gross * frames)  # of the mean over blocks
    half = None if half is None else half * len(frames) / total
    reasons = []
    if half is None:
        reasons.append(f"no interval: it wants {MIN_BATCHES} blocks, and there are {len(frames)}")
    net = None
    if idle.watts is None:
        reasons.append(f"no net figure: {idle.why_not}")
    else:
        per_frame_s = seconds / total
        spread = None if half is None or idle.half is None else float(np.hypot(half, per_frame_s * idle.half))
        net = _estimate(gross - idle.watts * per_frame_s, spread)
    return Energy(
        gross_joules_per_frame=_estimate(gross, half), net_joules_per_frame=net, mean_watts=float(joules.sum()) / seconds,
        seconds=seconds, samples=samples, why_not="; ".join(reasons) or None, warnings=warnings,
    )  # fmt: skip


def _estimate(value: float, half: float | None) -> Estimate:
    return Estimate(value=value) if half is None else Estimate(value=value, low=value - half, high=value + half)
