"""A better tail for a bundle that is out: decoder and layers behind the cut trained on, all that a board has as it was.

Head, tables and self-check are the old bundle's own parts, byte for byte, so the codec fingerprint is the same: boards go on
sending what they send. What is trained starts from the run that the old bundle was made of, which must still be in the work
folder; only stages that leave encoder and tables alone take part (``Stage.server_only``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch

from narrowcast.compiler.assemble import Assembly, Compiled, Trials
from narrowcast.compiler.bottlenecks import Batch, Bottleneck, Preset, Problem, Stage
from narrowcast.compiler.errors import RetuneError, VerificationError
from narrowcast.compiler.heads import try_heads
from narrowcast.compiler.job import CHECKPOINT, Job, run_of
from narrowcast.compiler.planner.choice import as_decided
from narrowcast.compiler.progress import SILENT, Progress
from narrowcast.compiler.recipe import Recipe, load_recipe
from narrowcast.compiler.tails import FurtherJob
from narrowcast.compiler.tasks import output_specs
from narrowcast.compiler.training import load_checkpoint
from narrowcast.compiler.turns import alone_in
from narrowcast.transport.bundle import Bundle, Manifest, SecretKey, TailSpec
from narrowcast.transport.bundle.manifest import Precision
from narrowcast.transport.codec import Codec, CodecSpec
from narrowcast.transport.tasks import MAIN, sent_outputs
from narrowcast.transport.tasks.answers import SentOutput


def retune(
    recipe: Recipe | str | Path,
    bundle: Bundle | str | Path,
    output: str | Path,
    *,
    key: SecretKey | None = None,
    work: str | Path = ".narrowcast",
    progress: Progress = SILENT,
) -> Compiled:
    """Compiles a recipe onto a bundle: another tail, the same head and the same codec fingerprint.

    Args:
        recipe: its teacher, cut, input and bottleneck are the old bundle's; what concerns the tail (``tune_tail``,
            ``temperature``, ``label_weight``, ``[train]``, ``[data]``) may differ. The stage that tunes the tail gets as
            many images as it gets in ``narrowcast compile``.
        bundle: the old one, or its file; it must be signed where the new one is to be, and never by a key that is not
            trusted.
        output: where the new bundle goes.
        key: signs it; None leaves it unsigned.
        work: where the old bundle was compiled.
        progress: told where it is.

    Raises:
        RetuneError: the old bundle is not signed, its run is not in ``work``, it is of another input, cut or bottleneck, its
            head has layers of the teacher's that are others now, the recipe tunes no tail, it lacks one of the bundle's
            ``[[tails]]``, or what a tail sends back would not be what it was.
        BundleError: the old bundle must not be used.
        CompilerError: see :func:`narrowcast.compiler.compile.compile`.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
    old = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, allow_unsigned=True)
    work, manifest = Path(work), old.manifest
    recipe = as_decided(recipe, manifest.recipe)
    if key is not None and old.signed_by is None:
        raise RetuneError(
            f"{old.path.name} is not signed, and its head would go out with your signature: sign it first (narrowcast keys "
            "sign), or leave the new one unsigned too (--unsigned)"
        )
    dropped = {tail.name for tail in manifest.tails} - {tail.name for tail in recipe.tails}
    if dropped:
        raise RetuneError(
            f"{manifest.name} has the tail {sorted(dropped)[0]!r}, and the recipe does not: add its [[tails]]"
        )
    run = run_of(work, manifest)
    if run is None:
        raise RetuneError(
            f"{manifest.name}, release {manifest.release}, was not made in {work}: name the work folder that it was "
            "compiled in (--work)"
        )
    _same_problem(recipe, manifest)
    if recipe.name != manifest.name:
        recipe = msgspec.structs.replace(recipe, name=manifest.name)
        progress.note(f"its name is {manifest.name!r}, by which boards that have {old.path.name} ask for it")
    if recipe.release <= manifest.release:
        recipe = msgspec.structs.replace(recipe, release=manifest.release + 1)
        progress.note(f"release {recipe.release}, since {manifest.name} is out with {manifest.release}")
    if recipe.train.devices > 1:
        progress.note("a tail is retuned on one device")
    job = Job(recipe, work, progress)
    further = [FurtherJob(job, tail) for tail in recipe.tails]
    for problem, of_bundle in _pairs(job, further, manifest):
        _same_answers(problem, of_bundle, manifest.name)
    job.preset = _ServerStages(job.preset)
    if not job.preset.stages(job.bottleneck, job.problem, recipe.bottleneck):
        raise RetuneError("this recipe tunes no tail: set tune_tail = true in [bottleneck]")
    state = load_checkpoint(run / CHECKPOINT, job.problem.device)["bottleneck"]
    _same_trunk(job, state, manifest.name)
    _start_from(job.bottleneck, state, manifest.name)
    _check(job, manifest.codec.quantizer, RetuneError(f"the recipe's bottleneck is not that of {manifest.name}"))
    job.folder = work / f"{job.folder.name}-on-{hashlib.sha256(run.name.encode()).hexdigest()[:12]}"
    with alone_in(job.folder, progress):
        job.train_here(None, progress)  # a worker would not know of the old run
    changed = VerificationError("tuning the tail has changed the encoder: the bundle is not written")
    _check(job, manifest.codec.quantizer, changed)
    for one in further:
        one.train(run)
    return _OnTop(job, old, further).write(Path(output), key)


