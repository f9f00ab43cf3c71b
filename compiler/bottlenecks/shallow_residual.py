"""``shallow-residual``, the default: a shallow residual ReLU encoder, a factorized prior, one encoder for every rate.

Sources: the encoder's block, FrankenSplit (IEEE TMC 2024); a variable rate by learned gains per level and channel, Cui et
al. ("Asymmetric gained deep image compression", CVPR 2021); noise for the rate and straight-through rounding for the
distortion, Minnen and Singh (ICIP 2020).

Trained without labels: the teacher's own features are the target. The first stage matches the features at the cut, the
second the features further on and the network's outputs through the frozen tail as well. Every stage pays for its bits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from narrowcast.compiler.bottlenecks.base import Batch, Bottleneck, Group, Optimizer, Preset, Problem, Stage
from narrowcast.compiler.bottlenecks.blocks import Decoder, FeatureGrid, Neck, ResidualBlock
from narrowcast.compiler.bottlenecks.crops import Cropper
from narrowcast.compiler.bottlenecks.encoder import (
    LINEAR_SPEED,
    EncoderSettings,
    encoder_for,
    sources,
    start_linear,
    take,
)
from narrowcast.compiler.bottlenecks.objective import Coded, Objective, Terms
from narrowcast.compiler.bottlenecks.quantize import LogisticMixturePrior, round_through
from narrowcast.compiler.bottlenecks.relevance import Found, Relevance, entropy_of, hyper_bits
from narrowcast.compiler.bottlenecks.tail import Answers, TunedTail, tuning_stage

ALPHABET = 256
ZERO = 128
# Gains and densities have few parameters, far to go, and nothing to unlearn: at the layers' speed a short run would end
# before the levels have parted.
RATE_SPEED = 5.0
TUNING_SHARE = 0.2
# The part of matching outputs that comes after the channels were found.
SETTLED_SHARE = 0.25
# Squared error that training starts from, as a part of the features' variance: networks bear so much at low rates.
START_DISTORTION = 0.3


class ShallowResidualSettings(EncoderSettings, frozen=True, tag_field="preset", tag="shallow-residual"):
    """``[bottleneck]`` with ``preset = "shallow-residual"``; see :class:`EncoderSettings` for the other keys.

    Attributes:
        channels: of the latent.
        rate_weights: what a bit per input pixel weighs against the distortion, at the highest and at the lowest rate;
            a single level takes their geometric mean.
        linear_start: with the teacher's trunk, start from the best linear code of its features, not from random layers.
        first_stage: the part of the images that match the features at the cut alone, before those behind it count too.
        first_crop: side of the crops that the first stage sees, as a part of the image's; 1 shows it whole images.
        deep_weight: what errors of features behind the cut count, beside 1 for those at the cut; 0 leaves them out.
        output_weight: what errors of the network's outputs count; 0 leaves them out.
        saliency: errors at the cut count by what their place means for the outputs, from half to whole.
        prune: look for the channels that carry something, and cut the others out of head, tail and packets
            (``relevance.py``); ``channels`` is then what to start from, and may be generous.
        level_balance: how far the high rates are favoured in training: a level's loss is divided by its rate weight to this
            power; at 0 the levels with few bytes count most.

    What each of these does to bytes and time is measured in ``docs/bottlenecks.md``.
    """

    channels: Annotated[int, msgspec.Meta(ge=1, le=512)] = 48
    rate_weights: tuple[float, float] = (0.5, 16.0)
    linear_start: bool = True
    first_stage: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.25
    first_crop: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    deep_weight: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    output_weight: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    saliency: bool = False
    prune: bool = False
    level_balance: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first_crop < 1 and not self.first_stage:
            raise ValueError(f"first_crop is {self.first_crop}, and first_stage is 0: there is nothing to crop")
        if not 0 < self.rate_weights[0] <= self.rate_weights[1]:
            raise ValueError(f"rate_weights is {list(self.rate_weights)}; two numbers above 0, the smaller first")


class ShallowResidual(Bottleneck):
    """See the module. The latent is scaled by a gain per level and channel, rounded, and scaled back."""

    def __init__(
        self,
        trunk: nn.Module | None,
        encoder: nn.Module,
        grid: FeatureGrid,
        latent: tuple[int, int, int],
        settings: ShallowResidualSettings,
    ) -> None:
        super().__init__()
        self.shape = latent
        self.alphabet = ALPHABET
        self.levels = settings.levels
        self.codec = "rans"
        self.trunk = trunk
        self.grid = grid
        self.encoder = encoder
        self.decoder = Decoder(latent, grid.shape, settings.decoder_width)
        self.prior = LogisticMixturePrior(settings.levels, latent[0])
        self.log_gain = nn.Parameter(torch.zeros(settings.levels, latent[0]))
        self.log_restore = nn.Parameter(torch.zeros(settings.levels, latent[0]))
        self.relevance = Relevance(settings.levels, latent[0]) if settings.prune else None
        self.found: Found | None = None
        self.tail: TunedTail | None = None

    def teacher_parts(self) -> Sequence[nn.Module]:
        """See :class:`Bottleneck`."""
        return () if self.trunk is None else (self.trunk,)

    def latent(self, source: Tensor) -> Tensor:
        """The encoder: normalised images (new trunk) or features at the cut (teacher's trunk) to float ``[N, *shape]``."""
        latent: Tensor = self.encoder(source if self.trunk is None else self.grid.to_grid(source))
        return latent

    def scaled(self, latent: Tensor, level: Tensor) -> Tensor:
        """The latent in units of its level's quantization step."""
        gain = torch.exp(self.log_gain)
        return latent * _rows(gain if self.relevance is None else gain * self.relevance.kept, level)

    def code(
        self,
        source: Tensor,
        level: Tensor,
        noise: Callable[[Tensor], Tensor],
        size: tuple[int, int] | None = None,
    ) -> Coded:
        """:meth:`encode` and :meth:`decode` as they are trained: bits of the noisy latent, features of the rounded one.

        Args:
            source: what :meth:`latent` takes.
            level: int64 ``[N]``.
            noise: gives uniform noise in ``[-0.5, 0.5)`` of a tensor's shape.
            size: rows and columns of the features on their grid; None is a whole image's.
        """
        scaled = self.scaled(self.latent(source), level)
        bits = self.prior.bits(scaled + noise(scaled), level).sum((2, 3))
        bits = (bits if self.relevance is None else bits * self.relevance.kept).sum(1)
        if self.relevance is not None and not self.relevance.settled:
            bits = bits + hyper_bits(scaled)
        limited = scaled.clamp(-ZERO, ALPHABET - 1 - ZERO)
        return Coded(self.restore(round_through(limited), level, size), bits, level)

    def encode(self, images: Tensor, level: Tensor) -> Tensor:
        """See :class:`Bottleneck`."""
        latent = self.latent(images if self.trunk is None else self.trunk(images))
        return torch.clamp(torch.round(self.scaled(latent, level)) + ZERO, 0, ALPHABET - 1)

    def restore(self, values: Tensor, level: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Quantized values (0 is 0) ``[N, *shape]`` to features ``[N, *cut.shape]``; for ``size`` see :meth:`code`."""
        latent = values * _rows(torch.exp(self.log_restore), level)
        return self.grid.from_grid(self.decoder(latent, size))

    def decode(self, symbols: Tensor, level: Tensor) -> Tensor:
        """See :class:`Bottleneck`."""
        return self.restore(symbols - ZERO, level)

    def encoder_state(self) -> dict[str, Tensor]:
        """See :class:`Bottleneck`. Without the channels that are switched off, cut out already or not."""
        encoder, gain = self.encoder, self.log_gain.detach()
        if self.relevance is not None and len(index := self.relevance.index()) < self.shape[0]:
            encoder, gain = copy.deepcopy(encoder), gain[:, index]
            _keep_outputs(encoder, index)
        state = {"log_gain": gain, **encoder.state_dict(prefix="encoder.")}
        return state if self.trunk is None else {**state, **self.trunk.state_dict(prefix="trunk.")}

    def density(self) -> npt.NDArray[np.float64]:
        """See :class:`Bottleneck`."""
        return self.prior.density(ALPHABET, ZERO)

    def tuned_tail(self) -> nn.Module | None:
        """See :class:`Bottleneck`."""
        return self.tail

    def start_over(self) -> None:
        """See :class:`Bottleneck`. All channels are in use again, until this run looks for those that matter."""
        if self.relevance is not None:
            self.relevance.start_over()

    @torch.no_grad()
    def fold(self) -> None:
        """See :class:`Bottleneck`. Cuts out the channels that were switched off: what they gave the decoder was 0."""
        if self.relevance is None:
            return
        self.found, index = self.relevance.found(), self.relevance.index()
        self.relevance = None
        if len(index) == self.shape[0]:
            return
        _keep_outputs(self.encoder, index)
        self.decoder.keep_inputs(index)
        self.prior.keep(index)
        self.log_gain = nn.Parameter(self.log_gain[:, index])
        self.log_restore = nn.Parameter(self.log_restore[:, index])
        self.shape = (len(index), *self.shape[1:])

    def figures(self) -> dict[str, Any]:
        """See :class:`Bottleneck`."""
        return {} if self.found is None else {"channels": asdict(self.found)}


def _keep_outputs(encoder: nn.Module, index: Tensor) -> None:
    """Cuts an encoder's output channels down to ``index``."""
    last = list(encoder.children())[-1] if isinstance(encoder, nn.Sequential) else encoder
    assert isinstance(last, Neck | ResidualBlock)
    last.keep_outputs(index)


def _rows(table: Tensor, level: Tensor) -> Tensor:
    """``[levels, C]`` at int64 ``[N]`` to ``[N, C, 1, 1]``; a plain Gather in ONNX, of a constant."""
    return table.index_select(0, level)[:, :, None, None]


def rate_weights(settings: ShallowResidualSettings) -> list[float]:
    """What a bit per pixel weighs, per level; level 0 has the fewest bytes. An only level lies in the middle."""
    low, high = settings.rate_weights
    if settings.levels == 1:
        return [(low * high) ** 0.5]
    return [high * (low / high) ** (level / (settings.levels - 1)) for level in range(settings.levels)]


class ShallowResidualPreset(Preset[ShallowResidualSettings]):
    """See the module."""

    name = "shallow-residual"

    def build(self, problem: Problem, settings: ShallowResidualSettings) -> ShallowResidual:
        """See :class:`Preset`."""
        parts = encoder_for(problem, settings, settings.channels)
        built = ShallowResidual(*parts, settings)
        if settings.tune_tail:
            built.tail = TunedTail(problem.after)
        return built

    @torch.no_grad()
    def calibrate(
        self,
        bottleneck: ShallowResidual,
        problem: Problem,
        settings: ShallowResidualSettings,
        batches: Iterator[Batch],
    ) -> None:
        """Starts from the best linear code of the teacher's features, and steps and densities from what they are."""
        taken = take(batches)
        steps = torch.tensor(rate_weights(settings), device=problem.device).sqrt()
        steps = steps / steps.log().mean().exp()
        linear = settings.linear_start and isinstance(bottleneck.encoder, Neck)
        if linear:
            grids = [bottleneck.grid.to_grid(batch.features).cpu() for batch in taken]
            assert isinstance(bottleneck.encoder, Neck)
            transform = start_linear(bottleneck.encoder, bottleneck.decoder, grids)
            steps = steps * transform.step_for(START_DISTORTION)
        latent = torch.cat([bottleneck.latent(source) for source in sources(bottleneck.trunk, problem, taken)])
        deviation = latent.std((0, 2, 3))
        if not linear:
            steps = steps * deviation.mean()  # an untrained encoder: about one bit a symbol to begin with
        bottleneck.log_gain.copy_((1 / steps).log()[:, None].expand_as(bottleneck.log_gain))
        bottleneck.log_restore.copy_(-bottleneck.log_gain)
        bottleneck.prior.start_from(deviation[None] / steps[:, None])

    def stages(self, bottleneck: ShallowResidual, problem: Problem, settings: ShallowResidualSettings) -> list[Stage]:
        """See :class:`Preset`."""

        def code(batch: Batch) -> Coded:
            (source,) = sources(bottleneck.trunk, problem, [batch])
            rows, columns = bottleneck.grid.to_grid(batch.features).shape[2:]
            return bottleneck.code(source, batch.levels(bottleneck.levels), batch.uniform, (rows, columns))

        rate = [bottleneck.log_gain, bottleneck.log_restore, *bottleneck.prior.parameters()]
        linear = [p for n, p in bottleneck.named_parameters() if ".linear." in n]
        tail = [] if bottleneck.tail is None else bottleneck.tail.parameters()
        others = {id(p) for p in (*rate, *linear, *tail, *problem.before.parameters())}
        layers = [p for p in bottleneck.parameters() if id(p) not in others]
        linear_speed = LINEAR_SPEED if settings.linear_start and bottleneck.trunk is not None else 1.0
        groups = [Group(layers), Group(linear, linear_speed), Group(rate, RATE_SPEED)]
        terms = Terms(settings.deep_weight, settings.output_weight, settings.saliency, settings.level_balance)
        crop = Cropper(problem, bottleneck.shape[1:], settings.first_crop) if settings.first_crop < 1 else None
        objective = Objective(code, problem, rate_weights(settings), terms, crop)
        tuning = TUNING_SHARE if settings.tune_tail else 0.0
        first = settings.first_stage * (1 - tuning)
        settled = SETTLED_SHARE * (1 - tuning - first) if settings.prune else 0.0
        stages = [Stage("features", first, groups, objective.match_features)] if first else []
        targets = objective.targets
        share = 1 - tuning - first - settled
        stages.append(Stage("outputs", share, groups, objective.match_outputs, targets=targets))
        if settled:
            prepare = partial(_settle, bottleneck, problem)
            stages.append(
                Stage("relevant channels", settled, groups, objective.match_outputs, prepare=prepare, targets=targets)
            )
        if tuning:
            decoder = [bottleneck.decoder, bottleneck.grid]
            answers = Answers(settings.temperature, settings.label_weight)
            stages.append(tuning_stage(bottleneck, problem, decoder, answers, Optimizer(), share=tuning))
        return stages


@torch.no_grad()
def _settle(bottleneck: ShallowResidual, problem: Problem, batches: Iterator[Batch]) -> None:
    """Decides which channels are relevant, by what their symbols carry on a few hundred images."""
    assert bottleneck.relevance is not None
    latent = torch.cat([bottleneck.latent(source) for source in sources(bottleneck.trunk, problem, take(batches))])
    entropy = []
    for level in range(bottleneck.levels):
        scaled = bottleneck.scaled(latent, torch.full((len(latent),), level, device=latent.device))
        entropy.append(entropy_of(torch.round(scaled)))
    bottleneck.relevance.settle(torch.stack(entropy), latent[0, 0].numel())
