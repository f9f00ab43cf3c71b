"""Further tails on a head that is trained already: other networks, each with a decoder of its own for the same symbols.

The encoder, its quantizer and its tables are those of the recipe's ``[teacher]`` and do not change: a task that is added
later, to the same recipe in the same work folder, leaves the codec fingerprint, and so the fleet, as it is. What the new
task can do is bounded by what the symbols hold; where that is too little, make the harder task the first one.

The decoder begins as the best linear map from symbols to the new network's features, found by least squares on a few hundred
images, and is then trained like any other: on the features at the cut, those behind it, and the outputs. No labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import narrowcast
from narrowcast.compiler.bottlenecks.base import Batch, Bottleneck, Group, Optimizer, Preset, Problem, Stage
from narrowcast.compiler.bottlenecks.blocks import Decoder, FeatureGrid
from narrowcast.compiler.bottlenecks.exact import without_autocast
from narrowcast.compiler.bottlenecks.objective import Coded, Objective
from narrowcast.compiler.bottlenecks.tail import Answers, TunedTail, tuning_stage
from narrowcast.compiler.cuts import find_cut
from narrowcast.compiler.cuts.trace import trace
from narrowcast.compiler.data import TrainingData
from narrowcast.compiler.digests import digest_of_network, digest_of_state
from narrowcast.compiler.errors import BottleneckError
from narrowcast.compiler.fabric import resolve_device
from narrowcast.compiler.job import Job
from narrowcast.compiler.recipe import TailSettings
from narrowcast.compiler.tasks import task_of
from narrowcast.compiler.teacher import load_teacher
from narrowcast.compiler.training import train
from narrowcast.transport.structs import Settings

CALIBRATION_IMAGES = 256
FIRST_STAGE_SHARE = 0.25
TUNING_SHARE = 0.2
RIDGE = 1e-3  # of the symbols' own variance, which is one
LINEAR_SPEED = 0.1


class FurtherSettings(Settings, frozen=True):
    """What a further tail's bottleneck takes from the recipe."""

    decoder_width: int
    tune_tail: bool


class FurtherBottleneck(Bottleneck):
    """The first tail's encoder, frozen, and a decoder to another network's features.

    Symbols are brought to mean 0 and variance 1 per level and channel before they are decoded, as measured.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, first: Bottleneck, problem: Problem, settings: FurtherSettings) -> None:
        super().__init__()
        self._first = [first]  # not a submodule: it is no part of this one's state
        self.shape, self.alphabet, self.levels, self.codec = first.shape, first.alphabet, first.levels, first.codec
        self.grid = FeatureGrid(problem.layout, problem.contract.size)
        self.decoder = Decoder(first.shape, self.grid.shape, settings.decoder_width)
        self.register_buffer("mean", torch.zeros(first.levels, first.shape[0]))
        self.register_buffer("deviation", torch.ones(first.levels, first.shape[0]))
        self.tail: TunedTail | None = TunedTail(problem.after) if settings.tune_tail else None

    @torch.no_grad()
    def encode(self, images: Tensor, level: Tensor) -> Tensor:
        """See :class:`Bottleneck`: as the first tail's."""
        return self._first[0].eval().encode(images, level)

    def scaled(self, symbols: Tensor, level: Tensor) -> Tensor:
        """Symbols ``[N, *shape]`` with mean 0 and variance 1."""
        mean, deviation = (table.index_select(0, level)[:, :, None, None] for table in (self.mean, self.deviation))
        return (symbols - mean) / deviation

    def decode(self, symbols: Tensor, level: Tensor) -> Tensor:
        """See :class:`Bottleneck`."""
        return self.grid.from_grid(self.decoder(self.scaled(symbols, level)))

    def encoder_state(self) -> dict[str, Tensor]:
        """See :class:`Bottleneck`."""
        return self._first[0].encoder_state()

    def tuned_tail(self) -> nn.Module | None:
        """See :class:`Bottleneck`."""
        return self.tail


