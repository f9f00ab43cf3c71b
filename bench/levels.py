"""One encoder for several rates beside one model per rate: bytes at equal accuracy, the same images seen by each.

    python bench/levels.py examples/mobilenet_v2.toml --work .narrowcast --json levels.json [--images 8000] [--rows N]

The recipe's model is trained once with all its levels, and once per level with that level's weight of a bit alone. A
lone model's point is then looked up on the curve through the shared model's levels: how many bytes it takes to reach what
the lone model reaches (agreement with the teacher, divergence of the answers), with 95 % intervals over the held-out images.
Beyond the ends of the curve its last stretch is continued, as the end points seldom match exactly.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from trials import Measured, Trial, changed, keep, kept

from narrowcast.compiler.bootstrap import interval
from narrowcast.compiler.bottlenecks.shallow_residual import rate_weights

SHARED = "shared"


def trials(recipe: Path, images: int) -> dict[str, dict[str, Any]]:
    """The shared model, then one for each of its levels: what is changed in the recipe."""
    weights = rate_weights(changed(recipe, {}).bottleneck)
    train = {"images": images}
    lone = {
        f"level {level}": {"train": train, "bottleneck": {"levels": 1, "rate_weights": [weight, weight]}}
        for level, weight in enumerate(weights)
    }
    return {SHARED: {"train": train}, **lone}


def bytes_for(shared: np.ndarray, reached: np.ndarray, wanted: float) -> float:
    """Bytes at which the shared model's curve, bytes ``[levels]`` over figures ``[levels]``, comes to ``wanted``."""
    order = np.argsort(reached)
    figures, logs = reached[order], np.log(shared[order])
    k = int(np.clip(np.searchsorted(figures, wanted), 1, len(figures) - 1))
    span = figures[k] - figures[k - 1]
    if span == 0:
        return float("nan")
    return float(np.exp(logs[k - 1] + (logs[k] - logs[k - 1]) * (wanted - figures[k - 1]) / span))


def surplus(shared: Measured, lone: Measured, by: str) -> tuple[float, float, float]:
    """By what part the shared model takes more bytes than the lone one where both reach the same, and its interval."""

    def of(sizes: np.ndarray, reached: np.ndarray, size: float, wanted: float) -> float:
        if by == "divergence":
            reached, wanted = -np.log(reached), -float(np.log(wanted))
        return bytes_for(sizes, reached, wanted) / size - 1

    mean = of(np.array(shared.means("bytes")), np.array(shared.means(by)), lone.means("bytes")[0], lone.means(by)[0])
    drawn = zip(shared.drawn["bytes"], shared.drawn[by], lone.drawn["bytes"][:, 0], lone.drawn[by][:, 0], strict=True)
    resampled = [of(*values) for values in drawn]
    return mean, *interval([value for value in resampled if np.isfinite(value)])


def main() -> None:
    parser = argparse.ArgumentParser(description="A model with several rates beside one model per rate.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--work", type=Path, default=Path(".narrowcast"), help="where images and features are kept")
    parser.add_argument("--images", type=int, default=8000, metavar="N", help="shown to each model (default: 8000)")
    parser.add_argument("--rows", type=int, metavar="N", help="train at most N of the models that are missing")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="results are kept there")
    args = parser.parse_args()
    wanted = trials(args.recipe, args.images)
    rows = kept(args.json, args.images)
    for name in [name for name in wanted if name not in rows][: args.rows]:
        rows[name] = Trial(changed(args.recipe, wanted[name]), args.work).figures
        keep(args.json, rows)
    if SHARED not in rows:
        return
    shared = Measured(rows[SHARED])
    print(f"{'':10}{'alone':>34}{'shared':>34}{'more bytes at equal agreement':>34}{'at equal divergence':>30}")
    for level, name in enumerate(name for name in wanted if name != SHARED):
        if name not in rows:
            continue
        lone = Measured(rows[name])
        cells = [
            f"{model.means('bytes')[k]:.0f} B {model.means('agreed')[k]:.1%} {model.means('divergence')[k]:.3f}"
            for model, k in ((lone, 0), (shared, level))
        ]
        found = [surplus(shared, lone, by) for by in ("agreed", "divergence")]
        shown = [f"{mean:+.1%} ({low:+.1%}..{high:+.1%})" for mean, low, high in found]
        print(f"{name:10}{cells[0]:>34}{cells[1]:>34}{shown[0]:>34}{shown[1]:>30}")


if __name__ == "__main__":
    main()
