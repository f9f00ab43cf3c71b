"""From a trained bottleneck to a signed bundle: export, verify, fit tables, measure, sign."""

from __future__ import annotations

import hashlib
import os
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
from narrowcast.compiler.clipping import check_alphabet
from narrowcast.compiler.codec import collect_symbols, fit_codec, symbols_of
from narrowcast.compiler.codecs import SENT_IMAGES
from narrowcast.compiler.cost import count_macs
from narrowcast.compiler.evaluate import Evaluation, evaluate_frames
from narrowcast.compiler.exit import exit_figures, train_exit, verify_exit
from narrowcast.compiler.export import export_exit, export_head, export_tail, export_whole, free_sides
from narrowcast.compiler.free_sizes import extreme_frames
from narrowcast.compiler.further import add_further, tail_figures
from narrowcast.compiler.heads import Trial, head_times, make_heads, make_self_check, too_lossy, try_heads
from narrowcast.compiler.job import Job, remember
from narrowcast.compiler.kept import videos_of
from narrowcast.compiler.modules import Head, Tail, Whole
from narrowcast.compiler.operators import check_local, check_operators
from narrowcast.compiler.progress import list_skipped
from narrowcast.compiler.tails import FurtherJob
from narrowcast.compiler.verify import OnnxNetwork, Verified, verify
from narrowcast.compiler.video.clips import recorded
from narrowcast.compiler.video.fit import Networks, fit_video, material, tail_of
from narrowcast.compiler.wholes import try_wholes, whole_figures, whole_times, wholes_too_lossy
from narrowcast.transport.bundle import Bundle, Manifest, Part, SecretKey, TailSpec, describe_part, write_bundle
from narrowcast.transport.bundle.manifest import PartKind, Precision, Role
from narrowcast.transport.codec import Codec, CodecSpec, open_codec
from narrowcast.transport.packet import STREAM_HEADER_BYTES
from narrowcast.transport.structs import to_json

VERIFY_FRAMES = 8
FIGURE_FRAMES = 256
# Heads, how they did on held-out frames, and why others are left out.
Trials = tuple[dict[Precision, bytes], dict[Precision, Trial], dict[Precision, str]]


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


class Parts:
    """The parts of a bundle as they are made."""

    def __init__(self) -> None:
        self.described: list[Part] = []
        self.contents: dict[str, bytes] = {}

    def add(self, name: str, data: bytes, kind: PartKind, roles: list[Role], **more: Any) -> None:
        """See :func:`narrowcast.transport.bundle.describe_part`."""
        self.described.append(describe_part(name, data, kind, roles, **more))
        self.contents[name] = data


