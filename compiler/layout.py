"""The features at a cut as a map ``[N, C, H, W]``, whatever their layout, and back.

========================  ===============================  ==================
features of one image     where                            as a map
========================  ===============================  ==================
``[C, H, W]``             convolutional networks           ``[C, H, W]``
``[H, W, C]``             Swin and other NHWC networks     ``[C, H, W]``
``[tokens, dim]``         vision transformers              ``[dim, tokens, 1]``
``[dim]``                 behind global pooling            ``[dim, 1, 1]``
========================  ===============================  ==================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from narrowcast.compiler.errors import BottleneckError


@dataclass(frozen=True)
class Layout:
    """How the features of one image are laid out.

    Attributes:
        kind: which axis is which.
        shape: of the features, per image.
        map_shape: of the same numbers as ``[C, H, W]``.
    """

    kind: Literal["chw", "hwc", "tokens", "vector"]
    shape: tuple[int, ...]
    map_shape: tuple[int, int, int]

    def to_map(self, features: Tensor) -> Tensor:
        """``[N, *shape]`` as ``[N, *map_shape]``."""
        if self.kind == "hwc":
            return features.permute(0, 3, 1, 2)
        if self.kind == "tokens":
            return features.transpose(1, 2).unsqueeze(3)
        return features[:, :, None, None] if self.kind == "vector" else features

    def from_map(self, features: Tensor) -> Tensor:
        """``[N, *map_shape]`` as ``[N, *shape]``."""
        if self.kind == "hwc":
            return features.permute(0, 2, 3, 1)
        if self.kind == "tokens":
            return features.squeeze(3).transpose(1, 2)
        return features[:, :, 0, 0] if self.kind == "vector" else features


def layout_of(shape: tuple[int, ...], input_size: tuple[int, int]) -> Layout:
    """The layout of features of ``shape`` (per image) in a network for images of ``input_size``.

    Raises:
        BottleneckError: not a layout that narrowcast knows.
    """
    if len(shape) == 1:
        return Layout("vector", shape, (shape[0], 1, 1))
    if len(shape) == 2:
        return Layout("tokens", shape, (shape[1], shape[0], 1))
    if len(shape) == 3:
        # The two axes whose ratio to the input is the same are height and width; where both readings fit, NCHW wins.
        if _same_stride(shape[1:], input_size) or not _same_stride(shape[:2], input_size):
            return Layout("chw", shape, (shape[0], shape[1], shape[2]))
        return Layout("hwc", shape, (shape[2], shape[0], shape[1]))
    raise BottleneckError(f"features of shape {list(shape)} at the cut; 1 to 3 dimensions per image are supported")


def _same_stride(grid: tuple[int, ...], size: tuple[int, int]) -> bool:
    return abs(grid[0] * size[1] - grid[1] * size[0]) <= max(size)
