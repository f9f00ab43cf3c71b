"""``entropic-student``: a GDN encoder and a factorized prior, whose bits are paid for while features are distilled.

Sources: Matsubara, Yang, Levorato and Mandt, "Supervised compression for resource-constrained edge computing systems" (WACV
2022, arXiv 2108.11898) and "SC2 benchmark: supervised compression for split computing" (TMLR 2023); layers and schedule
as in their published configuration for ResNet-50 cut behind ``layer1``.

First stage: squared errors at the cut and at the end of every stage behind it (which are frozen) plus ``beta`` times the
bits, with noise in the place of rounding. Second stage: encoder and prior are frozen; decoder and a copy of the layers
behind the cut learn the teacher's answers from rounded latents.

What differs from the paper, and why, is in ``docs/bottlenecks.md``.
"""

from __future__ import annotations

import copy
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from narrowcast.compiler.bottlenecks.base import Batch, Bottleneck, Group, Loss, Preset, Problem, Stage
from narrowcast.compiler.bottlenecks.blocks import FeatureGrid, GridFit
from narrowcast.compiler.bottlenecks.factorized import FactorizedPrior
from narrowcast.compiler.bottlenecks.feature_errors import FeatureErrors
from narrowcast.compiler.bottlenecks.gdn import GDN, fold_gdn
from narrowcast.compiler.bottlenecks.tail import TunedTail
from narrowcast.compiler.bottlenecks.two_stage import PAPERS_TRAINING, Part, TwoStageSettings

ALPHABET = 256
ZERO = 128


class EntropicStudentSettings(TwoStageSettings, frozen=True, tag_field="preset", tag="entropic-student"):
    """``[bottleneck]`` with ``preset = "entropic-student"``; see :class:`TwoStageSettings` for the keys of its training.

    Attributes:
        beta: what a bit weighs against a squared error in the teacher's own features. The papers' range for ResNet-50 is
            0.08 to 5.12; a network whose features are ten times smaller wants a hundredth.
        channels: of the latent, which has about a quarter of the image's rows and columns (24 x 55 x 55 for 224 px); the
            encoder's inner layers have four times and twice as many.
        decoder_width: channels of the decoder's first layer, which runs on the server; the second has half of them.
        gdn: ``simplified`` as in the papers' code (absolute values, no root), or the ``original`` form.
    """

    beta: Annotated[float, msgspec.Meta(gt=0)] = 0.32
    channels: Annotated[int, msgspec.Meta(ge=1, le=512)] = 24
    decoder_width: Annotated[int, msgspec.Meta(ge=8, le=4096)] = 512
    gdn: Literal["simplified", "original"] = "simplified"
    first_decays: tuple[Part, ...] = (0.5, 0.8)


class EntropicStudent(Bottleneck):
    """See the module. Symbols are the rounded latent."""

    def __init__(self, problem: Problem, settings: EntropicStudentSettings) -> None:
        super().__init__()
        size, simplified = problem.contract.size, settings.gdn == "simplified"
        self.alphabet = ALPHABET
        self.levels = 1
        self.codec = "rans"
        self.encoder = encoder_layers(settings.channels, simplified=simplified)
        with torch.no_grad():
            rows, columns = self.encoder(torch.zeros(1, 3, *size)).shape[2:]
        self.shape = (settings.channels, rows, columns)
        self.grid = FeatureGrid(problem.layout, size)
        fit = GridFit((rows + 1, columns + 1), self.grid.shape[1:])
        features = fit.expand * self.grid.shape[0]
        self.decoder = decoder_layers(settings.channels, settings.decoder_width, features, fit, simplified=simplified)
        self.prior = FactorizedPrior(settings.channels)
        self.tail = TunedTail(problem.after) if settings.tune_tail else None

    def encode(self, images: Tensor, level: Tensor) -> Tensor:
        """See :class:`Bottleneck`."""
        return torch.clamp(torch.round(self.encoder(images)) + ZERO, 0, ALPHABET - 1)

    def restore(self, latent: Tensor) -> Tensor:
        """The latent ``[N, *shape]``, rounded or noisy, to features ``[N, *cut.shape]``."""
        return self.grid.from_grid(self.decoder(latent))

    def decode(self, symbols: Tensor, level: Tensor) -> Tensor:
        """See :class:`Bottleneck`."""
        return self.restore(symbols - ZERO)

    def encoder_state(self) -> dict[str, Tensor]:
        """See :class:`Bottleneck`."""
        layers = copy.deepcopy(self.encoder)
        fold_gdn(layers)
        return layers.state_dict(prefix="encoder.")

    def density(self) -> npt.NDArray[np.float64]:
        """See :class:`Bottleneck`."""
        return self.prior.density(ALPHABET, ZERO)

    def tuned_tail(self) -> nn.Module | None:
        """See :class:`Bottleneck`."""
        return self.tail

    def fold(self) -> None:
        """See :class:`Bottleneck`."""
        fold_gdn(self.encoder)
        fold_gdn(self.decoder)


def encoder_layers(channels: int, *, simplified: bool = True) -> nn.Sequential:
    """The papers' encoder: normalised images ``[N, 3, H, W]`` to ``[N, channels, ~H / 4, ~W / 4]``."""
    return nn.Sequential(
        nn.Conv2d(3, 4 * channels, 5, 2, 2, bias=False),
        GDN(4 * channels, simplified=simplified),
        nn.Conv2d(4 * channels, 2 * channels, 5, 2, 2, bias=False),
        GDN(2 * channels, simplified=simplified),
        nn.Conv2d(2 * channels, channels, 2, bias=False),
    )


def decoder_layers(
    channels: int, width: int, features: int, fit: nn.Module, *, simplified: bool = True
) -> nn.Sequential:
    """The papers' decoder: ``[N, channels, h, w]`` to ``[N, features, h + 1, w + 1]``; ``fit`` takes them to the cut."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 2, 1, 1, bias=False),
        GDN(width, inverse=True, simplified=simplified),
        nn.Conv2d(width, width // 2, 2, bias=False),
        GDN(width // 2, inverse=True, simplified=simplified),
        nn.Conv2d(width // 2, features, 2, 1, 1, bias=False),
        fit,
    )


class EntropicStudentPreset(Preset[EntropicStudentSettings]):
    """See the module."""

    name = "entropic-student"
    train_defaults = PAPERS_TRAINING

    def build(self, problem: Problem, settings: EntropicStudentSettings) -> EntropicStudent:
        """See :class:`Preset`."""
        settings.check(problem)
        return EntropicStudent(problem, settings)

    def stages(self, bottleneck: EntropicStudent, problem: Problem, settings: EntropicStudentSettings) -> list[Stage]:
        """See :class:`Preset`."""
        errors = FeatureErrors(problem)

        def match_features(batch: Batch) -> Loss:
            latent = bottleneck.encoder(problem.normalize(batch.images))
            noisy = (latent + batch.uniform(latent)).clamp(-ZERO, ALPHABET - 1 - ZERO)
            bits = bottleneck.prior.bits(noisy).sum()
            distortion, figures = errors(bottleneck.restore(noisy), batch)
            return Loss(distortion + settings.beta * bits, {"bytes": bits.item() / 8 / len(latent), **figures})

        decoder = [bottleneck.decoder, bottleneck.grid]
        first = [p for module in (bottleneck.encoder, bottleneck.prior, *decoder) for p in module.parameters()]
        return [
            Stage(
                "features",
                settings.first_stage,
                [Group(first)],
                match_features,
                settings.first_optimizer,
                over_images="sum",
            ),
            settings.second(bottleneck, problem, decoder),
        ]
