"""``plain``: no learning at all. The cut's own features, quantized to 8 bits, packed with zstandard.

For a first try in seconds, and as the honest baseline beside learned bottlenecks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
import torch
from torch import Tensor

from narrowcast.compiler.bottlenecks.base import Batch, Bottleneck, Preset, Problem
from narrowcast.transport.structs import Settings


class PlainSettings(Settings, frozen=True, tag_field="preset", tag="plain"):
    """``[bottleneck]`` with ``preset = "plain"``.

    Attributes:
        bits: per symbol.
        calibration_images: how many images the ranges are measured on.
    """

    bits: Annotated[int, msgspec.Meta(ge=1, le=8)] = 8
    calibration_images: Annotated[int, msgspec.Meta(ge=1)] = 128


class PlainBottleneck(Bottleneck):
    """The teacher's own layers, and one range per channel."""

    low: Tensor
    step: Tensor

    def __init__(self, problem: Problem, settings: PlainSettings) -> None:
        super().__init__()
        self.layout = problem.layout
        self.shape = problem.layout.map_shape
        self.alphabet = 2**settings.bits
        self.levels = 1
        self.codec = "zstd"
        self.before = problem.before
        self.register_buffer("low", torch.zeros(1, self.shape[0], 1, 1))
        self.register_buffer("step", torch.ones(1, self.shape[0], 1, 1))

    def encode(self, images: Tensor, level: Tensor) -> Tensor:
        """See :class:`Bottleneck`."""
        features = self.layout.to_map(self.before(images))
        return torch.clamp(torch.round((features - self.low) / self.step), 0, self.alphabet - 1)

    def decode(self, symbols: Tensor, level: Tensor) -> Tensor:
        """See :class:`Bottleneck`."""
        return self.layout.from_map(symbols * self.step + self.low)

    def encoder_state(self) -> dict[str, Tensor]:
        """See :class:`Bottleneck`."""
        return {"low": self.low, "step": self.step, **self.before.state_dict(prefix="before.")}


class Plain(Preset[PlainSettings]):
    """See the module."""

    name = "plain"

    def build(self, problem: Problem, settings: PlainSettings) -> PlainBottleneck:
        """See :class:`Preset`."""
        return PlainBottleneck(problem, settings)

    @torch.no_grad()
    def calibrate(
        self, bottleneck: PlainBottleneck, problem: Problem, settings: PlainSettings, batches: Iterator[Batch]
    ) -> None:
        """Sets each channel's range to the smallest and largest value seen."""
        lows, highs, seen = [], [], 0
        while seen < settings.calibration_images:
            features = problem.layout.to_map(next(batches).features)
            lows.append(features.amin((0, 2, 3)))
            highs.append(features.amax((0, 2, 3)))
            seen += len(features)
        low, high = torch.stack(lows).amin(0), torch.stack(highs).amax(0)
        step = (high - low).clamp_min(1e-6) / (bottleneck.alphabet - 1)
        bottleneck.low.copy_(low.view(1, -1, 1, 1))
        bottleneck.step.copy_(step.view(1, -1, 1, 1))
