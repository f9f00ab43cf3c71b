"""What a board checks its own symbols with: synthetic frames that every machine draws alike, and the symbols they give.

A head's symbols may differ by a step here and there between machines, precisions and libraries. How much is harmless was
measured when the bundle was compiled; the bundle's ``selfcheck`` part says so, and has the fp32 symbols to compare with.
The frames are drawn, not stored: no photograph of the training data travels with a bundle.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from narrowcast.transport.bundle import Bundle
from narrowcast.transport.bundle.manifest import Precision
from narrowcast.transport.errors import ConfigError, ManifestError
from narrowcast.transport.structs import Settings, from_json

MAX_FRAMES = 16
# Cells of the noise's octaves, in pixels, and what each octave weighs: large shapes, and texture on them.
_OCTAVES = ((64, 8), (16, 4), (4, 3), (1, 1))


class SymbolBound(Settings, frozen=True):
    """How far symbols may be from the fp32 ones.

    Attributes:
        moved: part of the symbols that may differ.
        step: by how much at most.
    """

    moved: Annotated[float, msgspec.Meta(ge=0, le=1)]
    step: Annotated[int, msgspec.Meta(ge=0, le=255)]


class SelfCheck(Settings, frozen=True):
    """The ``selfcheck`` part, as JSON.

    Attributes:
        payloads: by level and frame: the fp32 symbols of :func:`reference_frames`, coded by the bundle's codec.
        bounds: by precision and level.
    """

    payloads: list[list[bytes]]
    bounds: dict[Precision, list[SymbolBound]]


def read_self_check(bundle: Bundle) -> SelfCheck:
    """The bundle's ``selfcheck`` part.

    Raises:
        MissingPartError: it has none.
        ManifestError: it is not one for this bundle.
    """
    try:
        check = from_json(SelfCheck, bundle.read("selfcheck"), f"{bundle.path.name}: selfcheck")
    except ConfigError as error:
        raise ManifestError(str(error)) from error
    levels = bundle.manifest.codec.levels
    frames = {len(coded) for coded in check.payloads}
    sound = len(check.payloads) == levels and len(frames) == 1 and 1 <= max(frames) <= MAX_FRAMES
    if not sound or any(len(bounds) != levels for bounds in check.bounds.values()):
        raise ManifestError(f"{bundle.path.name}: its selfcheck part is not one of {levels} levels")
    return check


def reference_frames(size: tuple[int, int], count: int) -> npt.NDArray[np.uint8]:
    """uint8 ``[count, H, W, 3]``: noise in octaves, as smooth and as rough as photographs are.

    In whole numbers only, so that every machine draws the same bytes.
    """
    y, x = np.mgrid[0 : size[0], 0 : size[1]].astype(np.int64)
    frames = np.empty((count, *size, 3), np.uint8)
    for number in range(count):
        for channel in range(3):
            seed = 3 * number + channel + 1
            total = sum(weight * _octave(y, x, cell, seed) for cell, weight in _OCTAVES)
            value = total // sum(weight for _, weight in _OCTAVES)
            frames[number, :, :, channel] = np.clip(2 * value - 128, 0, 255)
    return frames


def _octave(y: npt.NDArray[np.int64], x: npt.NDArray[np.int64], cell: int, seed: int) -> npt.NDArray[np.int64]:
    """Noise 0..255, known at the corners of cells and linear between them."""
    row, column, below, right = y // cell, x // cell, y % cell, x % cell
    top = _hash(row, column, seed) * (cell - right) + _hash(row, column + 1, seed) * right
    bottom = _hash(row + 1, column, seed) * (cell - right) + _hash(row + 1, column + 1, seed) * right
    found: npt.NDArray[np.int64] = np.floor_divide(top * (cell - below) + bottom * below, cell * cell, dtype=np.int64)
    return found


def _hash(row: npt.NDArray[np.int64], column: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """A byte per place, as good as random: multiply, fold, multiply (32 bits of each product are kept)."""
    mixed = (row * 0x9E3779B1 + column * 0x85EBCA77 + seed * 0xC2B2AE3D) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    mixed = ((mixed ^ (mixed >> 13)) * 0x297A2D39) & 0xFFFFFFFF
    return (mixed >> 16) & 0xFF