def _same_problem(recipe: Recipe, manifest: Manifest) -> None:
    """Whether the recipe is for the images and the cut that the old bundle was made for."""
    if recipe.input != manifest.input:
        raise RetuneError(f"[input] is not that of {manifest.name}: boards would go on preparing images by the old one")
    before = manifest.recipe.get("cut", {}).get("at")
    if recipe.cut.at != before:
        raise RetuneError(f"[cut] at is {recipe.cut.at!r}; {manifest.name} was cut at {before!r}")


def _pairs(job: Job, further: Sequence[FurtherJob], manifest: Manifest) -> list[tuple[Problem, TailSpec]]:
    """Each tail of the old bundle, with what takes its place."""
    problems = {MAIN: job.problem, **{one.name: one.problem for one in further}}
    return [(problems[tail.name], tail) for tail in manifest.all_tails()]


@torch.no_grad()
def _same_answers(problem: Problem, tail: TailSpec, name: str) -> None:
    """Whether what comes back is what boards with the old bundle take, and means what it meant to them."""
    image = torch.zeros((1, *problem.contract.size, 3), dtype=torch.uint8, device=problem.device)
    outputs = output_specs(problem.after(problem.before(problem.normalize(image))))
    seen, wanted = sent_outputs(problem.task, outputs), sent_outputs(tail.task, tail.outputs)
    if seen != wanted:
        raise RetuneError(
            f"the tail {tail.name!r} would send {_listed(seen)}; boards that have {name} take {_listed(wanted)}"
        )
    classes, known = ([] if task is None else task.classes for task in (problem.task, tail.task))
    if known and classes != known:
        raise RetuneError(f"the tail {tail.name!r} has other classes than in {name}, by which boards go")


def _listed(outputs: Sequence[SentOutput]) -> str:
    return ", ".join(f"{one.name} {'up to ' * one.up_to}{one.shape}" for one in outputs)


def _same_trunk(job: Job, state: Mapping[str, torch.Tensor], name: str) -> None:
    """Whether the teacher's own layers in the head are those of the old run.

    Loading others would put them into the teacher itself: the tail would learn from a mixture of two networks, and the
    mixture's features would be kept as the new one's.
    """
    own = {id(value) for value in job.problem.before.state_dict(keep_vars=True).values()}
    for key, value in job.bottleneck.state_dict(keep_vars=True).items():
        if id(value) in own and key in state and not torch.equal(value, state[key]):
            raise RetuneError(
                f"the teacher's layers before the cut are not those that {name} was made with, and boards go on running "
                f"these ({key}): name the weights that it was compiled with"
            )


