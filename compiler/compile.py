"""From a recipe to a signed bundle: load, cut, train, fit tables, export, verify, measure, sign.

Everything slow is kept in a work folder: a run that was killed goes on where it was, and a second run with the same
recipe only does again what changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

import narrowcast
from narrowcast.compiler.bottlenecks import PRESETS, Bottleneck, Problem
from narrowcast.compiler.codec import collect_symbols, fit_codec
from narrowcast.compiler.cost import count_macs
from narrowcast.compiler.cuts import Cut, find_cut
from narrowcast.compiler.cuts.trace import trace
from narrowcast.compiler.data import (
    PreparedImages,
    TrainingData,
    choose,
    find_images,
    prepare_images,
    split_holdout,
)
from narrowcast.compiler.errors import CompilerError
from narrowcast.compiler.evaluate import CHUNK, Evaluation, evaluate_frames
from narrowcast.compiler.export import export_head, export_tail, export_whole
from narrowcast.compiler.heads import Trial, head_times, make_heads, make_self_check, too_lossy, try_heads
from narrowcast.compiler.modules import Head, Tail, Whole, flat, output_names
from narrowcast.compiler.operators import check_operators
from narrowcast.compiler.progress import SILENT, Progress
from narrowcast.compiler.recipe import Recipe, load_recipe
from narrowcast.compiler.teacher import load_teacher
from narrowcast.compiler.training import train
from narrowcast.compiler.verify import Verified, verify
from narrowcast.devices.targets import load_target
from narrowcast.transport.bundle import Bundle, Manifest, OutputSpec, Part, SecretKey, describe_part, write_bundle
from narrowcast.transport.bundle.manifest import Precision
from narrowcast.transport.codec import Codec, CodecSpec, open_codec
from narrowcast.transport.structs import to_json

VERIFY_FRAMES = 8
FIGURE_FRAMES = 256


@dataclass(frozen=True)
class Compiled:
    """What a compilation gave.

    Attributes:
        bundle: the file.
        manifest: what is in it.
        work: the folder with caches and checkpoints; may be deleted.
        verified: how close the exported networks are to the trained ones.
        skipped: images that could not be read.
    """

    bundle: Path
    manifest: Manifest
    work: Path
    verified: Verified
    skipped: Sequence[str]


def compile(  # noqa: A001  (the command line's verb)
    recipe: Recipe | str | Path,
    output: str | Path,
    *,
    key: SecretKey | None = None,
    work: str | Path = ".narrowcast",
    progress: Progress = SILENT,
) -> Compiled:
    """Compiles a recipe.

    Args:
        recipe: a recipe, or its file.
        output: where the bundle goes (``model.ncb``).
        key: signs the bundle; None leaves it unsigned.
        work: where images, features and checkpoints are kept between runs.
        progress: told where it is.

    Raises:
        ConfigError: the recipe cannot be.
        CompilerError: one of its subclasses, by what is wrong.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
    output, work = Path(output), Path(work)
    job = _Job(recipe, work, progress)
    job.train()
    return job.assemble(output, key)


