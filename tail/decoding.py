"""Payloads of a batch to symbols: key frames, and frames that are predicted from earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from narrowcast.tail.frame import Frame
from narrowcast.tail.store import Model
from narrowcast.transport.errors import PayloadError

Symbols = npt.NDArray[np.uint8]
Shape = tuple[int, ...]


class _Group(NamedTuple):
    """Frames that are decoded in one call: all of one size, all key frames or all predicted."""

    shape: Shape
    predicted: bool


def decode(model: Model, frames: Sequence[Frame]) -> tuple[list[tuple[list[int], Symbols]], list[PayloadError | None]]:
    """By size: the frames' rows, and their symbols uint8 ``[N, C, h, w]``. And each frame's error or None."""
    errors: list[PayloadError | None] = [None] * len(frames)
    groups: dict[_Group, list[int]] = {}
    for row, frame in enumerate(frames):
        try:
            groups.setdefault(_group(model, frame), []).append(row)
        except PayloadError as error:
            errors[row] = error
    decoded: dict[Shape, list[tuple[list[int], Symbols]]] = {}
    for group, rows in groups.items():
        symbols, found = _symbols(model, [frames[row] for row in rows])
        sound = [k for k, problem in enumerate(found) if problem is None]
        for row, problem in zip(rows, found, strict=True):
            errors[row] = problem
        if sound:
            good = symbols if len(sound) == len(rows) else symbols[sound]
            decoded.setdefault(group.shape, []).append(([rows[k] for k in sound], good))
            _keep(model, [frames[rows[k]] for k in sound], good)
    return [_joined(parts) for parts in decoded.values()], errors


def _group(model: Model, frame: Frame) -> _Group:
    if frame.reference is not None:
        return _Group(frame.reference.symbols.shape, True)
    return _Group(model.codec.shape_of(frame.packet.payload), False)


def _symbols(model: Model, frames: Sequence[Frame]) -> tuple[Symbols, list[PayloadError | None]]:
    payloads, levels = [frame.packet.payload for frame in frames], [frame.packet.level for frame in frames]
    memories = [frame.reference.memory for frame in frames if frame.reference is not None]
    if not memories:
        return model.codec.decode_batch(payloads, levels)
    assert model.video is not None  # whoever found the reference has looked
    return model.video.decode_batch(payloads, levels, memories)


def _keep(model: Model, frames: Sequence[Frame], symbols: Symbols) -> None:
    """Notes what later frames may refer to: copies, which do not hold the whole batch."""
    for frame, one in zip(frames, symbols, strict=True):
        if frame.keep and model.video is not None:
            before = None if frame.reference is None else frame.reference.memory
            frame.kept = one.copy(), model.video.memory(one, before)


def _joined(parts: Sequence[tuple[list[int], Symbols]]) -> tuple[list[int], Symbols]:
    if len(parts) == 1:
        return parts[0]
    return [row for rows, _ in parts for row in rows], np.concatenate([symbols for _, symbols in parts])
