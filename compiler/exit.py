"""The local exit: a small classifier on the head's symbols, for when there is no link.

It is distilled from the teacher's outputs after the bottleneck is trained, and learns from the symbols that the frozen
encoder gives at every level, so it changes neither encoder nor tables nor codec fingerprint. On the device it runs behind
the head, on what would have been sent. Source of the idea: BranchyNet (Teerapittayanon et al., ICPR 2016), whose side
branches answer early; here one answers where no other answer is to be had.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from narrowcast.compiler.cost import count_macs
from narrowcast.compiler.digests import digest_of_state
from narrowcast.compiler.errors import ExitError, VerificationError
from narrowcast.compiler.modules import flat, output_names
from narrowcast.compiler.progress import Progress
from narrowcast.compiler.training import must_be_finite
from narrowcast.compiler.verify import MAX_OUTPUT_DIFFERENCE, OnnxNetwork, largest_difference
from narrowcast.compiler.ways import top_class
from narrowcast.head.backends import load_exit
from narrowcast.transport.files import replacing

if TYPE_CHECKING:
    from narrowcast.compiler.job import Job
    from narrowcast.compiler.recipe import ExitSettings

# Maps are halved until neither side is larger: what is left is averaged.
LEAST_SIDE = 4
CODING_BATCH = 32
MEMORY_BYTES = 2_000_000_000
BATCH = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
DROPOUT = 0.2
VECTOR = 8  # numbers that an index becomes
ADVICE = (
    "check that the teacher's scores are finite on every image, and [input] range, mean and std; "
    "without [exit] the bundle is made with what is trained"
)
TIMED_RUNS = 25


class ExitNetwork(nn.Module):
    """Symbols uint8 ``[N, C, h, w]`` and ``level`` int64 ``[N]`` to class scores float32 ``[N, classes]``.

    A learned scale and offset per level and channel bring the symbols of all levels to one range (the steps that they were
    quantized with); where symbols are indices (of ``words``), each has a learned vector. Then 3x3 convolutions with skips,
    at twice the width whenever the map is halved; mean and maximum of what is left of the map; one matrix product.
    (``docs/local-answers.md`` says what else was tried.)
    """

    first: Tensor

    def __init__(
        self, shape: tuple[int, int, int], levels: int, classes: int, width: int, words: int | None = None
    ) -> None:
        super().__init__()
        channels, height, side = shape
        self.vectors = None
        if words is not None:
            self.vectors = nn.Embedding(channels * words, VECTOR)
            first = torch.arange(channels)[:, None, None] * words
            self.register_buffer("first", first, persistent=False)  # of each channel's vectors
            channels *= VECTOR
        self.scale = nn.Parameter(torch.ones(levels, channels))
        self.offset = nn.Parameter(torch.zeros(levels, channels))
        layers: list[nn.Module] = [_convolution(channels, width, 1), _Residual(width)]
        while max(height, side) > LEAST_SIDE:
            height, side = math.ceil(height / 2), math.ceil(side / 2)
            layers += [_convolution(width, 2 * width, 2), _Residual(2 * width)]
            width *= 2
        self.layers = nn.Sequential(*layers)
        # Over all of the map, and spelt so that ONNX gets poolings: its reductions have changed with the opsets.
        self.mean, self.most = nn.AvgPool2d((height, side)), nn.MaxPool2d((height, side))
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(2 * width, classes)

    @torch.no_grad()
    def start_from(self, symbols: Tensor, level: Tensor) -> None:
        """Starts scale and offset such that the symbols of every level and channel have mean 0 and deviation 1."""
        if self.vectors is not None:
            return
        for number in range(len(self.scale)):
            seen = symbols[level == number].float()
            if len(seen):
                mean, deviation = seen.mean((0, 2, 3)), seen.std((0, 2, 3)).clamp_min(0.1)
                self.scale[number] = 1 / deviation
                self.offset[number] = -mean / deviation

    def forward(self, symbols: Tensor, level: Tensor | None = None) -> Tensor:
        """See the class."""
        if level is None:
            level = torch.zeros(symbols.shape[0], dtype=torch.int64, device=symbols.device)
        scale, offset = (table.index_select(0, level)[:, :, None, None] for table in (self.scale, self.offset))
        features = self.layers(self._values(symbols) * scale + offset)
        pooled = torch.cat([self.mean(features), self.most(features)], 1).flatten(1)
        scores: Tensor = self.classifier(self.dropout(pooled))
        return scores

    def _values(self, symbols: Tensor) -> Tensor:
        """Float32 ``[N, C, h, w]``; of indices the vectors, ``[N, C * VECTOR, h, w]``."""
        if self.vectors is None:
            return symbols.float()
        vectors: Tensor = self.vectors(symbols.long() + self.first)
        return vectors.permute(0, 1, 4, 2, 3).flatten(1, 2)


class _Residual(nn.Module):
    """Two 3x3 convolutions and a skip around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width, 1)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.second(self.first(x))))