class FurtherTail(Preset[FurtherSettings]):
    """See the module."""

    name = "further-tail"

    def build(self, problem: Problem, settings: FurtherSettings) -> Bottleneck:
        """See :class:`Preset`; made by :class:`FurtherJob` alone, which has the encoder."""
        raise NotImplementedError

    @torch.no_grad()
    def calibrate(
        self, bottleneck: FurtherBottleneck, problem: Problem, settings: FurtherSettings, batches: Iterator[Batch]
    ) -> None:
        """Measures the symbols, and sets the decoder's linear path by least squares, over all levels together."""
        taken: list[Batch] = []
        while sum(len(batch.features) for batch in taken) < CALIBRATION_IMAGES:
            taken.append(next(batches))
        symbols: list[list[Tensor]] = []
        for level in range(bottleneck.levels):
            at = [torch.full((len(b.images),), level, dtype=torch.int64, device=b.images.device) for b in taken]
            found = [bottleneck.encode(problem.normalize(b.images), a) for b, a in zip(taken, at, strict=True)]
            together = torch.cat(found)
            bottleneck.mean[level] = together.mean((0, 2, 3))
            bottleneck.deviation[level] = together.std((0, 2, 3)).clamp_min(0.05)
            symbols.append([bottleneck.scaled(s, a) for s, a in zip(found, at, strict=True)])
        targets = [bottleneck.grid.to_grid(batch.features) for batch in taken]
        _solve(bottleneck.decoder, symbols, targets)

    def stages(self, bottleneck: FurtherBottleneck, problem: Problem, settings: FurtherSettings) -> list[Stage]:
        """See :class:`Preset`."""

        def code(batch: Batch) -> Coded:
            level = batch.levels(bottleneck.levels)
            with torch.no_grad(), without_autocast(level.device):  # the symbols that a board will send
                symbols = bottleneck.encode(problem.normalize(batch.images), level)
            features = bottleneck.decode(symbols, level)
            return Coded(features, torch.zeros(len(features), device=features.device), level)

        linear = list(bottleneck.decoder.linear.parameters())
        tuned = [] if bottleneck.tail is None else list(bottleneck.tail.parameters())
        known = {id(p) for p in (*linear, *tuned)}
        groups = [Group([p for p in bottleneck.parameters() if id(p) not in known]), Group(linear, LINEAR_SPEED)]
        objective = Objective(code, problem, [1.0] * bottleneck.levels)  # the symbols are there: no rate to weigh
        tuning = TUNING_SHARE if settings.tune_tail else 0.0
        first = FIRST_STAGE_SHARE * (1 - tuning)
        stages = [
            Stage("features", first, groups, objective.match_features),
            Stage("outputs", 1 - tuning - first, groups, objective.match_outputs),
        ]
        if tuning:
            decoder = [bottleneck.decoder, bottleneck.grid]
            stages.append(tuning_stage(bottleneck, problem, decoder, Answers(), Optimizer(), share=tuning))
        return stages


def _solve(decoder: Decoder, symbols: list[list[Tensor]], targets: list[Tensor]) -> None:
    """Sets the linear path to the ridge regression of ``targets`` ``[N, C, H, W]`` on ``symbols``, by level and batch."""
    inner: Tensor | None = None
    outer: Tensor | None = None
    for level in symbols:
        for one, target in zip(level, targets, strict=True):
            source = _with_one(F.unfold(one, decoder.down, stride=decoder.down).double())
            rows, columns = one.shape[2] // decoder.down * decoder.up, one.shape[3] // decoder.down * decoder.up
            wanted = F.unfold(_resized(target, rows, columns), decoder.up, stride=decoder.up).double()
            inner = _plus(inner, torch.einsum("nal,nbl->ab", source, source))
            outer = _plus(outer, torch.einsum("nal,nbl->ab", source, wanted))
    assert inner is not None
    assert outer is not None
    inner = inner + RIDGE * inner[-1, -1] * torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
    solved = torch.linalg.solve(inner, outer).T.float()  # [C * up * up, latent * down * down + 1]
    weight, bias = decoder.linear.weight, decoder.linear.bias
    assert bias is not None
    weight.copy_(solved[:, :-1].reshape(weight.shape))
    bias.copy_(solved[:, -1])


def _resized(target: Tensor, rows: int, columns: int) -> Tensor:
    """``[N, C, H, W]`` as ``[N, C, rows, columns]``; what the decoder's ``fit_size`` undoes."""
    more = rows - target.shape[2], columns - target.shape[3]
    if min(more) < 0:
        return F.interpolate(target, (rows, columns), mode="nearest")
    return F.pad(target, (0, more[1], 0, more[0]), mode="replicate") if max(more) else target


