"""``codebook``: groups of latent channels, each replaced by the nearest of a few hundred learned vectors; indices are sent.

How many bytes a frame takes follows from its level alone, whatever the image: for links that carry packets of one size.

Sources: vector quantization with straight-through gradients and a commitment loss, van den Oord, Vinyals and Kavukcuoglu
(VQ-VAE, NeurIPS 2017, arXiv 1711.00937); several codebooks side by side for the slices of one latent, Zhu, Song, Gao, Zheng
and Shen, "Unified multivariate Gaussian mixture for efficient neural image compression" (McQuic, CVPR 2022, arXiv
2203.10897). What differs from McQuic, and why, is in ``docs/bottlenecks.md``.

The codebooks have an order: level ``l`` sends the first few of them, and the decoder gets zeros for the others. The search
for the nearest vector is a grouped 1x1 convolution (``|c|^2 - 2 c z`` grows as ``|z - c|^2`` does) and an ArgMin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from narrowcast.compiler.bottlenecks.base import Batch, Bottleneck, Group, Loss, Optimizer, Preset, Problem, Stage
from narrowcast.compiler.bottlenecks.blocks import Decoder, Neck
from narrowcast.compiler.bottlenecks.encoder import (
    LINEAR_SPEED,
    EncoderParts,
    EncoderSettings,
    encoder_for,
    sources,
    start_linear,
    take,
)
from narrowcast.compiler.bottlenecks.exact import without_autocast
from narrowcast.compiler.bottlenecks.kmeans import k_means
from narrowcast.compiler.bottlenecks.objective import Coded, Objective
from narrowcast.compiler.bottlenecks.tail import Answers, TunedTail, tuning_stage
from narrowcast.transport.packed import width_of

FIRST_STAGE_SHARE = 0.25
TUNING_SHARE = 0.2
CODEWORD_SPEED = 3.0
# How much of the quantization error the encoder is to take on itself (VQ-VAE's beta).
COMMITMENT = 0.25
# The number of bits is fixed: training has nothing to pay for. (The objective wants weights above 0.)
FREE = 1e-9
# A codeword whose part of the cells falls below this part of an even share is put where there is something to code.
DEAD = 0.03
USAGE_MEMORY = 0.99


class CodebookSettings(EncoderSettings, frozen=True, tag_field="preset", tag="codebook"):
    """``[bottleneck]`` with ``preset = "codebook"``; see :class:`EncoderSettings` for the other keys.

    Attributes:
        codebooks: symbols per latent cell at the highest level. Lower levels send the first of them: with 8 codebooks
            and 4 levels, 2, 4, 6 and 8.
        codewords: vectors in each; a symbol takes ``log2`` of it in bits, rounded up.
        dimensions: of a vector; the latent has ``codebooks * dimensions`` channels.
    """

    codebooks: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    codewords: Annotated[int, msgspec.Meta(ge=2, le=256)] = 256
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels > self.codebooks:
            raise ValueError(f"levels is {self.levels}; each sends at least one of {self.codebooks} codebooks more")

    @property
    def sent(self) -> tuple[int, ...]:
        """How many codebooks each level sends."""
        return tuple(-(-self.codebooks * (level + 1) // self.levels) for level in range(self.levels))


class Codebook(Bottleneck):
    """See the module. Symbols are the indices of the nearest codewords, 0 where a level sends none."""

    shown: Tensor
    usage: Tensor
    first: Tensor
    ordered = False
    sent: tuple[int, ...]

    def __init__(self, parts: EncoderParts, settings: CodebookSettings) -> None:
        super().__init__()
        books, words, dimensions = settings.codebooks, settings.codewords, settings.dimensions
        self.shape = (books, *parts.latent[1:])
        self.alphabet = words
        self.levels = settings.levels
        self.codec = "rans"
        self.sent = settings.sent
        self.trunk, self.encoder, self.grid = parts.trunk, parts.encoder, parts.grid
        self.decoder = Decoder(parts.latent, parts.grid.shape, settings.decoder_width)
        self.codewords = nn.Parameter(torch.randn(books, words, dimensions))
        self.tail: TunedTail | None = None
        self.register_buffer("usage", torch.full((books, words), 1 / words))
        sent = torch.tensor(self.sent)[:, None]
        self.register_buffer("shown", (torch.arange(books) < sent).float(), persistent=False)
        self.register_buffer("first", (torch.arange(books) * words)[:, None, None], persistent=False)

    def teacher_parts(self) -> Sequence[nn.Module]:
        """See :class:`Bottleneck`."""
        return () if self.trunk is None else (self.trunk,)

    def latent(self, source: Tensor) -> Tensor:
        """The encoder: normalised images (new trunk) or features at the cut (teacher's trunk) to ``[N, M * d, h, w]``."""
        latent: Tensor = self.encoder(source if self.trunk is None else self.grid.to_grid(source))
        return latent

    def nearest(self, latent: Tensor) -> Tensor:
        """The index of the nearest codeword, int64 ``[N, M, h, w]``."""
        books, words, dimensions = self.codewords.shape
        weight = (-2 * self.codewords).reshape(books * words, dimensions, 1, 1)
        distance = F.conv2d(latent, weight, self.codewords.square().sum(2).reshape(-1), groups=books)
        return distance.reshape(-1, books, words, *latent.shape[2:]).argmin(2)

    def vectors(self, index: Tensor) -> Tensor:
        """The codewords of indices ``[N, M, h, w]``, as a latent ``[N, M * d, h, w]``."""
        found = F.embedding(index + self.first, self.codewords.flatten(0, 1))
        return found.permute(0, 1, 4, 2, 3).reshape(
            -1, self.codewords.shape[0] * self.codewords.shape[2], *index.shape[2:]
        )

    def restore(self, latent: Tensor, level: Tensor) -> Tensor:
        """A latent of codewords to features ``[N, *cut.shape]``, from the codebooks that the level sends."""
        seen = self.shown.index_select(0, level).repeat_interleave(self.codewords.shape[2], 1)
        return self.grid.from_grid(self.decoder(latent * seen[:, :, None, None]))

    def encode(self, images: Tensor, level: Tensor) -> Tensor:
        """See :class:`Bottleneck`."""
        index = self.nearest(self.latent(images if self.trunk is None else self.trunk(images)))
        return index.float() * self.shown.index_select(0, level)[:, :, None, None]

    def decode(self, symbols: Tensor, level: Tensor) -> Tensor:
        """See :class:`Bottleneck`."""
        return self.restore(self.vectors(symbols.long()), level)

    def code(self, source: Tensor, level: Tensor) -> tuple[Coded, Tensor, Tensor]:
        """:meth:`encode` and :meth:`decode` as they are trained, with gradients for encoder and codewords alike.

        Returns:
            what came back; how far the latent is from its codewords, a scalar without unit; the indices.
        """
        latent = self.latent(source).float()
        with torch.no_grad(), without_autocast(latent.device):  # distances are differences of large numbers
            index = self.nearest(latent)
        chosen = self.vectors(index)
        spread = latent.detach().var((0, 2, 3), keepdim=True).clamp_min(1e-8)
        apart = (chosen - latent.detach()).square() + COMMITMENT * (chosen.detach() - latent).square()
        # The value is the codeword's; the gradient reaches the codeword as it is and the latent straight through.
        through = chosen + latent - latent.detach()
        bits = self.shown.sum(1)[level] * index[0, 0].numel() * width_of(self.alphabet)
        return Coded(self.restore(through, level), bits, level), (apart / spread).mean(), index

    @torch.no_grad()
    def revive(self, source: Tensor, index: Tensor, generator: torch.Generator) -> float:
        """Counts which codewords are used, and puts those that hardly are onto latents of this batch.

        Returns:
            the part of all codewords that are in use.
        """
        books, words, dimensions = self.codewords.shape
        flat = (index + self.first).transpose(0, 1).reshape(-1)
        part = torch.bincount(flat, minlength=books * words).reshape(books, words) * books / len(flat)
        self.usage.mul_(USAGE_MEMORY).add_((1 - USAGE_MEMORY) * part)
        dead = self.usage < DEAD / words
        if dead.any():
            latent = self.latent(source).reshape(len(source), books, dimensions, -1).permute(1, 0, 3, 2).flatten(1, 2)
            drawn = torch.randint(latent.shape[1], (books, words), generator=generator).to(latent.device)
            there = latent.gather(1, drawn[..., None].expand(-1, -1, dimensions))
            self.codewords.copy_(torch.where(dead[..., None], there, self.codewords))
            self.usage[dead] = 1 / words
        return 1 - dead.float().mean().item()

    def encoder_state(self) -> dict[str, Tensor]:
        """See :class:`Bottleneck`."""
        state = {
            "codewords": self.codewords.detach(),
            "shown": self.shown,
            **self.encoder.state_dict(prefix="encoder."),
        }
        return state if self.trunk is None else {**state, **self.trunk.state_dict(prefix="trunk.")}

    def density(self) -> npt.NDArray[np.float64]:
        """See :class:`Bottleneck`: how often each codeword was used; certainty where a level sends nothing."""
        usage = self.usage.double().cpu().numpy() + 1e-9
        found = np.repeat((usage / usage.sum(1, keepdims=True))[None], self.levels, 0)
        for level, sent in enumerate(self.sent):
            found[level, sent:] = np.eye(1, self.alphabet)
        return found

    def moving(self) -> Sequence[Tensor]:
        """See :class:`Bottleneck`: :meth:`revive` puts codewords onto latents of the images at hand."""
        return self.codewords, self.usage

    def tuned_tail(self) -> nn.Module | None:
        """See :class:`Bottleneck`."""
        return self.tail


class CodebookPreset(Preset[CodebookSettings]):
    """See the module."""

    name = "codebook"
    tables = ("none", "channel")  # indices have no order that contexts could go by

    def build(self, problem: Problem, settings: CodebookSettings) -> Codebook:
        """See :class:`Preset`."""
        channels = settings.codebooks * settings.dimensions
        stride = max(settings.stride, 1)
        cells = -(-problem.contract.size[0] // stride) * -(-problem.contract.size[1] // stride)
        built = Codebook(encoder_for(problem, settings, channels, channels * settings.codewords * cells), settings)
        if settings.tune_tail:
            built.tail = TunedTail(problem.after)
        return built

    @torch.no_grad()
    def calibrate(
        self, bottleneck: Codebook, problem: Problem, settings: CodebookSettings, batches: Iterator[Batch]
    ) -> None:
        """Starts from the best linear code of the teacher's features, and the codewords from its clusters."""
        taken = take(batches)
        if isinstance(bottleneck.encoder, Neck):
            grids = [bottleneck.grid.to_grid(batch.features).cpu() for batch in taken]
            start_linear(bottleneck.encoder, bottleneck.decoder, grids)
        latent = torch.cat([bottleneck.latent(source) for source in sources(bottleneck.trunk, problem, taken)])
        books, words, dimensions = bottleneck.codewords.shape
        points = latent.reshape(len(latent), books, dimensions, -1).permute(1, 0, 3, 2).flatten(1, 2)
        for book in range(books):
            bottleneck.codewords[book] = k_means(points[book].cpu(), words, seed=book)

    def stages(self, bottleneck: Codebook, problem: Problem, settings: CodebookSettings) -> list[Stage]:
        """See :class:`Preset`."""
        training = _Training(bottleneck, problem)
        codewords = [bottleneck.codewords]
        linear = [p for n, p in bottleneck.named_parameters() if ".linear." in n]
        tail = [] if bottleneck.tail is None else bottleneck.tail.parameters()
        others = {id(p) for p in (*codewords, *linear, *tail, *problem.before.parameters())}
        layers = [p for p in bottleneck.parameters() if id(p) not in others]
        groups = [Group(layers), Group(linear, LINEAR_SPEED), Group(codewords, CODEWORD_SPEED)]
        tuning = TUNING_SHARE if settings.tune_tail else 0.0
        first = FIRST_STAGE_SHARE * (1 - tuning)
        objective = training.objective
        stages = [
            Stage("features", first, groups, training.loss(objective.match_features)),
            Stage(
                "outputs", 1 - tuning - first, groups, training.loss(objective.match_outputs), targets=objective.targets
            ),
        ]
        if tuning:
            decoder = [bottleneck.decoder, bottleneck.grid]
            answers = Answers(settings.temperature, settings.label_weight)
            stages.append(tuning_stage(bottleneck, problem, decoder, answers, Optimizer(), share=tuning))
        return stages


class _Training:
    """The objective of the other presets, and beside it what holds latent and codewords together."""

    def __init__(self, bottleneck: Codebook, problem: Problem) -> None:
        self._bottleneck, self._problem = bottleneck, problem
        self._apart = torch.zeros(())
        self._used = 0.0
        self.objective = Objective(self._code, problem, [FREE] * bottleneck.levels)

    def _code(self, batch: Batch) -> Coded:
        net = self._bottleneck
        (source,) = sources(net.trunk, self._problem, [batch])
        coded, self._apart, index = net.code(source, batch.levels(net.levels))
        self._used = net.revive(source, index, batch.generator)
        return coded

    def loss(self, match: Callable[[Batch], Loss]) -> Callable[[Batch], Loss]:
        """``match`` with the error of the codewords added."""

        def together(batch: Batch) -> Loss:
            found = match(batch)
            figures = {**found.figures, "codewords": self._apart.item(), "used": self._used}
            return Loss(found.total + self._apart, figures)

        return together