def _convolution(source: int, target: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(source, target, 3, stride, 1, bias=False), nn.BatchNorm2d(target), nn.ReLU())


class Coded(NamedTuple):
    """What an exit learns from.

    Attributes:
        symbols: uint8 ``[N, C, h, w]``.
        level: int64 ``[N]``.
        scores: the teacher's, float32 ``[N, classes]``.
    """

    symbols: Tensor
    level: Tensor
    scores: Tensor


@torch.no_grad()
def check_exit(job: Job) -> None:
    """Returns if the teacher's outputs are what an exit can give: class scores, and nothing else.

    Raises:
        ExitError: they are others.
    """
    images = torch.from_numpy(job.frames(job.held[:1])).to(job.problem.device)
    problem = job.problem
    result = problem.after(problem.before(problem.normalize(images)))
    outputs = flat(result)
    if len(outputs) == 1 and outputs[0].ndim == 2 and outputs[0].shape[1] > 1 and outputs[0].is_floating_point():
        return
    seen = ", ".join(f"{name} {list(t.shape[1:])}" for name, t in zip(output_names(result), outputs, strict=True))
    raise ExitError(
        f"[exit] wants a network whose one output is class scores; {job.recipe.teacher.model} gives {seen}. "
        "Leave [exit] out; [export] whole = true puts the uncut network into the bundle, which a board can run alone"
    )


def train_exit(job: Job, settings: ExitSettings) -> ExitNetwork:
    """Distils an exit from the teacher, or takes it from a finished run in the job's folder.

    Training must be over and the bottleneck folded (:meth:`~narrowcast.compiler.job.Job.settle`): folding may drop channels.

    Raises:
        TrainingError: the loss or its gradient is no number.
    """
    file = job.folder / f"exit-{_digest(job, settings)}.pt"
    net, classes = job.bottleneck, job.outputs()[0].shape[0]
    torch.manual_seed(job.recipe.train.seed)
    network = ExitNetwork(net.shape, net.levels, classes, settings.width, None if net.ordered else net.alphabet)
    if file.exists():
        try:
            network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
            return network.eval()
        except Exception as error:  # noqa: BLE001  (torch's, pickle's or zipfile's; it is trained again)
            job.progress.note(f"{file} cannot be read ({error}): the local exit is trained anew")
    with _on_device(job):
        coded = _code(job, settings)
        network.to(job.problem.device).start_from(coded.symbols, coded.level)
        _fit(network, coded, settings, job.recipe.train.seed, job.progress)
    network.cpu()
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    with replacing(file) as out:
        out.write(buffer.getbuffer())
    return network.eval()


@contextlib.contextmanager
def _on_device(job: Job) -> Iterator[None]:
    """Inside, teacher and bottleneck are where the recipe trains; they share weights, so they go together."""
    moved = [job.bottleneck, job.problem.before, job.problem.after, job.problem.normalize]
    for module in moved:
        module.to(job.problem.device)
    try:
        yield
    finally:
        for module in (*moved, job.teacher):
            module.cpu()


def _digest(job: Job, settings: ExitSettings) -> str:
    """Names what a trained exit depends on beside the run: a run that is trained anew may come to another encoder."""
    parts = [digest_of_state(job.bottleneck.encoder_state()), msgspec.to_builtins(settings)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]