class Assembly:
    """Makes the bundle of one finished job."""

    def __init__(self, job: Job, further: Sequence[FurtherJob] = ()) -> None:
        self.job = job
        self.further = further
        self.tails: list[TailSpec] = []
        self.recipe = job.recipe
        self.progress = job.progress
        self.training_macs = job.settle()
        self.specs = job.outputs()
        self.names = [spec.name for spec in self.specs]
        self.parts = Parts()
        tuned = job.bottleneck.tuned_tail()
        self.head = Head(job.problem.normalize, job.bottleneck).eval()
        self.tail = Tail(job.bottleneck, job.problem.after if tuned is None else tuned).eval()

    def write(self, output: Path, key: SecretKey | None) -> Compiled:
        """Exports, verifies, measures and writes the bundle."""
        job, parts = self.job, self.parts
        head_onnx, tail_onnx = self._networks()
        frames = job.frames(job.held[:VERIFY_FRAMES])
        free = self.recipe.input.free
        others = [] if free is None else extreme_frames(frames[0], free)
        verified = verify(self.head, self.tail, head_onnx, tail_onnx, [frames, *others], job.bottleneck.levels)
        self.tails = add_further(self.further, self.head, frames, parts.add, self.progress)
        heads, trials, left_out = self._heads(head_onnx, tail_onnx)
        for precision, model in heads.items():
            parts.add(f"head.{precision}.onnx", model, "head", ["device"], precision=precision)
        unsupported = check_operators(heads, tail_onnx, job.targets, self.progress)
        spec, codec = self._codec(heads)
        parts.add("selfcheck.json", self._self_check(heads, codec), "selfcheck", ["device"])
        alone = {**self._wholes(), **self._exit(head_onnx), **self._video(heads, tail_onnx, spec, codec)}
        unsupported |= self._check_local()
        manifest = self._manifest(spec, codec.fingerprint.hex())
        figures = {**self._draft_figures(manifest, verified), **self._precision_figures(heads, trials, codec), **alone}
        figures |= {} if job.start is None else {"started_from": job.start.name}
        figures |= {"left_out": left_out, "unsupported": unsupported, **({"plan": job.plan} if job.plan else {})}
        manifest = msgspec.structs.replace(manifest, figures=figures)
        remember(job.folder, manifest)  # before the bundle is out: whoever has it can retune it
        write_bundle(output, manifest, parts.contents, key)
        return Compiled(output, manifest, job.folder, verified, job.prepared.skipped)

    def _networks(self) -> tuple[bytes, bytes]:
        """Exports the networks; gives the head's and the tail's ONNX."""
        job, size = self.job, self.recipe.input.size
        with self.progress.task("exporting", 2, "networks") as task:
            images, symbols = free_sides(self.recipe.input, job.spec())
            head = export_head(self.head, size, job.bottleneck.levels, images)
            task.advance(1)
            tail = export_tail(self.tail, job.bottleneck.shape, self.names, symbols)
            self.parts.add("tail.fp32.onnx", tail, "tail", ["server"], precision="fp32")
            task.advance(1)
        return head, tail

    def _wholes(self) -> dict[str, Any]:
        """Adds the uncut network in every precision, and gives its figures; nothing where the recipe wants none."""
        job, settings = self.job, self.recipe.export
        if not settings.whole:
            return {}
        images, _ = free_sides(self.recipe.input, job.spec())
        exact = export_whole(Whole(job.problem.normalize, job.teacher), self.recipe.input.size, self.names, images)
        wholes, left_out = make_heads(
            exact,
            settings,
            self._calibration(),
            symmetric=self._symmetric,
            progress=self.progress,
            what="whole network",
        )
        frames = self._figure_frames()
        trials = try_wholes(wholes, frames, self.progress) if len(wholes) > 1 else {}
        left_out.update(wholes_too_lossy(trials, settings))
        for precision, reason in left_out.items():
            self.progress.note(f"no whole network in {precision}: {reason}")
        wholes = {precision: model for precision, model in wholes.items() if precision not in left_out}
        for precision, model in wholes.items():
            roles: list[Role] = ["device", "server"]
            self.parts.add(f"whole.{precision}.onnx", model, "whole", roles, optional=True, precision=precision)
        return {"whole": whole_figures(whole_times(wholes, frames[0]), trials, left_out)}

    def _check_local(self) -> dict[str, dict[str, list[str]]]:
        """What runtimes refuse of the uncut network and the local exit, where there are any."""
        parts, contents = self.parts.described, self.parts.contents
        wholes = {part.precision: contents[part.name] for part in parts if part.kind == "whole" and part.precision}
        local = next((contents[part.name] for part in parts if part.kind == "exit"), None)
        return check_local(wholes, local, self.job.targets, self.progress)

    def _calibration(self) -> npt.NDArray[np.uint8]:
        """Training images that the ranges of INT8 networks are measured on."""
        rows = np.random.default_rng(self.recipe.train.seed).permutation(self.job.data.indices)
        return self.job.frames(np.sort(rows[: self.recipe.export.calibration_images]))

    @property
    def _symmetric(self) -> bool:
        """TensorRT reads one form of INT8 only, on which ONNX Runtime is slow: made where all boards prefer TensorRT."""
        return bool(self.job.targets) and all(target.backends[0] == "tensorrt" for target in self.job.targets)

    def _costs(self) -> dict[str, Any]:
        job = self.job
        frame, level = torch.from_numpy(job.frames(job.held[:1])), torch.zeros(1, dtype=torch.int64)
        head_macs, found = count_macs(self.head, frame, level), job.bottleneck.figures()
        if "channels" in found:
            found["channels"]["saved_macs"] = self.training_macs - head_macs
        return {"teacher_macs": job.cut.macs_before + job.cut.macs_after, "head_macs": head_macs, **found}

    def _figure_frames(self) -> npt.NDArray[np.uint8]:
        """Held-out images, for the bundle's figures: drawn, since the first of them are those of a few classes' folders."""
        rows = np.random.default_rng(self.recipe.train.seed).permutation(self.job.held)
        return self.job.frames(np.sort(rows[:FIGURE_FRAMES]))

    def _heads(self, fp32: bytes, tail: bytes) -> Trials:
        """The heads that go into the bundle, how they did on held-out frames, and why others are left out."""
        settings = self.recipe.export
        heads, left_out = make_heads(
            fp32, settings, self._calibration(), symmetric=self._symmetric, progress=self.progress
        )
        trials: dict[Precision, Trial] = {}
        if len(heads) > 1:
            frames = self._figure_frames()
            wanted = self.job.teacher_outputs(frames, self.names)
            trials = try_heads(heads, tail, self.job.spec(), frames, wanted, self.progress)
            left_out.update(too_lossy(trials, settings))
        for precision, reason in left_out.items():
            self.progress.note(f"no {precision} head: {reason}")
        return {name: model for name, model in heads.items() if name not in left_out}, trials, left_out

    def _precision_figures(
        self, heads: dict[Precision, bytes], trials: dict[Precision, Trial], codec: Codec
    ) -> dict[str, Any]:
        """Time of every head here, side by side, and what each costs in bytes and accuracy; nothing for fp32 alone."""
        if len(heads) == 1:
            return {}
        times, backend = head_times(heads, self.recipe.input.size, self.job.bottleneck.levels)
        rows = {name: {"head_ms": times[name], "levels": trials[name].figures(codec)} for name in heads}
        return {"precisions": rows, "head_ms_with": backend}

    def _exit(self, head: bytes) -> dict[str, Any]:
        """Adds the local exit, and gives its figures; nothing where the recipe wants none."""
        job = self.job
        if self.recipe.exit is None:
            return {}
        network = train_exit(job, self.recipe.exit)
        spec, frames = job.spec(), self._figure_frames()
        model = export_exit(network, spec.shape, spec.levels, self.names[0])
        coder = OnnxNetwork(head)
        with self.progress.task("trying the local exit", spec.levels, "levels") as task:
            symbols = []
            for level in range(spec.levels):
                symbols.append(symbols_of(coder, "fp32", spec, frames, level))
                task.advance(1)
        verify_exit(network, model, [of_level[:VERIFY_FRAMES] for of_level in symbols])
        self.parts.add("exit.fp32.onnx", model, "exit", ["device"], precision="fp32")
        return {"exit": exit_figures(network, model, symbols, job.teacher_outputs(frames, self.names))}

    def _codec(self, heads: dict[Precision, bytes]) -> tuple[CodecSpec, Codec]:
        """The codec for the symbols that the bundle's heads give on training images; its data become a part.

        One set of tables serves all precisions: fitted to all their symbols, it costs none of them more than a few
        thousandths of the bytes (``docs/precision.md``), and a board may change its precision without the server knowing.
        """
        job, coding = self.job, self.recipe.coding
        rows = np.random.default_rng(self.recipe.train.seed).permutation(job.data.indices)[: coding.images]
        symbols = collect_symbols(heads, job.frames(np.sort(rows)), job.spec(), self.progress)
        spec = job.spec()
        density = job.bottleneck.density() if spec.name == "rans" else None
        if density is not None and job.bottleneck.ordered:
            check_alphabet(symbols, spec.alphabet, self.progress, job.bottleneck.sent)
        spec, data = fit_codec(spec, symbols, density, coding, job.bottleneck.sent)
        if data:
            kind: PartKind = "dictionary" if spec.name == "zstd" else "tables"
            self.parts.add(kind, data, kind, ["device", "server"])
        return spec, open_codec(spec, data)

    def _video(self, heads: dict[Precision, bytes], tail: bytes, spec: CodecSpec, codec: Codec) -> dict[str, Any]:
        """Adds the video tables, and gives their figures; nothing where the recipe wants none."""
        job, recipe = self.job, self.recipe
        if not recipe.coding.video:
            return {}

        def teacher(frames: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
            return job.teacher_outputs(frames, self.names)

        def videos(count: int) -> npt.NDArray[np.uint8]:
            found = recorded(Path(recipe.folder) / str(recipe.data.video), recipe.input, count, recipe.train.seed)
            digest = hashlib.sha256("\n".join(videos_of(recipe)).encode()).hexdigest()
            headline = f"[data] video: {len(found.skipped)} images or videos cannot be read, or not to the end"
            list_skipped(self.progress, headline, found.skipped, job.cache / f"skipped-videos-{digest[:16]}.txt")
            return found.clips

        rows = np.random.default_rng(recipe.train.seed).permutation(job.data.indices)[: recipe.coding.images]
        photos, held = job.frames(np.sort(rows)), self._figure_frames()
        clips = material(
            photos, held, recipe.coding.images, recipe.train.seed, None if recipe.data.video is None else videos
        )
        networks = Networks(heads, tail_of(OnnxNetwork(tail)), teacher)
        data, figures = fit_video(spec, codec, networks, clips, self.progress)
        self.parts.add("video", data, "video", ["device", "server"])
        return {"video": figures}

    def _self_check(self, heads: dict[Precision, bytes], codec: Codec) -> bytes:
        """The ``selfcheck`` part."""
        ordered = self.job.bottleneck.ordered
        return to_json(make_self_check(heads, codec, self.recipe.input.size, ordered=ordered))

    def _manifest(self, spec: CodecSpec, fingerprint: str) -> Manifest:
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
            outputs=self.specs,
            parts=self.parts.described,
            targets=self.recipe.export.targets,
            recipe=recipe,
            task=self.job.task,
            tails=self.tails,
        )

    def _draft_figures(self, manifest: Manifest, verified: Verified) -> dict[str, Any]:
        """What is measured on the bundle as it would be, for which it is written and removed again."""
        # Another process may be making the same. What a killed one leaves has a name that the next start clears away.
        draft = self.job.folder / f".draft.ncb.{os.getpid()}.partial"
        try:
            write_bundle(draft, manifest, self.parts.contents, None)
            return {**self._costs(), **self._figures(Bundle.open(draft, allow_unsigned=True), verified)}
        finally:
            draft.unlink(missing_ok=True)

    def _figures(self, draft: Bundle, verified: Verified) -> dict[str, Any]:
        """What is measured on held-out images: no labels needed, only the teacher."""
        frames = self._figure_frames()
        sent = SENT_IMAGES if draft.has("whole") else ()
        result: Evaluation = evaluate_frames(draft, frames, None, codecs=sent, progress=self.progress)
        levels = [
            {
                "level": score.setting,
                "mean_packet_bytes": round(score.mean_bytes or 0, 1),
                "agreement": score.agreement,
                "output_error": score.output_error,
            }
            for score in result.of("split")
        ]
        images = [
            {
                "codec": codec.name,
                "quality": score.setting,
                "mean_packet_bytes": round((score.mean_bytes or 0) + STREAM_HEADER_BYTES, 1),
                "agreement": score.agreement,
                "output_error": score.output_error,
            }
            for codec in sent
            for score in result.of(codec.name)
        ]
        return {
            "images": len(frames),
            "metric": result.metric,
            "levels": levels,
            **({"sent_images": images} if images else {}),
            **tail_figures(draft, self.further, frames, self.progress),
            "moved_symbols": verified.moved_symbols,
            "output_difference": verified.output_difference,
        }
