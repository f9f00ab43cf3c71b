"""``bottlefit``: three convolutions on the board, few channels, 8 bits each; the server restores the rest.

Source: Matsubara, Callegaro, Singh, Levorato and Restuccia, "BottleFit: Learning compressed representations in deep neural
networks for effective and efficient split computing" (WoWMoM 2022, arXiv 2201.02693); layers and schedule as in its
published configuration for ResNet-152 cut behind ``layer2``.

First stage: encoder and decoder learn to give back the features at the cut and at the end of every stage behind it, which
are frozen. Then the latent's ranges are measured and its quantizer is fixed. Second stage: the encoder is frozen; decoder
and a copy of the layers behind the cut learn the teacher's answers from what really arrives, quantized symbols.

What differs from the paper, and why, is in ``docs/bottlenecks.md``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
import torch
from torch import Tensor, nn

from narrowcast.compiler.bottlenecks.base import Batch, Bottleneck, Group, Loss, Preset, Problem, Stage
from narrowcast.compiler.bottlenecks.blocks import FeatureGrid, GridFit
from narrowcast.compiler.bottlenecks.feature_errors import FeatureErrors
from narrowcast.compiler.bottlenecks.tail import TunedTail
from narrowcast.compiler.bottlenecks.two_stage import PAPERS_TRAINING, TwoStageSettings

ALPHABET = 256


class BottleFitSettings(TwoStageSettings, frozen=True, tag_field="preset", tag="bottlefit"):
    """``[bottleneck]`` with ``preset = "bottlefit"``; see :class:`TwoStageSettings` for the keys of its training.

    Attributes:
        channels: of the latent, which has an eighth of the image's rows and columns (12 x 29 x 29 for 224 px); the paper's
            are 3, 6, 9 and 12.
        decoder_width: channels of the decoder's inner layers, which run on the server.
        calibration_images: how many images the latent's ranges are measured on.
    """

    channels: Annotated[int, msgspec.Meta(ge=1, le=512)] = 12
    decoder_width: Annotated[int, msgspec.Meta(ge=8, le=4096)] = 512
    calibration_images: Annotated[int, msgspec.Meta(ge=1)] = 256


class BottleFit(Bottleneck):
    """See the module. Symbols are the latent between each channel's smallest and largest value, in 255 steps."""

    low: Tensor
    step: Tensor

    def __init__(self, problem: Problem, settings: BottleFitSettings) -> None:
        super().__init__()
        size = problem.contract.size
        self.alphabet = ALPHABET
        self.levels = 1
        self.codec = "rans"
        self.encoder = encoder_layers(settings.channels)
        with torch.no_grad():
            rows, columns = self.encoder.eval()(torch.zeros(1, 3, *size)).shape[2:]
        self.shape = (settings.channels, rows, columns)
        self.grid = FeatureGrid(problem.layout, size)
        fit = GridFit((rows - 1, columns - 1), self.grid.shape[1:])
        self.decoder = decoder_layers(settings.channels, settings.decoder_width, fit.expand * self.grid.shape[0], fit)
        self.tail = TunedTail(problem.after) if settings.tune_tail else None
        self.register_buffer("low", torch.zeros(1, settings.channels, 1, 1))
        self.register_buffer("step", torch.ones(1, settings.channels, 1, 1))

    def encode(self, images: Tensor, level: Tensor) -> Tensor:
        """See :class:`Bottleneck`."""
        return torch.clamp(torch.round((self.encoder(images) - self.low) / self.step), 0, ALPHABET - 1)

    def restore(self, latent: Tensor) -> Tensor:
        """The latent ``[N, *shape]``, quantized or not, to features ``[N, *cut.shape]``."""
        return self.grid.from_grid(self.decoder(latent))

    def decode(self, symbols: Tensor, level: Tensor) -> Tensor:
        """See :class:`Bottleneck`."""
        return self.restore(symbols * self.step + self.low)

    def encoder_state(self) -> dict[str, Tensor]:
        """See :class:`Bottleneck`."""
        layers = self.encoder.state_dict(prefix="encoder.")
        deciding = {name: value for name, value in layers.items() if not name.endswith("num_batches_tracked")}
        return {"low": self.low, "step": self.step, **deciding}

    def tuned_tail(self) -> nn.Module | None:
        """See :class:`Bottleneck`."""
        return self.tail

    @torch.no_grad()
    def set_ranges(self, latents: list[Tensor]) -> None:
        """Fixes the quantizer to the ranges of latents ``[N, *shape]`` (several batches)."""
        low = torch.stack([latent.amin((0, 2, 3)) for latent in latents]).amin(0)
        high = torch.stack([latent.amax((0, 2, 3)) for latent in latents]).amax(0)
        self.low.copy_(low.view(self.low.shape))
        self.step.copy_(((high - low).clamp_min(1e-6) / (ALPHABET - 1)).view(self.step.shape))


def encoder_layers(channels: int) -> nn.Sequential:
    """The paper's encoder: normalised images ``[N, 3, H, W]`` to ``[N, channels, ~H / 8, ~W / 8]``."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, channels, 2, 2, 1, bias=False),
    )


def decoder_layers(channels: int, width: int, features: int, fit: nn.Module) -> nn.Sequential:
    """The paper's decoder: ``[N, channels, h, w]`` to ``[N, features, h - 1, w - 1]``; ``fit`` takes them to the cut."""
    layers: list[nn.Module] = [nn.BatchNorm2d(channels), nn.ReLU()]
    for inside, padding in ((channels, 1), (width, 1), (width, 0)):
        layers += [nn.Conv2d(inside, width, 2, 1, padding, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, features, 2, bias=False), nn.AvgPool2d(2, 1), fit)


class BottleFitPreset(Preset[BottleFitSettings]):
    """See the module."""

    name = "bottlefit"
    train_defaults = PAPERS_TRAINING

    def build(self, problem: Problem, settings: BottleFitSettings) -> BottleFit:
        """See :class:`Preset`."""
        settings.check(problem)
        return BottleFit(problem, settings)

    def stages(self, bottleneck: BottleFit, problem: Problem, settings: BottleFitSettings) -> list[Stage]:
        """See :class:`Preset`."""
        errors = FeatureErrors(problem)

        def match_features(batch: Batch) -> Loss:
            restored = bottleneck.restore(bottleneck.encoder(problem.normalize(batch.images)))
            return Loss(*errors(restored, batch))

        @torch.no_grad()
        def fix_quantizer(batches: Iterator[Batch]) -> None:
            bottleneck.eval()
            latents: list[Tensor] = []
            while sum(map(len, latents)) < settings.calibration_images:
                latents.append(bottleneck.encoder(problem.normalize(next(batches).images)))
            bottleneck.set_ranges(latents)

        decoder = [bottleneck.decoder, bottleneck.grid]
        first = [p for module in (bottleneck.encoder, *decoder) for p in module.parameters()]
        second = settings.second(bottleneck, problem, decoder)
        second.prepare = fix_quantizer
        return [
            Stage(
                "features",
                settings.first_stage,
                [Group(first)],
                match_features,
                settings.first_optimizer,
                over_images="sum",
            ),
            second,
        ]