@torch.no_grad()
def _code(job: Job, settings: ExitSettings) -> Coded:
    """Training images at levels drawn at random, as symbols, with what the teacher says to them."""
    net, problem = job.bottleneck.eval(), job.problem
    room = max(CODING_BATCH, MEMORY_BYTES // math.prod(net.shape))
    if room < settings.images:
        job.progress.note(
            f"the local exit learns from {room} images: more symbols do not fit into {MEMORY_BYTES} bytes"
        )
    steps = math.ceil(min(settings.images, room) / CODING_BATCH)
    parts: list[Coded] = []
    with job.progress.task("coding for the local exit", steps * CODING_BATCH, "images") as task:
        for step in range(steps):
            batch = job.data.batch(step, CODING_BATCH)
            level = batch.levels(net.levels)
            symbols = net.encode(problem.normalize(batch.images), level).to(torch.uint8)
            parts.append(Coded(symbols, level, flat(problem.after(batch.features))[0].float()))
            task.advance(CODING_BATCH)
    return Coded(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _fit(network: ExitNetwork, coded: Coded, settings: ExitSettings, seed: int, progress: Progress) -> None:
    """Kullback-Leibler divergence from the teacher's probabilities, over some passes."""
    decayed = [p for p in network.parameters() if p.ndim > 1 and p is not network.scale and p is not network.offset]
    others = [p for p in network.parameters() if not any(p is one for one in decayed)]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    size = min(BATCH, len(coded.level))
    steps = settings.passes * (len(coded.level) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=max(2, steps))
    generator = torch.Generator().manual_seed(seed)
    network.train()
    with progress.task("training: local exit", steps * size, "images") as task:
        for _ in range(settings.passes):
            order = torch.randperm(len(coded.level), generator=generator).to(coded.level.device)
            for start in range(0, len(order) - size + 1, size):
                rows = order[start : start + size]
                got = F.log_softmax(network(coded.symbols[rows], coded.level[rows]), 1)
                loss = F.kl_div(got, F.log_softmax(coded.scores[rows], 1), reduction="batchmean", log_target=True)
                where = f"step {schedule.last_epoch} of {steps} (the bottleneck's training is over, and kept)"
                must_be_finite("loss of the local exit", loss.detach(), where, ADVICE)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                norm = torch.nn.utils.get_total_norm(p.grad for p in network.parameters() if p.grad is not None)
                must_be_finite("gradient's norm of the local exit", norm, where, ADVICE)
                optimizer.step()
                schedule.step()
                task.advance(size, {"divergence": loss.item()})


def verify_exit(network: ExitNetwork, model: bytes, symbols: Sequence[npt.NDArray[np.uint8]]) -> None:
    """Compares torch with ONNX Runtime on symbols uint8 ``[N, C, h, w]`` of each level.

    Raises:
        VerificationError: an output is too far off.
    """
    exported = OnnxNetwork(model)
    for number, of_level in enumerate(symbols):
        level = np.full(1, number, np.int64)
        for one in of_level:
            with torch.no_grad():
                wanted = network(torch.from_numpy(one[None]), torch.from_numpy(level)).numpy()
            (got,) = exported(symbols=one[None], level=level).values()
            apart = largest_difference(got, wanted)
            if not apart <= MAX_OUTPUT_DIFFERENCE:
                raise VerificationError(
                    f"level {number}: the exported local exit is {apart:.2g} of its largest value off; "
                    f"{MAX_OUTPUT_DIFFERENCE} is allowed"
                )


def exit_figures(
    network: ExitNetwork,
    model: bytes,
    symbols: Sequence[npt.NDArray[np.uint8]],
    teacher: dict[str, npt.NDArray[Any]],
) -> dict[str, Any]:
    """For the manifest: what the exit costs, and how often it agrees with the teacher.

    Args:
        network: the exit.
        model: the same as ONNX.
        symbols: by level, of held-out frames, uint8 ``[N, C, h, w]``.
        teacher: its outputs on the same frames.
    """
    exported, wanted = OnnxNetwork(model), top_class(teacher)
    levels = []
    for number, of_level in enumerate(symbols):
        level = np.full(1, number, np.int64)
        scores = np.concatenate([next(iter(exported(symbols=s[None], level=level).values())) for s in of_level])
        levels.append({"level": number, "agreement": float((scores.argmax(1) == wanted).mean())})
    one, level_one = torch.from_numpy(symbols[-1][:1]), torch.zeros(1, dtype=torch.int64)
    runs, name = _times(model, symbols[-1][0], len(symbols) - 1)
    return {
        "macs": count_macs(network, one, level_one),
        "parameters": sum(p.numel() for p in network.parameters()),
        "ms": round(float(np.median(runs)), 3),
        "ms_with": name,
        "levels": levels,
    }


def _times(model: bytes, symbols: npt.NDArray[np.uint8], level: int) -> tuple[list[float], str]:
    """Milliseconds of one frame, run after run, after a few to warm up; and what ran it."""
    loaded, runs = load_exit("onnxruntime", model, threads=0), []
    for _ in range(TIMED_RUNS):
        before = perf_counter_ns()
        loaded.run(symbols, level)
        runs.append((perf_counter_ns() - before) / 1e6)
    return runs[TIMED_RUNS // 5 :], loaded.name
