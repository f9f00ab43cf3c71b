"""An encoder whose cost on the board is chosen: as wide as a budget allows, behind the teacher's layers or in their place.

Source: the encoder's block, FrankenSplit (IEEE TMC 2024).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from narrowcast.compiler.bottlenecks.base import Batch, Problem
from narrowcast.compiler.bottlenecks.blocks import Decoder, FeatureGrid, Neck, residual_stack
from narrowcast.compiler.bottlenecks.tail import LabelWeight
from narrowcast.compiler.bottlenecks.transform import Transform, principal_components
from narrowcast.compiler.cost import macs_of_layers
from narrowcast.compiler.errors import BottleneckError
from narrowcast.transport.structs import Settings

# A neck narrower than this cannot carry an image; a trunk that leaves less room is too dear for the budget.
LEAST_WIDTH = 8
MOST_WIDTH = 192
# Of ``encoder_macs``: where the teacher's layers take more, too little is left for an encoder behind them.
MOST_OF_BUDGET = 0.9
# The linear paths start where they are best; fast steps would only undo that.
LINEAR_SPEED = 0.1
CALIBRATION_IMAGES = 256


class EncoderSettings(Settings, frozen=True):
    """Keys of ``[bottleneck]`` that these presets have in common.

    Attributes:
        levels: rate points, all from one encoder.
        encoder_macs: what the board can afford per frame, multiply-accumulates (``"150M"``, ``"1.2G"``).
        trunk: ``new`` replaces the teacher's layers before the cut, ``teacher`` keeps them; ``auto`` keeps them where
            they take at most nine tenths of ``encoder_macs``; compiling also measures whether they are too slow
            (``docs/planning.md``).
        stride: input pixels per latent cell, a power of two; never finer than the cut with the teacher's trunk.
        decoder_width: channels of the decoder, which runs on the server.
        tune_tail: give the last fifth of the images to decoder and tail alone (a copy of the teacher's layers behind the
            cut), by distillation; encoder and tables are not changed by it.
        temperature: of that distillation.
        label_weight: part of that stage's loss that is cross-entropy with labels (class folders, or ``labels.csv``), the
            rest is distillation; 0 needs no labels.
    """

    levels: Annotated[int, msgspec.Meta(ge=1, le=16)] = 4
    encoder_macs: str | int = "150M"
    trunk: Literal["auto", "new", "teacher"] = "auto"
    stride: Annotated[int, msgspec.Meta(ge=2, le=64)] = 16
    decoder_width: Annotated[int, msgspec.Meta(ge=8, le=1024)] = 96
    tune_tail: bool = False
    temperature: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    label_weight: LabelWeight = 0.0

    def __post_init__(self) -> None:
        if self.stride & (self.stride - 1):
            raise ValueError(f"stride is {self.stride}; it is a power of two")
        self.budget  # noqa: B018  (checks encoder_macs)
        if self.label_weight and not self.tune_tail:
            raise ValueError(
                f"label_weight is {self.label_weight}; only tuning the tail uses labels: set tune_tail = true"
            )

    @property
    def budget(self) -> int:
        """``encoder_macs`` as a number."""
        match = re.fullmatch(r"\s*([0-9.]+)\s*([kKmMgG]?)\s*", str(self.encoder_macs))
        if not match:
            raise ValueError(f"encoder_macs is {self.encoder_macs!r}; a number, or one with K, M or G")
        return round(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[match[2].lower()])


class EncoderParts(NamedTuple):
    """An untrained encoder and what it lies between.

    Attributes:
        trunk: the teacher up to the cut where that is kept; None where the encoder takes images.
        encoder: images, or features at the cut, to the latent.
        grid: the features at the cut as maps.
        latent: shape, ``(C, H, W)``.
    """

    trunk: nn.Module | None
    encoder: nn.Module
    grid: FeatureGrid
    latent: tuple[int, int, int]


def encoder_for(problem: Problem, settings: EncoderSettings, channels: int, reserved_macs: int = 0) -> EncoderParts:
    """The encoder for a problem, as wide as the budget allows.

    Args:
        problem: the cut.
        settings: the budget.
        channels: of the latent.
        reserved_macs: a part of the budget that is not the encoder's.

    Raises:
        BottleneckError: the budget is too small.
    """
    grid = FeatureGrid(problem.layout, problem.contract.size)
    trunk_macs, budget = problem.cut.macs_before, settings.budget - reserved_macs
    use_trunk = settings.trunk == "teacher" or (
        settings.trunk == "auto" and trunk_macs <= MOST_OF_BUDGET * settings.budget
    )
    if use_trunk:
        if trunk_macs > budget:
            raise BottleneckError(
                f"the teacher's layers before {problem.cut.name!r} take {trunk_macs / 1e6:.0f} M multiply-accumulates; "
                f'encoder_macs is {settings.budget / 1e6:.0f} M: cut earlier, raise it, or use trunk = "new"'
            )
        encoder = _neck(grid.shape, settings.stride, channels, problem.contract.size, budget - trunk_macs)
        source = grid.shape
    else:
        source = (3, *problem.contract.size)
        encoder = _new_trunk(source, settings.stride, channels, budget)
    with torch.no_grad():
        latent = encoder(torch.zeros(1, *source)).shape[1:]
    return EncoderParts(problem.before if use_trunk else None, encoder, grid, tuple(latent))


def take(batches: Iterator[Batch]) -> list[Batch]:
    """Batches to measure on."""
    taken: list[Batch] = []
    while sum(len(batch.features) for batch in taken) < CALIBRATION_IMAGES:
        taken.append(next(batches))
    return taken


def sources(trunk: nn.Module | None, problem: Problem, taken: list[Batch]) -> list[Tensor]:
    """What an encoder takes: features at the cut behind the teacher's trunk, else normalised images; row by row in memory.

    Features may lie in memory pixel by pixel. The backward pass of a 1x1 convolution of a larger stride, a block's skip,
    from fewer than eight such channels writes past its buffer (torch 2.13 on a CPU).
    """
    found = [batch.features if trunk is not None else problem.normalize(batch.images) for batch in taken]
    return [source.contiguous() for source in found]


def start_linear(neck: Neck, decoder: Decoder, grids: list[Tensor]) -> Transform:
    """Sets the linear paths of neck and decoder to the principal components of features ``[N, C, H, W]``."""
    if any(neck.pad):
        grids = [F.pad(grid, neck.pad, mode="replicate") for grid in grids]
    transform = principal_components(grids, neck.patch, neck.linear.out_channels)
    neck.linear.weight.copy_(transform.basis.view_as(neck.linear.weight))
    _bias(neck.linear).copy_(-(transform.basis @ transform.mean))
    # The components are orthonormal: their transpose takes them back.
    decoder.linear.weight.copy_(transform.basis.T.reshape(decoder.linear.weight.shape))
    _bias(decoder.linear).copy_(transform.mean)
    return transform


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def _new_trunk(image: tuple[int, int, int], stride: int, channels: int, budget: int) -> nn.Module:
    """Blocks of stride 2 down to the latent's grid, as wide as the budget allows."""
    count = stride.bit_length() - 1

    def stack(width: int) -> nn.Module:
        widths = [round(width * 1.5**k / 4) * 4 for k in range(count - 1)]
        return residual_stack([3, *widths, channels], [2] * count)

    return _widest(stack, image, budget, "a new trunk")


def _neck(
    features: tuple[int, int, int], most_stride: int, channels: int, size: tuple[int, int], budget: int
) -> nn.Module:
    """A patch transform from the cut's grid down to the latent's, with residual blocks as wide as the budget allows."""
    stride, patch = max(1, round(size[0] / features[1])), 1
    while stride * patch * 2 <= most_stride and features[1] > patch:
        patch *= 2
    return _widest(
        lambda width: Neck(features, patch, channels, width), features, budget, "the teacher's trunk with a neck"
    )


def _widest(stack: Callable[[int], nn.Module], source: tuple[int, int, int], budget: int, what: str) -> nn.Module:
    """``stack(width)`` for the largest width, a multiple of 8, that stays within the budget."""
    fitting = [w for w in range(LEAST_WIDTH, MOST_WIDTH + 1, 8) if macs_of_layers(stack(w), source) <= budget]
    if not fitting:
        least = macs_of_layers(stack(LEAST_WIDTH), source)
        raise BottleneckError(
            f"{what} takes at least {least / 1e6:.1f} M multiply-accumulates; {budget / 1e6:.1f} M are left of encoder_macs"
        )
    return stack(fitting[-1])
