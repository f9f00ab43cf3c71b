"""ONNX's operators that move, pick and resize values, in torch. See :mod:`narrowcast.tail.backends.torch.operators`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from narrowcast.tail.backends.torch.operators import Ints, ints, operator, together


@operator("Shape")
def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


@operator("Reshape", host=(1,))
def _reshape(x: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    wanted = ints(shape)
    if not allowzero:
        wanted = [x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Flatten")
def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


@operator("Transpose")
def _transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(*(perm or range(x.ndim)[::-1]))


@operator("Squeeze", host=(1,))
def _squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    if axes is None:
        return x.squeeze()
    return x.squeeze(tuple(ints(axes)))


@operator("Unsqueeze", host=(1,))
def _unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    places = ints(axes)
    rank = x.ndim + len(places)
    for place in sorted(place + rank if place < 0 else place for place in places):
        x = x.unsqueeze(place)
    return x


@operator("Expand", host=(1,))
def _expand(x: Tensor, shape: Ints) -> Tensor:
    wanted = ints(shape)
    rank = max(x.ndim, len(wanted))
    own, wanted = [1] * (rank - x.ndim) + list(x.shape), [1] * (rank - len(wanted)) + wanted
    return x.expand([mine if size == 1 else size for mine, size in zip(own, wanted, strict=True)])


@operator("Tile", host=(1,))
def _tile(x: Tensor, repeats: Ints) -> Tensor:
    return x.repeat(ints(repeats))


@operator("Concat")
def _concat(*values: Tensor, axis: int) -> Tensor:
    return torch.cat(together(*values), axis)


@operator("Split", host=(1,), outputs=None)
def _split(x: Tensor, sizes: Ints | None = None, *, axis: int = 0, num_outputs: int | None = None) -> Any:
    if sizes is not None:
        return torch.split(x, ints(sizes), axis)
    if num_outputs is None:
        raise ValueError("equal parts of an unknown number (opset 13 to 17)")
    return torch.split(x, -(-x.shape[axis] // num_outputs), axis)


@operator("Slice", host=(1, 2, 3, 4))
def _slice(x: Tensor, starts: Ints, ends: Ints, axes: Ints | None = None, steps: Ints | None = None) -> Tensor:
    begins, stops = ints(starts), ints(ends)
    places = list(range(len(begins))) if axes is None else ints(axes)
    strides = [1] * len(begins) if steps is None else ints(steps)
    for place, begin, stop, stride in zip(places, begins, stops, strides, strict=True):
        if stride > 0:
            at = [slice(None)] * x.ndim
            size = x.shape[place]
            at[place] = slice(max(begin, -size), stop if stop < size else None, stride)
            x = x[tuple(at)]
        else:  # torch knows no steps backwards
            picked = list(range(*slice(begin, stop, stride).indices(x.shape[place])))
            x = x.index_select(place, torch.tensor(picked, dtype=torch.int64, device=x.device))
    return x


@operator("Gather")
def _gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    x, indices = together(x, indices)
    axis = axis + x.ndim if axis < 0 else axis
    indices = indices.long()
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    picked = x.index_select(axis, indices.reshape(-1))
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@operator("GatherElements")
def _gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    x, indices = together(x, indices)
    indices = indices.long()
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


@operator("ConstantOfShape", host=(0,))
def _constant_of_shape(shape: Ints, *, value: Tensor | None = None) -> Tensor:
    one = torch.zeros(1) if value is None else value.reshape(1)
    return one.expand(prod(ints(shape))).reshape(ints(shape))


@operator("Pad", host=(1, 2, 3))
def _pad(x: Tensor, pads: Ints, value: Any = None, axes: Ints | None = None, *, mode: str = "constant") -> Tensor:
    amounts = ints(pads)
    places = list(range(x.ndim)) if axes is None else [place % x.ndim for place in ints(axes)]
    pairs = [(0, 0)] * x.ndim
    for place, begin, end in zip(places, amounts[: len(places)], amounts[len(places) :], strict=True):
        pairs[place] = begin, end
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    if mode == "constant":
        flat = [amount for pair in reversed(pairs) for amount in pair]
        return F.pad(x, flat, value=0.0 if value is None else float(value))
    if mode not in modes or any(any(pair) for pair in pairs[:2]):
        raise ValueError(f"mode {mode!r} of axes {places}")
    flat = [amount for pair in reversed(pairs[2:]) for amount in pair]
    return F.pad(x, flat, mode=modes[mode])


@operator("DepthToSpace")
def _depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    count, channels, height, width = x.shape
    x = x.reshape(count, blocksize, blocksize, channels // blocksize**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(count, channels // blocksize**2, height * blocksize, width * blocksize)


@operator("SpaceToDepth")
def _space_to_depth(x: Tensor, *, blocksize: int) -> Tensor:
    count, channels, height, width = x.shape
    x = x.reshape(count, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    x = x.permute(0, 3, 5, 1, 2, 4)
    return x.reshape(count, channels * blocksize**2, height // blocksize, width // blocksize)


# Resizing.

_ROUND: dict[str, Callable[[Tensor], Tensor]] = {
    "floor": torch.floor,
    "ceil": torch.ceil,
    "round_prefer_floor": lambda at: torch.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: torch.floor(at + 0.5),
}
_SMOOTH = {"linear": {3: "linear", 4: "bilinear", 5: "trilinear"}, "cubic": {4: "bicubic"}}


@operator("Resize", host=(1, 2, 3))
def _resize(
    x: Tensor, roi: Any = None, scales: Any = None, sizes: Any = None, *, antialias: int = 0,
    axes: Sequence[int] | None = None, coordinate_transformation_mode: str = "half_pixel", cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0, extrapolation_value: float = 0.0, keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest", nearest_mode: str = "round_prefer_floor",
) -> Tensor:  # fmt: skip
    if antialias or exclude_outside or axes or keep_aspect_ratio_policy != "stretch" or cubic_coeff_a != -0.75:
        raise ValueError("antialias, axes, exclude_outside, keep_aspect_ratio_policy or cubic_coeff_a")
    by = None if scales is None or len(scales) == 0 else [float(scale) for scale in scales][2:]
    to = [int(size * scale) for size, scale in zip(x.shape[2:], by, strict=True)] if by else ints(sizes)[2:]
    factors = by or [new / old for new, old in zip(to, x.shape[2:], strict=True)]
    if mode == "nearest":
        for axis, (new, factor) in enumerate(zip(to, factors, strict=True), 2):
            x = _nearest(x, axis, new, factor, coordinate_transformation_mode, nearest_mode)
        return x
    corners = coordinate_transformation_mode == "align_corners"
    halves = coordinate_transformation_mode in ("half_pixel", "pytorch_half_pixel")
    if not (corners or halves) or (coordinate_transformation_mode == "pytorch_half_pixel" and 1 in to):
        raise ValueError(f"{mode} resizing to {to} by {coordinate_transformation_mode}")
    kind = _SMOOTH[mode][x.ndim]
    if by:
        return F.interpolate(x, scale_factor=by, mode=kind, align_corners=corners, recompute_scale_factor=False)
    return F.interpolate(x, to, mode=kind, align_corners=corners)


def _nearest(x: Tensor, axis: int, new: int, factor: float, transformation: str, rounding: str) -> Tensor:
    old = x.shape[axis]
    place = torch.arange(new, dtype=torch.float64, device=x.device)
    if transformation == "asymmetric":
        place = place / factor
    elif transformation == "align_corners":
        place = place * ((old - 1) / (new - 1)) if new > 1 else place * 0
    elif transformation in ("half_pixel", "pytorch_half_pixel"):
        place = (place + 0.5) / factor - 0.5
        place = place * 0 if transformation == "pytorch_half_pixel" and new == 1 else place
    else:
        raise ValueError(f"nearest resizing by {transformation}")
    return x.index_select(axis, _ROUND[rounding](place).clamp(0, old - 1).long())
