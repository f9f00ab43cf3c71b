"""Made-up links and a link model for ``bench/rate.py``: a rate over time, a queue in order, a delay both ways, jitter."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

STEP_SECONDS = 0.01
SECONDS = 120.0
KBIT = 1000 / 8
Floats = npt.NDArray[np.float64]


class Link:
    """Carries bytes at a rate that changes; 0 is an outage, or a stall for a lost segment (nothing behind it arrives)."""

    def __init__(self, rates: Floats) -> None:
        """``rates`` in bytes a second, one every ``STEP_SECONDS``; the last one goes on for ever, at 10 kbit/s or more."""
        self.rates = np.append(rates, max(rates[-1], 10 * KBIT))
        self._carried = np.concatenate([[0.0], np.cumsum(self.rates * STEP_SECONDS)])
        self._times = np.arange(len(self._carried)) * STEP_SECONDS

    def finish(self, start: Floats | float, size: float) -> Floats:
        """When the last of ``size`` bytes has been carried that begin at ``start``, in seconds."""
        begun = np.asarray(start, float)
        past = begun - self._times[-1]
        carried = np.interp(begun, self._times, self._carried) + np.maximum(past, 0) * self.rates[-1]
        wanted = carried + size
        # The first time at which so much is carried: within the step that reaches it.
        at = np.searchsorted(self._carried, wanted, side="left")
        inside = at < len(self._carried)
        step = np.clip(at - 1, 0, len(self.rates) - 1)
        within = self._times[step] + (wanted - self._carried[step]) / np.maximum(self.rates[step], 1e-9)
        beyond = self._times[-1] + (wanted - self._carried[-1]) / self.rates[-1]
        return np.where(inside, within, beyond)

    def carried(self, start: float, end: float) -> float:
        """Bytes that it can carry from one time to another."""
        return float(np.interp(end, self._times, self._carried) - np.interp(start, self._times, self._carried))

    def rate(self, at: float) -> float:
        """Bytes a second at a time."""
        return float(self.rates[min(int(at / STEP_SECONDS), len(self.rates) - 1)])


class Scenario(NamedTuple):
    """A link with its frames' jitter."""

    name: str
    link: Link
    jitter: Floats  # of the answers, seconds


def _time() -> Floats:
    return np.arange(0, SECONDS, STEP_SECONDS)


def constant(kbit: float) -> Callable[[np.random.Generator], Floats]:
    return lambda rng: np.full(len(_time()), kbit * KBIT)


def step(rng: np.random.Generator) -> Floats:
    period, phase = rng.uniform(16, 28), rng.uniform(0, 20)
    return np.where((_time() + phase) % period < period / 2, 330.0, 75.0) * KBIT


def ramp(rng: np.random.Generator) -> Floats:
    period, phase = rng.uniform(50, 70), rng.uniform(0, 60)
    up = np.abs(((_time() + phase) / period % 1) * 2 - 1)
    return (50 + 330 * up) * KBIT


def sawtooth(rng: np.random.Generator) -> Floats:
    period, phase = rng.uniform(10, 20), rng.uniform(0, 20)
    return (60 + 320 * ((_time() + phase) / period % 1)) * KBIT


# Rates in kbit/s; it stays in one for a mean of 1.5 s and goes to a neighbour.
WALK = (48.0, 84.0, 147.0, 257.0, 450.0)


def walk(rng: np.random.Generator) -> Floats:
    state, rates = int(rng.integers(len(WALK))), np.empty(len(_time()))
    left = 0.0
    for number in range(len(rates)):
        if left <= 0:
            state = int(np.clip(state + rng.choice([-1, 1]), 0, len(WALK) - 1))
            left = rng.exponential(1.5)
        left -= STEP_SECONDS
        rates[number] = WALK[state]
    fading = np.repeat(rng.normal(0, 0.15, len(rates) // 10 + 1), 10)[: len(rates)]
    return rates * np.exp(fading) * KBIT


def outages(rng: np.random.Generator) -> Floats:
    rates = np.full(len(_time()), 210.0)
    at = rng.uniform(3, 12)
    while at < SECONDS:
        length = rng.uniform(0.5, 4)
        rates[int(at / STEP_SECONDS) : int((at + length) / STEP_SECONDS)] = 0
        at += length + rng.exponential(12)
    return rates * KBIT


def stalls(rng: np.random.Generator) -> Floats:
    """A lost segment every 2.5 s on average: TCP's least time for sending again on Linux is 200 ms; nothing moves."""
    rates = np.full(len(_time()), 180.0)
    for at in np.cumsum(rng.exponential(2.5, 100)):
        rates[int(at / STEP_SECONDS) : int((at + 0.2) / STEP_SECONDS)] = 0
    return rates * KBIT


VARYING: dict[str, Callable[[np.random.Generator], Floats]] = {
    "step": step, "ramp": ramp, "sawtooth": sawtooth, "walk": walk, "outages": outages, "stalls": stalls,
}  # fmt: skip
CONSTANT = {f"constant {kbit}": constant(kbit) for kbit in (45, 80, 130, 160, 220, 400)}


def mahimahi(file: Path) -> Floats:
    """A recorded trace in Mahimahi's format: a line for each chance to send 1500 bytes, in milliseconds."""
    times = np.loadtxt(file) / 1000
    counts = np.bincount((times / STEP_SECONDS).astype(int))
    return np.resize(counts * 1500 / STEP_SECONDS, len(_time())).astype(float)


def scenario(name: str, seed: int, frames: int, jitter_seconds: float, rates: Floats | None = None) -> Scenario:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if rates is None:
        rates = (VARYING | CONSTANT)[name](rng)
    return Scenario(name, Link(rates), rng.exponential(jitter_seconds, frames))
