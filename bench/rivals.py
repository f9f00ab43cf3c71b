"""`shallow-residual` beside `entropic-student` on the same teacher, after as many images seen, on the same test photographs.

    python bench/rivals.py examples/mobilenet_v2.toml model.ncb --data photos/ --betas 0.05 0.5 [--images N] [--cut NAME]

The rival is trained once per beta with the recipe's own data and input: the first beta from scratch on all the images,
every further one from what the beta before it has learned, on a third of them (which favours the rival). Bundles stay in the
work folder, so a second call only compares. Curves are bytes over accuracy where the photographs have labels, else over
agreement; the BD-rate is taken over what both curves reach, with a 95 % interval over the photographs. Where they reach
nothing in common there is none, and the table says what each reaches.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from narrowcast.cli.show import TerminalProgress
from narrowcast.compiler.assemble import Assembly
from narrowcast.compiler.bootstrap import Resampler, interval
from narrowcast.compiler.curves import bd_rate, front
from narrowcast.compiler.evaluate import evaluate
from narrowcast.compiler.job import Job
from narrowcast.compiler.recipe import Recipe, recipe_from
from narrowcast.compiler.scores import By, Evaluation
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.structs import parse_toml

FURTHER = 1 / 3


def recipe_of(path: Path, beta: float, images: int, args: argparse.Namespace) -> Recipe:
    """The recipe at ``path`` with the rival for its bottleneck."""
    mapping = parse_toml(path.read_text(), path.name)
    mapping["bottleneck"] = {
        "preset": "entropic-student",
        "beta": beta,
        "decoder_width": args.decoder_width,
    }
    mapping["train"] = {
        **mapping.get("train", {}),
        "images": images,
        "batch": args.batch,
        "learning_rate": args.learning_rate,
        "precision": args.precision,
    }
    if args.cut:
        mapping["cut"] = {"at": args.cut}
    return recipe_from(mapping, path.name, f"rival-{beta:g}", path.parent)


def trained(recipe: Recipe, work: Path, start: Path | None) -> tuple[Path, Path]:
    """A bundle of the recipe, trained on from the run in ``start``; gives the bundle and the folder of its run."""
    job = Job(recipe, work, TerminalProgress(quiet=False), start=start)
    bundle = job.folder / "rival.ncb"
    if not bundle.exists():
        job.train()
        Assembly(job).write(bundle, None)
    return bundle, job.folder


def points(found: list[Evaluation], by: By) -> tuple[np.ndarray, np.ndarray]:
    """Bytes and figures of every level, image by image, ``[levels, images]``."""
    outcomes = [
        outcome
        for evaluation in found
        for score, outcome in zip(evaluation.scores, evaluation.outcomes, strict=True)
        if score.way == "split"
    ]
    reached = [outcome.right if by == "accuracy" else outcome.agreed for outcome in outcomes]
    return np.stack([outcome.sizes for outcome in outcomes]), np.stack(reached)


def compare(ours: list[Evaluation], rivals: list[Evaluation], by: By) -> dict[str, Any]:
    """Both curves and the BD-rate of the first against the second."""
    sides = [points(found, by) for found in (ours, rivals)]
    means = [(sizes.mean(1), reached.mean(1)) for sizes, reached in sides]
    apart = bd_rate(*(front(*mean) for mean in means))
    resampler = Resampler(ours[0].images)
    drawn = [[resampler.means(values.astype(np.float64)) for values in side] for side in sides]
    resampled = [
        bd_rate(*(front(sizes[k], reached[k]) for sizes, reached in drawn)) for k in range(resampler.resamples)
    ]
    rates = [one.bd_rate for one in resampled if one is not None]
    sure = apart is not None and len(rates) > 0.95 * len(resampled)
    return {
        "by": by,
        "ours": [list(map(float, row)) for row in zip(*means[0], strict=True)],
        "rival": [list(map(float, row)) for row in zip(*means[1], strict=True)],
        "bd_rate": apart.bd_rate if apart else None,
        "bd_rate_interval": list(interval(rates)) if sure else None,
        "over": [apart.low, apart.high] if apart else None,
    }


def show(result: dict[str, Any]) -> None:
    for side in ("ours", "rival"):
        print(f"{side:8}" + "   ".join(f"{size:.0f} B {reached:.1%}" for size, reached in sorted(result[side])))
    if result["bd_rate"] is None:
        print(f"no {result['by']} that both reach: no BD-rate")
        return
    low, high = result["over"]
    within = " ({:+.1%}..{:+.1%})".format(*result["bd_rate_interval"]) if result["bd_rate_interval"] else ""
    print(f"BD-rate {result['bd_rate']:+.1%}{within}, over {result['by']} {low:.1%}..{high:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description="shallow-residual beside entropic-student, after as many images.")
    parser.add_argument("recipe", type=Path, help="of the bundle; the rival's is made from it")
    parser.add_argument("bundle", type=Path, help="ours, compiled")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="test photographs, not trained on")
    parser.add_argument("--betas", type=float, nargs="+", default=[0.05, 0.5], metavar="B")
    parser.add_argument("--images", type=int, metavar="N", help="the rival's first (default: as many as ours has seen)")
    parser.add_argument("--cut", metavar="NAME", help="the rival's (default: the recipe's)")
    parser.add_argument(
        "--decoder-width", type=int, default=512, metavar="N", help="the rival's (default: 512, the paper's)"
    )
    parser.add_argument(
        "--batch", type=int, default=16, metavar="N", help="(default: 16: the paper's 64 gives too few steps)"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--precision", default="bf16", help="of the rival's training (default: bf16)")
    parser.add_argument("--work", type=Path, default=Path(".narrowcast"))
    parser.add_argument("--allow-unsigned", action="store_true", help="of ours")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    ours = Bundle.open(args.bundle, allow_unsigned=args.allow_unsigned)
    images = args.images or ours.manifest.recipe["train"]["images"]
    bundles: list[Path] = []
    run: Path | None = None
    for beta in args.betas:
        count = images if run is None else round(images * FURTHER)
        bundle, run = trained(recipe_of(args.recipe, beta, count, args), args.work, run)
        bundles.append(bundle)
    progress = TerminalProgress(quiet=False)
    mine = evaluate(ours, args.data, codecs=(), progress=progress)
    others = [evaluate(path, args.data, codecs=(), progress=progress, allow_unsigned=True) for path in bundles]
    by: By = "accuracy" if mine.labelled else "agreement"
    result = {"images_seen": images, "betas": args.betas, **compare([mine], others, by)}
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
