"""What limits a trained `shallow-residual`: its bits, its layers (what is lost without any rounding), or its images.

    narrowcast compile examples/mobilenet_v2.toml -o mobilenet_v2.ncb        # the run that is looked at
    python bench/limits.py examples/mobilenet_v2.toml --work .narrowcast [--images N] [--json limits.json]

Trains nothing: it takes the finished run of this very recipe from the work folder. Level by level, with symbols as they are
sent and with none of them rounded: how often the answer is the teacher's (with 95 % intervals over images), the same where
the teacher is sure, and the squared error of the features at the cut as a part of their variance. Once for the held-out
images, and once for as many that were trained on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from trials import CHUNK, Changes, changed

from narrowcast.cli.show import TerminalProgress, print_table
from narrowcast.compiler.bootstrap import Resampler, interval
from narrowcast.compiler.bottlenecks.shallow_residual import ALPHABET, ZERO, ShallowResidual
from narrowcast.compiler.bottlenecks.tail import class_scores
from narrowcast.compiler.job import CHECKPOINT, Job
from narrowcast.compiler.recipe import Recipe
from narrowcast.compiler.training import is_finished
from narrowcast.text import percent

SURE = 0.6  # the teacher's highest probability, above which it is called sure
# So that no features of all images are computed, for a few that are looked at; the run is the same.
NO_CACHE: Changes = {"train": {"cache_gigabytes": 0.0}}
KINDS = ("rounded", "not rounded")
COLUMNS = ("level", *(f">{what}, {kind}" for what in ("agreement", "where sure", "error") for kind in KINDS))


def finished(recipe: Recipe, work: Path) -> Job:
    """The recipe's job with the weights of its finished run.

    Raises:
        SystemExit: there is no such run in ``work``, or its bottleneck is none that can be left unrounded.
    """
    advice = f"train it first, with this version: narrowcast compile RECIPE -o {recipe.name}.ncb --work {work}"
    if not any(work.glob(f"{recipe.name}-*/{CHECKPOINT}")):  # said before images are prepared
        raise SystemExit(f"{work} has no run of {recipe.name!r}: {advice}")
    job = Job(recipe, work, TerminalProgress())
    if not isinstance(job.bottleneck, ShallowResidual):
        raise SystemExit(f"{recipe.name!r} is {job.preset.name!r}: only 'shallow-residual' can be left unrounded")
    if not is_finished(job.checkpoint, len(job.preset.stages(job.bottleneck, job.problem, job.recipe.bottleneck))):
        there = job.checkpoint.exists()
        seen = "is not finished" if there else f"is not there, only runs of {recipe.name!r} with other settings"
        raise SystemExit(f"the run {job.folder} {seen}: {advice}")
    job.train()  # takes the weights
    job.settle()
    return job


class Looked:
    """What was found for some images.

    Attributes:
        sure: whether the teacher is, bool ``[images]``.
        agreed: whether the answer is the teacher's, bool ``[kinds, levels, images]``, kinds as in ``KINDS``.
        errors: of the features, as parts of their variance over all these images, float64 ``[kinds, levels, images]``.
    """

    def __init__(
        self, sure: npt.NDArray[np.bool_], agreed: npt.NDArray[np.bool_], errors: npt.NDArray[np.float64]
    ) -> None:
        self.sure = sure
        self.agreed = agreed
        self.errors = errors

    def levels(self) -> list[dict[str, Any]]:
        """By level and kind, ready for JSON: agreement and its interval, agreement where the teacher is sure, error."""
        drawn = Resampler(len(self.sure)).means(self.agreed.astype(np.float64))
        found = []
        for level in range(self.agreed.shape[1]):
            row = {}
            for number, kind in enumerate(KINDS):
                agreed = self.agreed[number, level]
                row[kind] = {
                    "agreement": float(agreed.mean()),
                    "agreement_interval": list(interval(drawn[:, number, level])),
                    "agreement_where_sure": float(agreed[self.sure].mean()) if self.sure.any() else None,
                    "feature_error": float(self.errors[number, level].mean()),
                }
            found.append(row)
        return found

    def figures(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {"images": len(self.sure), "teacher_sure": int(self.sure.sum()), "levels": self.levels()}


@torch.no_grad()
def look(job: Job, rows: npt.NDArray[np.int64], title: str) -> Looked:
    """Puts the images numbered ``rows`` through every level, rounded and not."""
    sure, agreed, squared, moments = [], [], [], torch.zeros(3, dtype=torch.float64)
    with job.progress.task(title, len(rows), "images") as task:
        for start in range(0, len(rows), CHUNK):
            images = job.problem.normalize(torch.from_numpy(job.frames(rows[start : start + CHUNK])))
            features = job.problem.before(images)
            wanted = class_scores(job.problem.after(features))
            sure.append((wanted.softmax(1).amax(1) > SURE).numpy())
            right, apart = zip(*(_ways(job, images, features, wanted, kind) for kind in KINDS), strict=True)
            agreed.append(np.stack(right))
            squared.append(np.stack(apart))
            exact = features.double()
            moments += torch.stack([torch.tensor(exact.numel()), exact.sum(), exact.square().sum()])
            task.advance(len(images))
    count, total, squares = moments.tolist()
    variance = squares / count - (total / count) ** 2
    return Looked(np.concatenate(sure), np.concatenate(agreed, 2), np.concatenate(squared, 2) / variance)


def _ways(
    job: Job, images: torch.Tensor, features: torch.Tensor, wanted: torch.Tensor, kind: str
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Whether answers agree, and the features' mean squared errors; both ``[levels, images]``."""
    net = job.bottleneck
    assert isinstance(net, ShallowResidual)
    tail = net.tuned_tail() or job.problem.after
    latent = net.latent(images if net.trunk is None else features)
    agreed, squared = [], []
    for number in range(net.levels):
        level = torch.full((len(images),), number)
        values = net.scaled(latent, level).clamp(-ZERO, ALPHABET - 1 - ZERO)
        got = net.restore(values.round() if kind == "rounded" else values, level)
        agreed.append((class_scores(tail(got)).argmax(1) == wanted.argmax(1)).numpy())
        squared.append((got - features).double().square().flatten(1).mean(1).numpy())
    return np.stack(agreed), np.stack(squared)


