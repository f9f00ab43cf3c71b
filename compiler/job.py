"""One compilation: the loaded teacher, its cut, the images and the trained bottleneck, for whatever is made of them.

Everything slow is kept in a work folder: a run that was killed goes on where it was, and a second run with the same
recipe only does again what changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric import Fabric
from torch import nn

import narrowcast
from narrowcast.compiler.allocator import keep_freed_memory
from narrowcast.compiler.bottlenecks import PRESETS, Bottleneck, Problem, Stage
from narrowcast.compiler.bottlenecks.tail import class_scores
from narrowcast.compiler.cost import count_macs
from narrowcast.compiler.cuts import Cut, find_cut
from narrowcast.compiler.cuts.trace import Traced, trace
from narrowcast.compiler.data import (
    PreparedImages,
    TrainingData,
    choose,
    find_sources,
    prepare_images,
    split_holdout,
)
from narrowcast.compiler.digests import digest_of_network, digest_of_state
from narrowcast.compiler.evaluate import CHUNK
from narrowcast.compiler.exit import check_exit
from narrowcast.compiler.fabric import resolve_device, resolve_precision
from narrowcast.compiler.free_sizes import check_bottleneck, codec_grid, free_outputs
from narrowcast.compiler.labels import labels_of
from narrowcast.compiler.modules import Head
from narrowcast.compiler.nesting import flat
from narrowcast.compiler.planner.choice import AUTO, choose_cut, with_cut
from narrowcast.compiler.planner.trunk import resolve_trunk
from narrowcast.compiler.progress import SILENT, Progress, list_skipped
from narrowcast.compiler.recipe import Recipe
from narrowcast.compiler.scalars import NoScalars, TensorBoard, writer_class
from narrowcast.compiler.streaming import StreamedImages
from narrowcast.compiler.tasks import output_specs, task_of
from narrowcast.compiler.teacher import load_teacher
from narrowcast.compiler.training import is_finished, train
from narrowcast.compiler.turns import alone_in
from narrowcast.compiler.video.clips import check_recorded
from narrowcast.compiler.workers import train_in_workers
from narrowcast.devices.targets import load_target
from narrowcast.transport.bundle import Manifest, OutputSpec
from narrowcast.transport.codec import CodecSpec
from narrowcast.transport.files import forget_partials, replacing

# Keys of [train] that say where and how a run is done, not what comes out (``precision`` is looked at by what it comes to).
ELSEWHERE = {"cache_gigabytes", "device", "devices", "precision", "tensorboard"}
TARGETS_PAY = 1.5  # times that a stage sees an image: computing what it wants of all images beforehand is once
CHECKPOINT = "checkpoint.pt"
BUNDLES = "bundles"


class Job:
    """One compilation; the steps share the loaded teacher and the data.

    Attributes:
        recipe: what to do; with the planner's cut and trunk in place of ``auto``.
        plan: what those were chosen by; empty where the recipe names both.
        cache: where images and features are kept, for all runs.
        folder: of this run: checkpoints and drafts.
        teacher, cut, problem: the user's network, where it is cut, and what a bottleneck must be built for.
        prepared, data, held: all images, those to learn from, and the numbers of those that are held out.
        bottleneck: made by ``preset``; trained after :meth:`train`.

    Args:
        recipe: what to do.
        work: the work folder.
        progress: told where it is.
        device: where to train; None takes the recipe's.
        like: a job with the same teacher, input and seed, whose loaded network is taken.
        start: a finished run's folder, whose weights training starts from instead of a calibration.
    """

    def __init__(
        self,
        recipe: Recipe,
        work: Path,
        progress: Progress,
        *,
        device: torch.device | None = None,
        like: Job | None = None,
        start: Path | None = None,
    ) -> None:
        self.recipe = recipe
        self.progress = progress
        self.work = work
        if recipe.train.tensorboard:
            writer_class()  # or it would be missing after an hour of preparations
        if recipe.data.video is not None:
            check_recorded(Path(recipe.folder) / recipe.data.video, recipe.input)  # likewise
        self.device = device or resolve_device(recipe.train.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.cache = work / "cache"
        for place in (self.cache, *work.glob(f"{recipe.name}-*/")):
            forget_partials(place)
        folder = Path(recipe.folder)
        self.targets = [load_target(name) for name in recipe.export.targets]
        self.start = start
        self.teacher: nn.Module
        self.traced: Traced
        torch.manual_seed(recipe.train.seed)
        known = None
        if like is not None:
            like.teacher.cpu()  # where it was before that job trained; one that failed has left it on a GPU
            like.traced.module.cpu()
            known = like.teacher, like.traced
        self.teacher, self.traced = known or self._load_teacher(folder)
        # As it is behind a teacher's random first weights: a run comes out the same whether or not it shares the teacher.
        self.random: torch.Tensor = torch.get_rng_state() if like is None else like.random
        self.teacher_digest = digest_of_network(self.teacher, self.traced, recipe.teacher.options)
        self._training_macs: int | None = None
        self.task = task_of(self.teacher, recipe.task, recipe.input.size, "[task]")
        # Looked at before anything is prepared or trained: whether its outputs are for images of any size.
        free = recipe.input.free
        self._free_outputs = None if free is None else free_outputs(self.teacher, self.traced, free)
        self.prepared: PreparedImages = self._prepare(folder)
        seen, held = split_holdout(len(self.prepared), recipe.data.holdout, recipe.train.seed)
        self.held = held
        self.plan: dict[str, Any] = {}
        self.cut, self.problem = self._cut(self.traced, seen)
        recipe = self.recipe = self._with_trunk()
        labels, schedule = self._labels(folder), recipe.train
        self.data = TrainingData(self.prepared, seen, self.problem, schedule.seed, labels, schedule.flips)
        self.preset = PRESETS[msgspec.to_builtins(recipe.bottleneck)["preset"]]
        torch.set_rng_state(self.random)
        self.bottleneck: Bottleneck = self.preset.build(self.problem, recipe.bottleneck)
        if recipe.input.free is not None:
            check_bottleneck(self.bottleneck, self.problem)
        self.folder = work / f"{recipe.name}-{self._run_digest()}"
        if recipe.exit is not None:
            check_exit(self)

    def _load_teacher(self, folder: Path) -> tuple[nn.Module, Traced]:
        named = self.recipe.teacher
        teacher = load_teacher(
            named.model, weights=named.weights, options=named.options, folder=folder, part=named.part
        )
        self.progress.note(f"tracing {named.model}")
        contract = self.recipe.input
        return teacher, trace(teacher, contract.size, None if contract.free is None else contract.free.multiple)

    def _prepare(self, folder: Path) -> PreparedImages:
        recipe, progress = self.recipe, self.progress
        sources, problems = find_sources(recipe.data.train, folder)
        chosen = choose(sources, recipe.data.limit, recipe.train.seed)
        limit = recipe.train.cache_gigabytes * 1e9
        prepared = prepare_images(chosen, recipe.input, self.cache, progress, limit)
        headline = f"{len(prepared.skipped)} of {len(chosen)} images cannot be read"
        headline += f", nor the whole of {len(problems)} shards" if problems else ""
        path = self.cache / f"skipped-{prepared.digest}.txt"
        list_skipped(progress, headline, [*problems, *prepared.skipped], path)
        if isinstance(prepared.images, StreamedImages):
            progress.note(
                f"{len(prepared)} images take more than [train] cache_gigabytes = {recipe.train.cache_gigabytes:g}: "
                "each is decoded when it is needed"
            )
        return prepared

    def _cut(self, traced: Traced, seen: npt.NDArray[np.int64]) -> tuple[Cut, Problem]:
        """The recipe's cut, or the planner's where that is ``auto``."""
        recipe = self.recipe
        if recipe.cut.at == AUTO:
            rows = np.random.default_rng(recipe.train.seed).permutation(seen)[: recipe.plan.images]
            digest = f"{self.teacher_digest} {self.prepared.digest} {recipe.data.holdout} {recipe.train.seed}"
            frames = self.frames(np.sort(rows))
            self.plan = choose_cut(recipe, self.teacher, traced, frames, digest, self.cache, self.progress, self.task)
            self.recipe = with_cut(recipe, self.plan["cut"])
        cut = find_cut(traced, self.recipe.cut.at)
        return cut, Problem(traced, cut, recipe.input, self.device, self.task)

    def _with_trunk(self) -> Recipe:
        """The recipe with ``trunk = "auto"`` decided."""
        recipe = self.recipe
        bottleneck, choice = resolve_trunk(
            self.problem, recipe.bottleneck, recipe.plan.threads, self.cache, self.progress
        )
        if choice is not None:
            self.plan["trunk"] = choice.as_dict()
        return msgspec.structs.replace(recipe, bottleneck=bottleneck)

    @torch.no_grad()
    def _labels(self, folder: Path) -> npt.NDArray[np.int64] | None:
        """The class of every image, where the recipe gives labels a weight."""
        if not getattr(self.recipe.bottleneck, "label_weight", 0):
            return None
        image = torch.from_numpy(self.frames(np.arange(1))).to(self.problem.device)
        classes = class_scores(self.problem.after(self.problem.before(self.problem.normalize(image)))).shape[1]
        return labels_of(self.prepared.sources, folder / self.recipe.data.train, classes)

    def _run_digest(self) -> str:
        """Names what the trained bottleneck depends on."""
        parts = {
            "tool": narrowcast.__version__,
            "teacher": self.teacher_digest,
            "images": self.prepared.digest,
            "holdout": self.recipe.data.holdout,
            "cut": self.cut.name,
            "input": msgspec.to_builtins(self.recipe.input),
            "bottleneck": msgspec.to_builtins(self.recipe.bottleneck),
            "train": {k: v for k, v in msgspec.to_builtins(self.recipe.train).items() if k not in ELSEWHERE},
        }
        precision = resolve_precision(self.recipe.train.precision, self.device)
        if precision != "fp32":
            parts["precision"] = precision
        if self.start is not None:
            parts["start"] = self.start.name
        if self.data.labels is not None:
            parts["labels"] = hashlib.sha256(self.data.labels.tobytes()).hexdigest()
        if self.task is not None:
            parts["task"] = msgspec.to_builtins(self.task)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    def train(self) -> None:
        """Trains the bottleneck on the recipe's devices, or takes it from a finished run."""
        stages = self.preset.stages(self.bottleneck, self.problem, self.recipe.bottleneck)
        with alone_in(self.folder, self.progress):
            if stages and self.recipe.train.devices > 1 and not is_finished(self.checkpoint, len(stages)):
                self._cache(stages, self.progress)  # once, not in every process
                train_in_workers(self.recipe, self.work, self.device, self.progress, self.start)
                self.train_here(None, SILENT)  # takes what they have trained
            else:
                self.train_here(None, self.progress)

    def train_here(self, fabric: Fabric | None, progress: Progress) -> None:
        """Trains the bottleneck in this process, one of ``fabric``'s where it is given."""
        self.folder.mkdir(parents=True, exist_ok=True)
        stages = self.preset.stages(self.bottleneck, self.problem, self.recipe.bottleneck)
        if stages:
            self._cache([] if is_finished(self.checkpoint, len(stages)) else stages, progress)
        first = fabric is None or fabric.global_rank == 0
        scalars = TensorBoard(self.folder / "tensorboard") if first and self.recipe.train.tensorboard else NoScalars()
        try:
            train(
                self.bottleneck, self.preset, self.problem, self.recipe.bottleneck, self.data, self.recipe.train,
                self.checkpoint, progress, fabric, scalars, None if self.start is None else self.start / CHECKPOINT,
            )  # fmt: skip
        finally:
            scalars.close()

    @property
    def checkpoint(self) -> Path:
        """Where training keeps its state."""
        return self.folder / CHECKPOINT

    def _cache(self, stages: Sequence[Stage], progress: Progress) -> None:
        """Keeps what the teacher makes of all images: at the cut, and on a CPU behind it where ``stages`` ask often."""
        limit = self.recipe.train.cache_gigabytes * 1e9
        self.data.cache_features(self.cache, self.teacher_digest, limit, progress)
        for stage in stages:
            seen = stage.share * self.recipe.train.images
            often = self.device.type == "cpu" and seen > TARGETS_PAY * len(self.data.views)
            if stage.targets is not None and often:
                self.data.cache_targets(stage.name, stage.targets, self.cache, self.teacher_digest, limit, progress)

    def settle(self) -> int:
        """Ends training: everything to the CPU, and what only training needs folded away.

        May be called again, and does nothing then.

        Returns:
            the multiply-accumulates that the head took until then; fewer, where channels are cut out.
        """
        if self._training_macs is not None:
            return self._training_macs
        self.bottleneck.cpu()
        self.problem.after.cpu()
        self.problem.normalize.cpu()
        self.teacher.cpu()
        head = Head(self.problem.normalize, self.bottleneck).eval()
        macs = count_macs(head, torch.from_numpy(self.frames(self.held[:1])), torch.zeros(1, dtype=torch.int64))
        self.bottleneck.fold()
        self._training_macs = macs
        return macs

    def frames(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The images numbered ``rows``, uint8 ``[N, H, W, 3]``."""
        return np.ascontiguousarray(self.prepared.images[rows])

    @torch.no_grad()
    def outputs(self) -> list[OutputSpec]:
        """What the teacher gives for one image."""
        if self._free_outputs is not None:
            return self._free_outputs
        return output_specs(self.teacher(self.problem.normalize(torch.from_numpy(self.frames(self.held[:1])))))

    def spec(self) -> CodecSpec:
        """How the bottleneck's symbols are to be coded; its tables are not fitted yet."""
        net = self.bottleneck
        shape, step = codec_grid(net.shape, self.recipe.input)
        return CodecSpec(
            name=net.codec, shape=shape, alphabet=net.alphabet, levels=net.levels,
            quantizer=digest_of_state(net.encoder_state()), step=step,
        )  # fmt: skip

    @torch.no_grad()
    def teacher_outputs(self, frames: npt.NDArray[np.uint8], names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """The teacher's outputs by name."""
        chunks = [torch.from_numpy(frames[start : start + CHUNK]) for start in range(0, len(frames), CHUNK)]
        found = [flat(self.teacher(self.problem.normalize(chunk))) for chunk in chunks]
        return {name: torch.cat(parts).numpy() for name, parts in zip(names, zip(*found, strict=True), strict=True)}


def remember(folder: Path, manifest: Manifest) -> None:
    """Notes beside a run's checkpoint which bundle was made of it."""
    file, line = folder / BUNDLES, _traces(manifest)
    with alone_in(folder):
        known = file.read_text().splitlines() if file.exists() else []
        if line not in known:
            with replacing(file) as out:  # a kill must not lose the lines of bundles that are out
                out.write(("\n".join([*known, line]) + "\n").encode())


def run_of(work: Path, manifest: Manifest) -> Path | None:
    """The folder of the run that a bundle was made of; None where it is not in ``work``."""
    for file in sorted(work.glob(f"*/{BUNDLES}")):
        if _traces(manifest) in file.read_text().splitlines() and (file.parent / CHECKPOINT).is_file():
            return file.parent
    return None


def _traces(manifest: Manifest) -> str:
    """What a run leaves in its bundles: codec and tail, since a retuned bundle has its codec in common with the first."""
    tail = manifest.find("tail")
    return f"{manifest.fingerprint} {tail.sha256 if tail else ''}"