def _start_from(bottleneck: Bottleneck, state: Mapping[str, torch.Tensor], name: str) -> None:
    """Loads what the old run learned; a tail of its own that only one of the two has is left out."""
    wanted = bottleneck.state_dict()
    shared = {key: value for key, value in state.items() if key in wanted or not key.startswith("tail.")}
    kept = {key: value for key, value in wanted.items() if key not in shared and key.startswith("tail.")}
    try:
        bottleneck.load_state_dict({**kept, **shared})
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise RetuneError(f"the recipe's bottleneck is not that of {name}: {first}") from error


def _check(job: Job, quantizer: str, error: Exception) -> None:
    if job.spec().quantizer != quantizer:
        raise error


class _ServerStages(Preset[Any]):
    """A preset of which nothing is done but what concerns the server."""

    def __init__(self, preset: Preset[Any]) -> None:
        self.name = preset.name
        self._preset = preset

    def build(self, problem: Problem, settings: Any) -> Bottleneck:
        return self._preset.build(problem, settings)

    def calibrate(self, bottleneck: Any, problem: Problem, settings: Any, batches: Iterator[Batch]) -> None:
        """Nothing: what was measured is in the old run's state."""

    def stages(self, bottleneck: Any, problem: Problem, settings: Any) -> list[Stage]:
        stages = self._preset.stages(bottleneck, problem, settings)
        return [replace(stage, prepare=None) for stage in stages if stage.server_only]  # measured already, as above


class _OnTop(Assembly):
    """A bundle whose device parts are another bundle's."""

    def __init__(self, job: Job, old: Bundle, further: Sequence[FurtherJob]) -> None:
        super().__init__(job, further)
        self.old = old

    def _heads(self, fp32: bytes, tail: bytes) -> Trials:
        parts = [part for part in self.old.manifest.parts if part.kind == "head"]
        heads: dict[Precision, bytes] = {
            part.precision: self.old.read("head", part.precision) for part in parts if part.precision
        }
        if len(heads) == 1:
            return heads, {}, {}
        frames = self._figure_frames()
        wanted = self.job.teacher_outputs(frames, self.names)
        return heads, try_heads(heads, tail, self.job.spec(), frames, wanted, self.progress), {}

    def _codec(self, heads: dict[Precision, bytes]) -> tuple[CodecSpec, Codec]:
        for part in self.old.manifest.parts:
            if part.kind in ("tables", "dictionary"):
                self.parts.add(part.name, self.old.read(part.kind), part.kind, ["device", "server"])
        return self.old.manifest.codec, self.old.codec()

    def _exit(self, head: bytes) -> dict[str, Any]:
        if not self.old.has("exit"):
            if self.recipe.exit is not None:
                self.progress.note(f"no local exit: {self.old.manifest.name} has none, and boards keep their parts")
            return {}
        self.parts.add("exit.fp32.onnx", self.old.read("exit"), "exit", ["device"], precision="fp32")
        return {"exit": self.old.manifest.figures["exit"]}

    def _video(self, heads: dict[Precision, bytes], tail: bytes, spec: CodecSpec, codec: Codec) -> dict[str, Any]:
        if not self.old.has("video"):
            if self.recipe.coding.video:
                self.progress.note(f"no video tables: {self.old.manifest.name} has none, and boards keep their parts")
            return {}
        self.parts.add("video", self.old.read("video"), "video", ["device", "server"])
        return {"video": self.old.manifest.figures["video"]}

    def _self_check(self, heads: dict[Precision, bytes], codec: Codec) -> bytes:
        return self.old.read("selfcheck")
