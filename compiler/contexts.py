"""Fits context tables to the symbols that a head really gave (see :mod:`narrowcast.transport.contexts`).

Per level and channel two ridge regressions give the weights of the mean and of the error that it will have; they are
rounded, and everything behind them is computed with the rounded ones, as the coder will. All levels and channels share the
bank of tables, so that even a few hundred frames fill it well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowcast.compiler.tables import fit_tables
from narrowcast.transport.coder.contexts import (
    add_recent,
    beside,
    choose,
    error_of,
    mean_of,
    neighbours,
    recalled,
    scale_inputs,
    scale_of,
)
from narrowcast.transport.contexts import FRACTIONS, MAX_BIAS, MEAN_INPUTS, MEMORY_INPUTS, SCALES, ContextTables
from narrowcast.transport.tables import Tables
from narrowcast.transport.video.memory import UNIT

Floats = npt.NDArray[np.float64]
Weights = npt.NDArray[np.int64]

CLASSES = 24
ONE = 1 << 12
# What no regularity at all weighs, in samples: keeps weights small where a channel hardly moves.
RIDGE = 20.0
# Predicted scales (in 1/16 quarter steps) below this are all one class: a symbol that is nearly certain.
LEAST_SCALE = 2.0
# A class with fewer symbols than this joins its neighbour: its tables would be guesses.
LEAST_SYMBOLS = 2000
# What the parametric shape weighs against a class's own counts.
SHAPE_COUNTS = 100.0


def fit_contexts(symbols: npt.NDArray[np.uint8], alphabet: int, *, lanes: int = 4) -> ContextTables:
    """Context tables for a head.

    Args:
        symbols: uint8 ``[levels, frames, C, H, W]``: what the head gave for training images.
        alphabet: symbols are ``0 .. alphabet - 1``.
        lanes: of the coder.
    """
    return _fit(symbols, alphabet, commonest(symbols, alphabet), None, lanes)[0]


def fit_predicted(
    symbols: npt.NDArray[np.uint8], alphabet: int, zero: int, memory: npt.NDArray[np.int16], *, lanes: int = 4
) -> tuple[ContextTables, npt.NDArray[np.int16]]:
    """Context tables for frames that are predicted, and the weights int16 ``[levels, C, 5]`` of their references' memories.

    Args:
        symbols: see :func:`fit_contexts`.
        alphabet: see there.
        zero: that the memories are relative to.
        memory: of each frame's reference, of the symbols' shape.
        lanes: of the coder.
    """
    return _fit(symbols, alphabet, zero, memory, lanes)


def _fit(
    symbols: npt.NDArray[np.uint8], alphabet: int, zero: int, memory: npt.NDArray[np.int16] | None, lanes: int
) -> tuple[ContextTables, npt.NDArray[np.int16]]:
    levels, _, channels = symbols.shape[:3]
    shape = (levels, channels)
    memory_weights = np.zeros((*shape, MEMORY_INPUTS), np.int16)
    mean_weights, mean_bias = np.zeros((*shape, 4), np.int16), np.zeros(shape, np.int32)
    scale_weights, scale_bias = np.zeros((*shape, 7), np.int16), np.zeros(shape, np.int32)
    scales = np.zeros(SCALES, np.int64)
    for level in range(levels):
        recent = np.zeros_like(symbols[level, :, 0], np.int64)
        previous = np.zeros_like(recent)
        for channel in range(channels):
            plane = symbols[level, :, channel].astype(np.int64) - zero
            before = None if memory is None else memory[level, :, channel].astype(np.int64)
            near: list[npt.NDArray[Any]] = [*neighbours(plane)]
            near += [] if before is None else [one / UNIT for one in beside(before)]
            weights, bias = _regress(near, plane.astype(np.float64))
            mean_weights[level, channel], mean_bias[level, channel] = weights[:MEAN_INPUTS], bias
            recall = None
            if before is not None:
                memory_weights[level, channel] = weights[MEAN_INPUTS:]
                recall = recalled(before, weights[MEAN_INPUTS:].tolist())
            of_plane = weights[:MEAN_INPUTS].tolist()
            error = error_of(plane, mean_of(plane, of_plane, bias, -zero, alphabet - 1 - zero, recall))
            inputs = scale_inputs(error, previous, recent)
            weights, bias = _regress(inputs, error.astype(np.float64))
            scale_weights[level, channel], scale_bias[level, channel] = weights, bias
            scales += np.bincount(scale_of(inputs, weights.tolist(), bias).ravel(), minlength=SCALES)
            recent, previous = add_recent(recent, error), error
    thresholds = _thresholds(scales)
    none = fit_tables(np.full((1, (len(thresholds) + 1) * FRACTIONS, alphabet), 1 / alphabet), None, lanes=lanes)
    tables = ContextTables(zero, mean_weights, mean_bias, scale_weights, scale_bias, thresholds, none)
    return replace(tables, bank=_bank(symbols, tables, lanes, memory, memory_weights)), memory_weights


def context_bits(
    symbols: npt.NDArray[np.uint8],
    tables: ContextTables,
    level: int,
    memory: npt.NDArray[np.int16] | None = None,
    memory_weights: npt.NDArray[np.int16] | None = None,
) -> float:
    """What the coder will spend on uint8 ``[frames, C, H, W]`` of one level, in bits, without its constant per frame."""
    bits = tables.bank.bits()[0]
    choices = choose(symbols, level, tables, memory, memory_weights)
    return float(sum(bits[choice.table, choice.coded].sum() for choice in choices))


def commonest(symbols: npt.NDArray[np.uint8], alphabet: int) -> int:
    """The symbol that there is most of: the tables' zero."""
    return int(np.bincount(symbols.ravel(), minlength=alphabet).argmax())


