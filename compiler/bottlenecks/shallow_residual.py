"""``shallow-residual``, the default: a shallow residual ReLU encoder, a factorized prior, one encoder for every rate.

Sources: the encoder's block, FrankenSplit (IEEE TMC 2024); a variable rate by learned gains per level and channel, Cui et
al. ("Asymmetric gained deep image compression", CVPR 2021); noise for the rate and straight-through rounding for the
distortion, Minnen and Singh (ICIP 2020).

Trained without labels: the teacher's own features are the target. The first stage matches the features at the cut, the
second the features further on and the network's outputs through the frozen tail as well. Every stage pays for its bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from narrowcast.compiler.bottlenecks.base import Batch, Bottleneck, Group, Optimizer, Preset, Problem, Stage
from narrowcast.compiler.bottlenecks.blocks import Decoder, FeatureGrid, Neck, residual_stack
from narrowcast.compiler.bottlenecks.crops import Cropper
from narrowcast.compiler.bottlenecks.objective import Coded, Objective, Terms
from narrowcast.compiler.bottlenecks.quantize import LogisticMixturePrior, round_through
from narrowcast.compiler.bottlenecks.tail import Answers, LabelWeight, TunedTail, tuning_stage
from narrowcast.compiler.bottlenecks.transform import principal_components
from narrowcast.compiler.cost import macs_of_layers
from narrowcast.compiler.errors import BottleneckError
from narrowcast.transport.structs import Settings

ALPHABET = 256
ZERO = 128
# A neck narrower than this cannot carry an image; a trunk that leaves less room is too dear for the budget.
LEAST_WIDTH = 8
MOST_WIDTH = 192
# Gains and densities have few parameters, far to go, and nothing to unlearn: at the layers' speed a short run would end
# before the levels have parted.
RATE_SPEED = 5.0
# The linear paths start where they are best; fast steps would only undo that.
LINEAR_SPEED = 0.1
TUNING_SHARE = 0.2
CALIBRATION_IMAGES = 256
# Squared error that training starts from, as a part of the features' variance: networks bear so much at low rates.
START_DISTORTION = 0.3


class ShallowResidualSettings(Settings, frozen=True, tag_field="preset", tag="shallow-residual"):
    """``[bottleneck]`` with ``preset = "shallow-residual"``.

    Attributes:
        levels: rate points, all from one encoder.
        encoder_macs: what the board can afford per frame, multiply-accumulates (``"150M"``, ``"1.2G"``).
        trunk: ``new`` replaces the teacher's layers before the cut, ``teacher`` keeps them; ``auto`` keeps them where
            they take at most three quarters of ``encoder_macs``.
        channels: of the latent.
        stride: input pixels per latent cell, a power of two; never finer than the cut with the teacher's trunk.
        rate_weights: what a bit per input pixel weighs against the distortion, at the highest and at the lowest rate;
            a single level takes their geometric mean.
        decoder_width: channels of the decoder, which runs on the server.
        linear_start: with the teacher's trunk, start from the best linear code of its features, not from random layers.
        first_stage: the part of the images that match the features at the cut alone, before those behind it count too.
        first_crop: side of the crops that the first stage sees, as a part of the image's; 1 shows it whole images.
        deep_weight: what errors of features behind the cut count, beside 1 for those at the cut; 0 leaves them out.
        output_weight: what errors of the network's outputs count; 0 leaves them out.
        saliency: errors at the cut count by what their place means for the outputs, from half to whole.
        tune_tail: give the last fifth of the images to decoder and tail alone (a copy of the teacher's layers behind the
            cut), by distillation; encoder and tables are not changed by it.
        temperature: of that distillation.
        label_weight: part of that stage's loss that is cross-entropy with labels (class folders, or ``labels.csv``), the
            rest is distillation; 0 needs no labels.

    What each of these does to bytes and time is measured in ``docs/bottlenecks.md``.
    """

    levels: Annotated[int, msgspec.Meta(ge=1, le=16)] = 4
    encoder_macs: str | int = "150M"
    trunk: Literal["auto", "new", "teacher"] = "auto"
    channels: Annotated[int, msgspec.Meta(ge=1, le=512)] = 48
    stride: Annotated[int, msgspec.Meta(ge=2, le=64)] = 16
    rate_weights: tuple[float, float] = (0.5, 16.0)
    decoder_width: Annotated[int, msgspec.Meta(ge=8, le=1024)] = 96
    linear_start: bool = True
    first_stage: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.25
    first_crop: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    deep_weight: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    output_weight: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    saliency: bool = False
    tune_tail: bool = False
    temperature: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    label_weight: LabelWeight = 0.0

    def __post_init__(self) -> None:
        if self.label_weight and not self.tune_tail:
            raise ValueError(
                f"label_weight is {self.label_weight}; only tuning the tail uses labels: set tune_tail = true"
            )
        if self.first_crop < 1 and not self.first_stage:
            raise ValueError(f"first_crop is {self.first_crop}, and first_stage is 0: there is nothing to crop")
        if self.stride & (self.stride - 1):
            raise ValueError(f"stride is {self.stride}; it is a power of two")
        if not 0 < self.rate_weights[0] <= self.rate_weights[1]:
            raise ValueError(f"rate_weights is {list(self.rate_weights)}; two numbers above 0, the smaller first")
        self.budget  # noqa: B018  (checks encoder_macs)

    @property
    def budget(self) -> int:
        """``encoder_macs`` as a number."""
        match = re.fullmatch(r"\s*([0-9.]+)\s*([kKmMgG]?)\s*", str(self.encoder_macs))
        if not match:
            raise ValueError(f"encoder_macs is {self.encoder_macs!r}; a number, or one with K, M or G")
        return round(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[match[2].lower()])


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
        return latent * _rows(torch.exp(self.log_gain), level)

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
        bits = self.prior.bits(scaled + noise(scaled), level).sum((1, 2, 3))
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
        """See :class:`Bottleneck`."""
        state = {"log_gain": self.log_gain.detach(), **self.encoder.state_dict(prefix="encoder.")}
        return state if self.trunk is None else {**state, **self.trunk.state_dict(prefix="trunk.")}

    def density(self) -> npt.NDArray[np.float64]:
        """See :class:`Bottleneck`."""
        return self.prior.density(ALPHABET, ZERO)

    def tuned_tail(self) -> nn.Module | None:
        """See :class:`Bottleneck`."""
        return self.tail


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
        grid = FeatureGrid(problem.layout, problem.contract.size)
        trunk_macs = problem.cut.macs_before
        use_trunk = settings.trunk == "teacher" or (settings.trunk == "auto" and trunk_macs <= 0.75 * settings.budget)
        if use_trunk:
            if trunk_macs > settings.budget:
                raise BottleneckError(
                    f"the teacher's layers before {problem.cut.name!r} take {trunk_macs / 1e6:.0f} M multiply-accumulates; "
                    f'encoder_macs is {settings.budget / 1e6:.0f} M: cut earlier, raise it, or use trunk = "new"'
                )
            encoder = _neck(grid.shape, settings, problem.contract.size, settings.budget - trunk_macs)
            source = grid.shape
        else:
            source = (3, *problem.contract.size)
            encoder = _new_trunk(source, settings)
        with torch.no_grad():
            latent = encoder(torch.zeros(1, *source)).shape[1:]
        built = ShallowResidual(problem.before if use_trunk else None, encoder, grid, tuple(latent), settings)
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
        taken: list[Batch] = []
        while sum(len(batch.features) for batch in taken) < CALIBRATION_IMAGES:
            taken.append(next(batches))
        steps = torch.tensor(rate_weights(settings), device=problem.device).sqrt()
        steps = steps / steps.log().mean().exp()
        linear = settings.linear_start and isinstance(bottleneck.encoder, Neck)
        if linear:
            grids = [bottleneck.grid.to_grid(batch.features).cpu() for batch in taken]
            steps = steps * _start_linear(bottleneck, grids)
        sources = [b.features if bottleneck.trunk is not None else problem.normalize(b.images) for b in taken]
        deviation = torch.cat([bottleneck.latent(source) for source in sources]).std((0, 2, 3))
        if not linear:
            steps = steps * deviation.mean()  # an untrained encoder: about one bit a symbol to begin with
        bottleneck.log_gain.copy_((1 / steps).log()[:, None].expand_as(bottleneck.log_gain))
        bottleneck.log_restore.copy_(-bottleneck.log_gain)
        bottleneck.prior.start_from(deviation[None] / steps[:, None])

    def stages(self, bottleneck: ShallowResidual, problem: Problem, settings: ShallowResidualSettings) -> list[Stage]:
        """See :class:`Preset`."""

        def code(batch: Batch) -> Coded:
            source = problem.normalize(batch.images) if bottleneck.trunk is None else batch.features
            rows, columns = bottleneck.grid.to_grid(batch.features).shape[2:]
            return bottleneck.code(source, batch.levels(bottleneck.levels), batch.uniform, (rows, columns))

        rate = [bottleneck.log_gain, bottleneck.log_restore, *bottleneck.prior.parameters()]
        linear = [p for n, p in bottleneck.named_parameters() if ".linear." in n]
        tail = [] if bottleneck.tail is None else bottleneck.tail.parameters()
        others = {id(p) for p in (*rate, *linear, *tail, *problem.before.parameters())}
        layers = [p for p in bottleneck.parameters() if id(p) not in others]
        linear_speed = LINEAR_SPEED if settings.linear_start and bottleneck.trunk is not None else 1.0
        groups = [Group(layers), Group(linear, linear_speed), Group(rate, RATE_SPEED)]
        terms = Terms(settings.deep_weight, settings.output_weight, settings.saliency)
        crop = Cropper(problem, bottleneck.shape[1:], settings.first_crop) if settings.first_crop < 1 else None
        objective = Objective(code, problem, rate_weights(settings), terms, crop)
        tuning = TUNING_SHARE if settings.tune_tail else 0.0
        first = settings.first_stage * (1 - tuning)
        stages = [Stage("features", first, groups, objective.match_features)] if first else []
        stages.append(Stage("outputs", 1 - tuning - first, groups, objective.match_outputs))
        if tuning:
            decoder = [bottleneck.decoder, bottleneck.grid]
            answers = Answers(settings.temperature, settings.label_weight)
            stages.append(tuning_stage(bottleneck, problem, decoder, answers, Optimizer(), share=tuning))
        return stages


def _start_linear(bottleneck: ShallowResidual, grids: list[Tensor]) -> float:
    """Sets the linear paths of neck and decoder to the features' principal components; returns the step to start with."""
    neck, decoder = bottleneck.encoder, bottleneck.decoder
    assert isinstance(neck, Neck)
    if any(neck.pad):
        grids = [F.pad(grid, neck.pad, mode="replicate") for grid in grids]
    transform = principal_components(grids, neck.patch, bottleneck.shape[0])
    neck.linear.weight.copy_(transform.basis.view_as(neck.linear.weight))
    _bias(neck.linear).copy_(-(transform.basis @ transform.mean))
    # The components are orthonormal: their transpose takes them back.
    decoder.linear.weight.copy_(transform.basis.T.reshape(decoder.linear.weight.shape))
    _bias(decoder.linear).copy_(transform.mean)
    return transform.step_for(START_DISTORTION)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def _new_trunk(image: tuple[int, int, int], settings: ShallowResidualSettings) -> nn.Module:
    """Blocks of stride 2 down to the latent's grid, as wide as the budget allows."""
    count = settings.stride.bit_length() - 1

    def stack(width: int) -> nn.Module:
        widths = [round(width * 1.5**k / 4) * 4 for k in range(count - 1)]
        return residual_stack([3, *widths, settings.channels], [2] * count)

    return _widest(stack, image, settings.budget, "a new trunk")


def _neck(
    features: tuple[int, int, int], settings: ShallowResidualSettings, size: tuple[int, int], budget: int
) -> nn.Module:
    """A patch transform from the cut's grid down to the latent's, with residual blocks as wide as the budget allows."""
    stride, patch = max(1, round(size[0] / features[1])), 1
    while stride * patch * 2 <= settings.stride and features[1] > patch:
        patch *= 2
    return _widest(
        lambda width: Neck(features, patch, settings.channels, width),
        features,
        budget,
        "the teacher's trunk with a neck",
    )


def _widest(stack: Any, source: tuple[int, int, int], budget: int, what: str) -> nn.Module:
    """``stack(width)`` for the largest width, a multiple of 8, that stays within the budget."""
    fitting = [w for w in range(LEAST_WIDTH, MOST_WIDTH + 1, 8) if macs_of_layers(stack(w), source) <= budget]
    if not fitting:
        least = macs_of_layers(stack(LEAST_WIDTH), source)
        raise BottleneckError(
            f"{what} takes at least {least / 1e6:.1f} M multiply-accumulates; {budget / 1e6:.1f} M are left of encoder_macs"
        )
    built: nn.Module = stack(fitting[-1])
    return built
