"""What further tails bring into a bundle: their networks, checked, and their figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from narrowcast.compiler.evaluate import evaluate_frames
from narrowcast.compiler.export import export_tail, export_whole
from narrowcast.compiler.modules import Head, Tail, Whole
from narrowcast.compiler.progress import Progress
from narrowcast.compiler.tails import FurtherJob
from narrowcast.compiler.tasks import output_specs
from narrowcast.compiler.verify import OnnxNetwork, check_outputs_apart, outputs_apart
from narrowcast.transport.bundle import Bundle, TailSpec


class Adder(Protocol):
    """Takes a part of the bundle; see :func:`narrowcast.transport.bundle.describe_part`."""

    def __call__(self, name: str, data: bytes, kind: Any, roles: Any, **more: Any) -> None:
        """See the class."""


def add_further(
    jobs: Sequence[FurtherJob], head: Head, frames: npt.NDArray[np.uint8], add: Adder, progress: Progress
) -> list[TailSpec]:
    """Exports and checks the tails, and adds their parts.

    Args:
        jobs: trained.
        head: the bundle's.
        frames: uint8 ``[N, H, W, 3]`` to check them on.
        add: takes the parts.
        progress: told where it is.

    Raises:
        ExportError: a network does not export.
        VerificationError: an exported tail gives other outputs than the trained one.
    """
    specs: list[TailSpec] = []
    if not jobs:
        return specs
    with progress.task("exporting further tails", len(jobs), "tails") as task:
        for job in jobs:
            job.settle()
            specs.append(_add(job, head, frames, add))
            task.advance(1)
    return specs


def _add(job: FurtherJob, head: Head, frames: npt.NDArray[np.uint8], add: Adder) -> TailSpec:
    bottleneck, size = job.bottleneck, job.job.recipe.input.size
    outputs = output_specs(job.example())
    names = [output.name for output in outputs]
    tuned = bottleneck.tuned_tail()
    tail = Tail(bottleneck, job.problem.after if tuned is None else tuned).eval()
    exported = export_tail(tail, bottleneck.shape, names)
    network = OnnxNetwork(exported)
    for level in range(bottleneck.levels):
        at = np.full(len(frames), level, np.int64)
        with torch.no_grad():
            symbols = head(torch.from_numpy(frames), torch.from_numpy(at)).numpy()
        check_outputs_apart(outputs_apart(tail, network, symbols, at), f"tail {job.name!r}")
    add(f"tail.{job.name}.fp32.onnx", exported, "tail", ["server"], precision="fp32", tail=job.name)
    if job.job.recipe.export.whole:
        whole = export_whole(Whole(job.problem.normalize, job.teacher), size, names)
        add(
            f"whole.{job.name}.fp32.onnx", whole, "whole", ["device", "server"], precision="fp32", tail=job.name,
            optional=True,
        )  # fmt: skip
    return TailSpec(name=job.name, outputs=outputs, task=job.task)


def tail_figures(
    draft: Bundle, jobs: Sequence[FurtherJob], frames: npt.NDArray[np.uint8], progress: Progress
) -> dict[str, Any]:
    """By tail, what is measured on held-out frames; empty without further tails."""
    found: dict[str, Any] = {}
    for job in jobs:
        result = evaluate_frames(draft, frames, None, codecs=(), tail=job.name, progress=progress)
        rows = [
            {"level": score.setting, "agreement": score.agreement, "output_error": score.output_error}
            for score in result.of("split")
        ]
        found[job.name] = {"metric": result.metric, "levels": rows}
    return {"tails": found} if found else {}