def _regress(inputs: Sequence[npt.NDArray[Any]], wanted: Floats) -> tuple[Weights, int]:
    """Weights and bias, in 1 / ``ONE``, that predict ``wanted`` from ``inputs``; as the format can hold them."""
    columns = np.stack([plane.ravel() for plane in inputs] + [np.ones(wanted.size, np.int64)], 1).astype(np.float64)
    gram = columns.T @ columns
    gram[np.diag_indices(len(inputs))] += RIDGE  # not the bias
    exact = np.linalg.lstsq(gram, columns.T @ wanted.ravel(), rcond=None)[0]
    weights = np.clip(np.rint(exact[:-1] * ONE), -(1 << 15), (1 << 15) - 1).astype(np.int64)
    bias = int(np.clip(np.rint(exact[-1] * ONE), -MAX_BIAS, MAX_BIAS))
    return weights, bias


def _thresholds(scales: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    """Classes of about equal ratio, each with enough symbols; ``scales``: how often each scale was predicted, [1024]."""
    edges = np.unique(np.rint(np.geomspace(LEAST_SCALE, SCALES - 1, CLASSES))).astype(int)
    kept: list[int] = []
    below = 0
    for edge in edges:
        if scales[below:edge].sum() >= LEAST_SYMBOLS and scales[edge:].sum() >= LEAST_SYMBOLS:
            kept.append(int(edge))
            below = int(edge)
    return np.array(kept, np.uint16)


def _bank(
    symbols: npt.NDArray[np.uint8],
    tables: ContextTables,
    lanes: int,
    memory: npt.NDArray[np.int16] | None,
    memory_weights: npt.NDArray[np.int16],
) -> Tables:
    """The bank fitted to what each of its tables really has to code."""
    alphabet, classes = tables.alphabet, tables.classes
    counts = np.zeros((classes * FRACTIONS, alphabet), np.int64)
    errors = np.zeros((classes, 2))
    for level in range(tables.levels):
        before = None if memory is None else memory[level]
        for choice in choose(symbols[level], level, tables, before, memory_weights):
            index = choice.table * alphabet + choice.coded
            counts += np.bincount(index.ravel(), minlength=counts.size).reshape(counts.shape)
            kinds = (choice.table // FRACTIONS).ravel()
            errors[:, 0] += np.bincount(kinds, choice.error.ravel(), classes)
            errors[:, 1] += np.bincount(kinds, minlength=classes)
    spread = (errors[:, 0] + 0.1) / (errors[:, 1] + 1) / 4  # mean absolute error in steps
    shape = _laplace(np.repeat(np.maximum(spread, 0.02), FRACTIONS), alphabet)
    return fit_tables(shape[None], counts[None], lanes=lanes, density_counts=SHAPE_COUNTS)


def _laplace(spread: Floats, alphabet: int) -> Floats:
    """Discrete Laplace densities float64 ``[tables, alphabet]`` of mean absolute error ``spread``.

    Each lies at its fraction: tables ``4 k .. 4 k + 3`` are -1/2, -1/4, 0 and 1/4 steps beside the centre.
    """
    fraction = (np.arange(len(spread)) % FRACTIONS - FRACTIONS / 2) / FRACTIONS
    distance = np.abs(np.arange(alphabet) - alphabet // 2 - fraction[:, None])
    density: Floats = np.exp(-distance / spread[:, None]) + 1e-9
    density /= density.sum(1, keepdims=True)
    return density