class _Job:
    """One compilation; the steps share the loaded teacher and the data."""

    def __init__(self, recipe: Recipe, work: Path, progress: Progress) -> None:
        self.recipe = recipe
        self.progress = progress
        self.cache = work / "cache"
        folder = Path(recipe.folder)
        self.targets = [load_target(name) for name in recipe.export.targets]
        torch.manual_seed(recipe.train.seed)
        self.teacher = load_teacher(
            recipe.teacher.model, weights=recipe.teacher.weights, options=recipe.teacher.options, folder=folder
        )
        self.cut = self._find_cut()
        files = choose(find_images(folder / recipe.data.train), recipe.data.limit, recipe.train.seed)
        self.prepared: PreparedImages = prepare_images(files, recipe.input, self.cache, progress)
        if self.prepared.skipped:
            count, first = len(self.prepared.skipped), self.prepared.skipped[0]
            progress.note(f"{count} images skipped; the first: {first}")
        seen, held = split_holdout(len(self.prepared), recipe.data.holdout, recipe.train.seed)
        self.data = TrainingData(self.prepared, seen, self.problem, recipe.train.seed)
        self.held = held
        self.preset = PRESETS[msgspec.to_builtins(recipe.bottleneck)["preset"]]
        self.bottleneck: Bottleneck = self.preset.build(self.problem, recipe.bottleneck)
        # What the teacher computes, not its weights alone: its code may change under the same weights.
        described = f"{_digest(self.teacher.state_dict())}\n{self.problem.traced.module.code}\n{self.teacher}"
        self.teacher_digest = hashlib.sha256(described.encode()).hexdigest()
        self.folder = work / f"{recipe.name}-{self._run_digest()}"

    def _find_cut(self) -> Cut:
        recipe = self.recipe
        self.progress.note(f"tracing {recipe.teacher.model}")
        traced = trace(self.teacher, recipe.input.size)
        cut = find_cut(traced, recipe.cut.at)
        self.problem = Problem(traced, cut, recipe.input, _device(recipe.train.device))
        return cut

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
            "train": {k: v for k, v in msgspec.to_builtins(self.recipe.train).items() if k != "cache_gigabytes"},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]

    def train(self) -> None:
        """Trains the bottleneck, or takes it from a finished run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        schedule = self.recipe.train
        if self.preset.stages(self.bottleneck, self.problem, self.recipe.bottleneck):
            limit = schedule.cache_gigabytes * 1e9
            self.data.cache_features(self.cache, self.teacher_digest, limit, self.progress)
        train(
            self.bottleneck, self.preset, self.problem, self.recipe.bottleneck, self.data, schedule,
            self.folder / "checkpoint.pt", self.progress,
        )  # fmt: skip

    def assemble(self, output: Path, key: SecretKey | None) -> Compiled:
        """Exports, verifies, measures and writes the bundle."""
        self.bottleneck.cpu()
        self.problem.after.cpu()
        self.problem.normalize.cpu()
        self.bottleneck.fold()
        head = Head(self.problem.normalize, self.bottleneck).eval()
        tuned = self.bottleneck.tuned_tail()
        tail = Tail(self.bottleneck, self.problem.after if tuned is None else tuned).eval()
        specs = self._outputs()
        names = [spec.name for spec in specs]
        parts: dict[str, tuple[Part, bytes]] = {}

        def add(name: str, data: bytes, *args: Any, **kwargs: Any) -> None:
            parts[name] = describe_part(name, data, *args, **kwargs), data

        with self.progress.task("exporting", 3, "networks") as task:
            head_onnx = export_head(head, self.recipe.input.size, self.bottleneck.levels)
            task.advance(1)
            tail_onnx = export_tail(tail, self.bottleneck.shape, names)
            add("tail.fp32.onnx", tail_onnx, "tail", ["server"], precision="fp32")
            task.advance(1)
            if self.recipe.export.whole:
                whole = export_whole(Whole(self.problem.normalize, self.teacher), self.recipe.input.size, names)
                add("whole.fp32.onnx", whole, "whole", ["device", "server"], optional=True, precision="fp32")
            task.advance(1)
        verified = verify(
            head, tail, head_onnx, tail_onnx, self._frames(self.held[:VERIFY_FRAMES]), self.bottleneck.levels
        )
        heads, trials, left_out = self._heads(head_onnx, tail_onnx, names)
        for precision, model in heads.items():
            add(f"head.{precision}.onnx", model, "head", ["device"], precision=precision)
        unsupported = check_operators(heads, tail_onnx, self.targets, self.progress)
        spec, data = self._fit_codec(heads)
        if data:
            kind = "dictionary" if spec.name == "zstd" else "tables"
            add(kind, data, kind, ["device", "server"])
        codec = open_codec(spec, data)
        add("selfcheck.json", to_json(make_self_check(heads, codec, self.recipe.input.size)), "selfcheck", ["device"])
        manifest = self._manifest(spec, spec.fingerprint(data).hex(), specs, [part for part, _ in parts.values()])
        contents = {name: data for name, (_, data) in parts.items()}
        draft = self.folder / "draft.ncb"
        write_bundle(draft, manifest, contents, None)
        frame, level = torch.from_numpy(self._frames(self.held[:1])), torch.zeros(1, dtype=torch.int64)
        figures = {
            "teacher_macs": self.cut.macs_before + self.cut.macs_after,
            "head_macs": count_macs(head, frame, level),
            **self._figures(Bundle.open(draft, allow_unsigned=True), verified),
            **self._precision_figures(heads, trials, codec),
            "left_out": left_out,
            "unsupported": unsupported,
        }
        manifest = msgspec.structs.replace(manifest, figures=figures)
        write_bundle(output, manifest, contents, key)
        draft.unlink()
        return Compiled(output, manifest, self.folder, verified, self.prepared.skipped)

    def _frames(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(self.prepared.images[rows])

    @torch.no_grad()
    def _outputs(self) -> list[OutputSpec]:
        image = torch.from_numpy(self._frames(self.held[:1]))
        result = self.teacher.cpu()(self.problem.normalize.cpu()(image))
        return [
            OutputSpec(name=name, dtype=str(tensor.numpy().dtype), shape=list(tensor.shape[1:]))
            for name, tensor in zip(output_names(result), flat(result), strict=True)
        ]

    def _spec(self) -> CodecSpec:
        net = self.bottleneck
        return CodecSpec(
            name=net.codec, shape=net.shape, alphabet=net.alphabet, levels=net.levels,
            quantizer=_digest(net.encoder_state()),
        )  # fmt: skip

    def _heads(
        self, fp32: bytes, tail: bytes, names: list[str]
    ) -> tuple[dict[Precision, bytes], dict[Precision, Trial], dict[Precision, str]]:
        """The heads that go into the bundle, how they did on held-out frames, and why others are left out."""
        settings = self.recipe.export
        rows = np.random.default_rng(self.recipe.train.seed).permutation(self.data.indices)
        frames = self._frames(np.sort(rows[: settings.calibration_images]))
        # TensorRT reads one form of INT8 only, and ONNX Runtime is slow on that: it is made for boards that prefer TensorRT.
        symmetric = bool(self.targets) and all(target.backends[0] == "tensorrt" for target in self.targets)
        heads, left_out = make_heads(fp32, settings, frames, symmetric=symmetric, progress=self.progress)
        trials: dict[Precision, Trial] = {}
        if len(heads) > 1:
            frames = self._frames(self.held[:FIGURE_FRAMES])
            trials = try_heads(heads, tail, self._spec(), frames, self._teacher(frames, names), self.progress)
            left_out.update(too_lossy(trials, settings))
        for precision, reason in left_out.items():
            self.progress.note(f"no {precision} head: {reason}")
        return {name: model for name, model in heads.items() if name not in left_out}, trials, left_out

    @torch.no_grad()
    def _teacher(self, frames: npt.NDArray[np.uint8], names: list[str]) -> dict[str, npt.NDArray[Any]]:
        """The teacher's outputs by name."""
        chunks = [torch.from_numpy(frames[start : start + CHUNK]) for start in range(0, len(frames), CHUNK)]
        found = [flat(self.teacher(self.problem.normalize(chunk))) for chunk in chunks]
        return {name: torch.cat(parts).numpy() for name, parts in zip(names, zip(*found, strict=True), strict=True)}

    def _precision_figures(
        self, heads: dict[Precision, bytes], trials: dict[Precision, Trial], codec: Codec
    ) -> dict[str, Any]:
        """Time of every head here, side by side, and what each costs in bytes and accuracy; nothing for fp32 alone."""
        if len(heads) == 1:
            return {}
        times, backend = head_times(heads, self.recipe.input.size, self.bottleneck.levels)
        rows = {name: {"head_ms": times[name], "levels": trials[name].figures(codec)} for name in heads}
        return {"precisions": rows, "head_ms_with": backend}

    def _fit_codec(self, heads: dict[Precision, bytes]) -> tuple[CodecSpec, bytes]:
        """The codec for the symbols that the bundle's heads give on training images, and its data.

        One set of tables serves all precisions: fitted to all their symbols, it costs none of them more than a few
        thousandths of the bytes (``docs/precision.md``), and a board may change its precision without the server knowing.
        """
        net, spec, coding = self.bottleneck, self._spec(), self.recipe.coding
        rows = np.random.default_rng(self.recipe.train.seed).permutation(self.data.indices)[: coding.images]
        frames = self._frames(np.sort(rows))
        symbols = collect_symbols(heads, frames, spec, self.progress)
        return fit_codec(spec, symbols, net.density() if spec.name == "rans" else None, coding)

    def _manifest(self, spec: CodecSpec, fingerprint: str, outputs: list[OutputSpec], parts: list[Part]) -> Manifest:
        recipe = msgspec.to_builtins(self.recipe)
        del recipe["folder"]
        return Manifest(
            schema=1,
            name=self.recipe.name,
            release=self.recipe.release,
            created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            tool=f"narrowcast {narrowcast.__version__}",
            input=self.recipe.input,
            codec=spec,
            fingerprint=fingerprint,
            outputs=outputs,
            parts=parts,
            targets=self.recipe.export.targets,
            recipe=recipe,
        )

    def _figures(self, draft: Bundle, verified: Verified) -> dict[str, Any]:
        """What is measured on held-out images: no labels needed, only the teacher."""
        frames = self._frames(self.held[:FIGURE_FRAMES])
        result: Evaluation = evaluate_frames(draft, frames, None, codecs=(), progress=self.progress)
        levels = [
            {
                "level": score.setting,
                "mean_packet_bytes": round(score.mean_bytes or 0, 1),
                "agreement": score.agreement,
                "output_error": score.output_error,
            }
            for score in result.of("split")
        ]
        return {
            "images": len(frames),
            "levels": levels,
            "moved_symbols": verified.moved_symbols,
            "output_difference": verified.output_difference,
        }


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CompilerError(f"[train] device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _digest(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 in hex of named tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.ascontiguousarray(state[name].detach().cpu().numpy())
        digest.update(f"{name} {array.dtype} {list(array.shape)}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