def _with_one(patches: Tensor) -> Tensor:
    """``[N, A, L]`` with a row of ones below."""
    return torch.cat([patches, torch.ones_like(patches[:, :1])], 1)


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total + more


class FurtherJob:
    """One further tail of a job whose bottleneck is trained.

    Attributes:
        name: the tail's.
        teacher, problem, task: its network, what its decoder is for, and what its outputs are.
        bottleneck: the frozen encoder with the decoder; there, and trained, after :meth:`train`.

    Raises:
        BottleneckError: the first tail's symbols are no numbers to calculate with.
    """

    def __init__(self, job: Job, settings: TailSettings) -> None:
        recipe = job.recipe
        self.job = job
        self.name = settings.name
        self.settings = settings
        job.progress.note(f"tracing {settings.model} for the tail {settings.name!r}")
        self.teacher = load_teacher(
            settings.model, weights=settings.weights, options=settings.options, folder=Path(recipe.folder),
            part=settings.part,
        )  # fmt: skip
        traced = trace(self.teacher, recipe.input.size)
        cut = find_cut(traced, settings.at or recipe.cut.at)
        self.task = task_of(self.teacher, settings.task, recipe.input.size, f"[[tails]] {settings.name!r}: task")
        self.problem = Problem(traced, cut, recipe.input, resolve_device(recipe.train.device), self.task)
        self._own = FurtherSettings(decoder_width=settings.decoder_width, tune_tail=settings.tune_tail)
        self._bottleneck: FurtherBottleneck | None = None
        if not job.bottleneck.ordered:
            raise BottleneckError(
                f"the preset {job.preset.name!r} sends indices into a codebook, from which no further tail can be made: "
                "use another preset, or no [[tails]]"
            )
        self.teacher_digest = digest_of_network(self.teacher, traced, settings.options)

    @property
    def bottleneck(self) -> FurtherBottleneck:
        """See the class."""
        assert self._bottleneck is not None
        return self._bottleneck

    def train(self, run: Path | None = None) -> None:
        """Trains the decoder, or takes it from a finished run.

        The job is settled first, so that symbols are as boards send them.

        Args:
            run: an earlier run's folder: where it has this tail, training goes on from that.
        """
        job, recipe = self.job, self.job.recipe
        job.settle()
        job.bottleneck.to(self.problem.device)
        self._bottleneck = FurtherBottleneck(job.bottleneck, self.problem, self._own)
        schedule = msgspec.structs.replace(
            recipe.train, images=self.settings.images or max(1, recipe.train.images // 2)
        )
        data = TrainingData(job.prepared, job.data.indices, self.problem, schedule.seed, flips=schedule.flips)
        data.cache_features(job.cache, self.teacher_digest, schedule.cache_gigabytes * 1e9, job.progress)
        job.progress.note(f"the tail {self.name!r}")
        file = f"tail-{self.name}-{self._digest()}.pt"
        before = run / file if run is not None and run != job.folder and (run / file).exists() else None
        train(
            self.bottleneck, FurtherTail(), self.problem, self._own, data, schedule, job.folder / file, job.progress,
            start=before,
        )  # fmt: skip
        self.settle()  # the head's trunk is the teacher's own layers, and the next step runs the teacher on the CPU

    def _digest(self) -> str:
        """Names what the trained decoder depends on, beside the job."""
        encoder = digest_of_state(self.bottleneck.encoder_state())
        settings: dict[str, Any] = msgspec.to_builtins(self.settings)
        parts = [narrowcast.__version__, self.teacher_digest, encoder, settings]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    def settle(self) -> None:
        """Everything to the CPU, for export."""
        self.job.bottleneck.cpu()
        self.bottleneck.cpu()
        self.problem.after.cpu()
        self.problem.normalize.cpu()
        self.teacher.cpu()

    @torch.no_grad()
    def example(self) -> Any:
        """The teacher's outputs for one image."""
        frames = torch.from_numpy(np.ascontiguousarray(self.job.frames(self.job.held[:1])))
        return self.teacher(self.problem.normalize(frames))