def show(title: str, figures: dict[str, Any]) -> None:
    """One table of what :meth:`Looked.figures` gives."""
    rows: list[Sequence[str]] = []
    for level, row in enumerate(figures["levels"]):
        kinds = [row[kind] for kind in KINDS]
        within = ["{:.1f}..{:.1f}".format(*(100 * end for end in one["agreement_interval"])) for one in kinds]
        agreement = [f"{percent(one['agreement'])} ({ends})" for one, ends in zip(kinds, within, strict=True)]
        sure = [percent(one["agreement_where_sure"]) for one in kinds]
        rows.append([str(level), *agreement, *sure, *(f"{one['feature_error']:.3f}" for one in kinds)])
    print_table(f"{title}: {figures['images']} images, {figures['teacher_sure']} of them sure", COLUMNS, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="What limits a trained model: bits, layers or images.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--work", type=Path, default=Path(".narrowcast"), help="has the recipe's finished run")
    parser.add_argument("--images", type=int, metavar="N", help="at most so many of each kind (default: all held out)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures as JSON")
    args = parser.parse_args()
    if args.images is not None and args.images < 1:
        parser.error(f"--images is {args.images}; 1 or more")
    job = finished(changed(args.recipe, NO_CACHE), args.work)
    random = np.random.default_rng(job.recipe.train.seed)
    count = min(args.images or len(job.held), len(job.held))
    drawn = {
        name: np.sort(random.permutation(rows)[:count])
        for name, rows in (("held out", job.held), ("trained on", job.data.indices))
    }
    found = {name: look(job, rows, name).figures() for name, rows in drawn.items()}
    for name, figures in found.items():
        show(name, figures)
    if args.json:
        args.json.write_text(json.dumps({"run": job.folder.name, "sure_above": SURE, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
