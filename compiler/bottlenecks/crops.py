"""Small crops first: a first stage that sees a part of every image, for a part of the cost.

Crops are cut out of the features at the cut, which were computed (and cached) from the whole image, and out of the image at
the same place: cells start on whole cells of the latent, so both grids stay aligned. Close to a crop's border the teacher's
features still know what lies outside of it, which nobody could restore from the crop: the outermost latent cell does not
count, where the border is not the image's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from narrowcast.compiler.bottlenecks.base import Batch, Problem
from narrowcast.compiler.errors import BottleneckError

# Of a crop's side, in latent cells: with fewer nothing is left inside its borders.
LEAST_CELLS = 4
WHOLE = (slice(None), slice(None))


class Crop(NamedTuple):
    """A cropped batch.

    Attributes:
        batch: images and features of the crops.
        place: rows and columns of the whole image's map that the crop is.
        inside: rows and columns of the crop's own map that count.
        part: of the image's area, 0 to 1.
    """

    batch: Batch
    place: tuple[slice, slice]
    inside: tuple[slice, slice]
    part: float

    def of(self, maps: Tensor | None) -> Tensor | None:
        """The crop of maps ``[N, C, H, W]`` on the grid of the features; None of None."""
        return None if maps is None else maps[:, :, self.place[0], self.place[1]]


class Cropper:
    """Cuts one random place out of all images of a batch.

    Args:
        problem: whose features are cropped; they must be maps on a grid that divides the image.
        latent: rows and columns of the latent.
        part: of the image's sides, above 0 and below 1.

    Raises:
        BottleneckError: these features cannot be cropped, or the crops would be too small.
    """

    def __init__(self, problem: Problem, latent: tuple[int, int], part: float) -> None:
        self._layout = problem.layout
        size, grid = problem.contract.size, problem.layout.map_shape[1:]
        self._axes = [_axis(*sizes, part) for sizes in zip(size, grid, latent, strict=True)]
        if self._layout.kind not in ("chw", "hwc") or not all(axis.aligned for axis in self._axes):
            raise BottleneckError(
                f"first_crop is {part}; features of shape {list(problem.cut.shape)} at {problem.cut.name!r} cannot be "
                f"cropped in step with images of {size[0]} x {size[1]}: leave it out"
            )
        if min(axis.taken for axis in self._axes) < LEAST_CELLS:
            raise BottleneckError(
                f"first_crop is {part}: that leaves {self._axes[0].taken} x {self._axes[1].taken} cells of "
                f"{self._axes[0].pixels} x {self._axes[1].pixels} pixels, and {LEAST_CELLS} are needed: choose a larger one"
            )

    def __call__(self, batch: Batch) -> Crop:
        """A crop of ``batch``, at a place drawn from its generator."""
        maps = self._layout.to_map(batch.features)
        pixels, place, inside, part = list(WHOLE), list(WHOLE), list(WHOLE), 1.0
        for k, axis in enumerate(self._axes):
            start = int(torch.randint(axis.cells - axis.taken + 1, (), generator=batch.generator))
            pixels[k] = slice(start * axis.pixels, (start + axis.taken) * axis.pixels)
            place[k] = slice(start * axis.places, (start + axis.taken) * axis.places)
            first = axis.places if start else 0
            last = axis.places if start + axis.taken < axis.cells else 0
            inside[k] = slice(first, axis.taken * axis.places - last)
            part *= axis.taken / axis.cells
        features = self._layout.from_map(maps[:, :, place[0], place[1]])
        cropped = replace(batch, pictures=lambda: batch.images[:, pixels[0], pixels[1]], features=features)
        return Crop(cropped, (place[0], place[1]), (inside[0], inside[1]), part)


class _Axis(NamedTuple):
    """Rows, or columns.

    Attributes:
        cells: of the coarser of features and latent, in an image.
        taken: of these, in a crop.
        pixels: of the image in a cell.
        places: of the features in a cell.
        aligned: whether all of these divide each other.
    """

    cells: int
    taken: int
    pixels: int
    places: int
    aligned: bool


def _axis(size: int, grid: int, latent: int, part: float) -> _Axis:
    cells = min(grid, latent)
    aligned = size % cells == 0 and grid % cells == 0 and latent % cells == 0
    return _Axis(cells, round(part * cells), size // cells, grid // cells, aligned)
