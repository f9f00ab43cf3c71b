"""Whether what `narrowcast cuts` predicts is what compilations give: bytes and head time of at least 8 pairs.

    python bench/planner.py --photos photos/ --teacher mobilenet_v2.py          all pairs; a quarter of an hour, once
    python bench/planner.py --photos photos/ --teacher mobilenet_v2.py --json planner.json
    python bench/planner.py                                                     the demo's network alone: 4 pairs

A pair is a network and a cut. Each is compiled for real (`shallow-residual` behind the teacher's own layers, a short
training, a few levels) and kept in `--work`: another run takes what is there. The networks are MobileNetV2 (any file with
a function `load` that returns it, trained, for pixels -1..1) on a folder of photographs, and the demo's own network,
trained here, on its rendered frames.

Real bytes are those of packets on held-out images at one agreement with the teacher for all pairs, between the levels by
interpolation (`docs/evaluation.md`): the highest of 95, 90, 85, ... % that every pair reaches. Which one that is, is
settled by the compilations alone. Predicted are the planner's bytes as it shows them (97 % of the answers kept), and, to see
how the two relate at equal quality, the features' entropy at that same agreement. Head times are predicted with an
untrained head and measured with the bundle's, one right after the other. The exit code is 0 where both rank correlations
(Spearman) are at least 0.7 over at least 8 pairs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from planner_pairs import Network, Real, compile_pair, demo, mobilenet

from narrowcast.cli.show import TerminalProgress
from narrowcast.compiler.bottlenecks import PRESETS, Bottleneck, Problem
from narrowcast.compiler.curves import front
from narrowcast.compiler.cuts import find_cut
from narrowcast.compiler.cuts.trace import trace
from narrowcast.compiler.data import choose, find_images, prepare_images
from narrowcast.compiler.export import export_head
from narrowcast.compiler.modules import Head
from narrowcast.compiler.planner.capture import Captured, capture
from narrowcast.compiler.planner.estimate import CODER_BYTES, LEARNED_RATIO, code_at, from_code
from narrowcast.compiler.planner.timing import median_ms
from narrowcast.compiler.progress import Progress
from narrowcast.compiler.recipe import Recipe
from narrowcast.compiler.teacher import load_teacher
from narrowcast.head.backends import load_backend
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.packet import STREAM_HEADER_BYTES
from narrowcast.transport.selfcheck import reference_frames

WANTED = 0.7
LEAST_PAIRS = 8
KEEP = 0.97
IMAGES = 96
AGREEMENTS = tuple(part / 100 for part in range(95, 25, -5))


@dataclass
class Row:
    """One pair: what was predicted, and what came of it.

    Attributes:
        network, cut: the pair.
        real_bytes: of a packet at the common agreement.
        predicted_bytes: what the planner says.
        feature_bytes: entropy of the features behind that.
        information_bytes: the second view.
        bytes_there: entropy of the features with as many answers kept as the packets keep.
        real_head_ms: of the bundle's head.
        predicted_head_ms: of an untrained one.
    """

    network: str
    cut: str
    real_bytes: float
    predicted_bytes: float
    feature_bytes: float
    information_bytes: float
    bytes_there: float
    real_head_ms: float
    predicted_head_ms: float


def common_agreement(pairs: list[Real]) -> float:
    """The highest of :data:`AGREEMENTS` that every pair reaches."""
    reached = min(max(level["agreement"] for level in real.levels) for real in pairs)
    return next((agreement for agreement in AGREEMENTS if agreement <= reached), reached)


def real_bytes(real: Real, agreement: float) -> float:
    """Of a packet at an agreement, between a pair's levels; those of the smallest level where that is above it."""
    levels = real.levels
    curve = front([level["mean_packet_bytes"] for level in levels], [level["agreement"] for level in levels])
    found = curve.bytes_at(agreement)
    assert found is not None
    return found


def predict(
    network: Network, recipes: list[Recipe], pairs: list[Real], agreement: float, folder: Path, progress: Progress
) -> Iterator[Row]:
    """The rows of one network."""
    recipe = recipes[0]
    teacher = load_teacher(recipe.teacher.model, weights=recipe.teacher.weights)
    traced = trace(teacher, recipe.input.size)
    cuts = [find_cut(traced, one.cut.at) for one in recipes]
    files = choose(find_images(Path(recipe.data.train)), IMAGES, 1)
    frames = prepare_images(files, recipe.input, folder / "work" / "cache", progress).images
    problems = [Problem(traced, cut, recipe.input, torch.device("cpu")) for cut in cuts]
    captured: Captured = capture(traced, problems[0].normalize, frames, cuts, progress)
    for one, real, problem in zip(recipes, pairs, problems, strict=True):
        kept = folder / f"{one.name}-{100 * agreement:.0f}-x{LEARNED_RATIO:g}.row.json"
        if kept.exists():
            yield Row(**json.loads(kept.read_text()))
            continue
        code = code_at(problem, captured, KEEP)
        there = code_at(problem, captured, agreement)
        bottleneck = PRESETS["shallow-residual"].build(problem, one.bottleneck).eval()
        predicted_ms, real_ms = head_times(problem, bottleneck, folder / real.bundle)
        row = Row(
            network=network.name,
            cut=real.cut,
            real_bytes=real_bytes(real, agreement),
            predicted_bytes=from_code(code).packet_bytes,
            feature_bytes=code.entropy_bytes,
            information_bytes=code.information_bytes,
            bytes_there=there.entropy_bytes,
            real_head_ms=real_ms,
            predicted_head_ms=predicted_ms,
        )
        kept.write_text(json.dumps(vars(row)))
        yield row


def head_times(problem: Problem, bottleneck: Bottleneck, file: Path) -> tuple[float, float]:
    """Of an untrained head and of a bundle's, on one thread: the lower of three medians each, in turns.

    The planner takes one median; on a machine that does other things as well, one may be of another moment than the other.
    """
    bundle = Bundle.open(file, allow_unsigned=True)
    size, level = bundle.manifest.input.size, bundle.manifest.codec.levels - 1
    frame = reference_frames(size, 1)[0]
    untrained = export_head(Head(problem.normalize, bottleneck).eval(), size, bottleneck.levels)
    heads = [load_backend("onnxruntime", model, threads=1) for model in (untrained, bundle.read("head", "fp32"))]
    found = np.array([[median_ms(partial(head.run, frame, level)) for head in heads] for _ in range(3)])
    predicted, real = found.min(0).tolist()
    return predicted, real


def summary(rows: list[Row], agreement: float) -> dict[str, Any]:
    """The correlations, and how real bytes lie to predicted ones."""
    from scipy.stats import spearmanr

    def rho(first: str, second: str) -> float:
        return float(spearmanr([getattr(r, first) for r in rows], [getattr(r, second) for r in rows]).statistic)

    overhead = STREAM_HEADER_BYTES + CODER_BYTES
    ratios = [log(max(1.0, row.real_bytes - overhead) / max(1.0, row.bytes_there)) for row in rows]
    low, middle, high = (float(np.exp(np.quantile(ratios, q))) for q in (0.1, 0.5, 0.9))
    return {
        "pairs": len(rows),
        "agreement": agreement,
        "spearman_bytes": rho("predicted_bytes", "real_bytes"),
        "spearman_information": rho("information_bytes", "real_bytes"),
        "spearman_bytes_at_equal_agreement": rho("bytes_there", "real_bytes"),
        "spearman_head_ms": rho("predicted_head_ms", "real_head_ms"),
        "payload_to_features_at_equal_agreement": {"low": low, "median": middle, "high": high},
    }


def networks(args: argparse.Namespace) -> list[Network]:
    """Those that there is data for."""
    found = [demo(args.work)]
    if args.photos and args.teacher:
        found.append(mobilenet(args.teacher.resolve(), args.photos.resolve()))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, metavar="FILE.py", help="MobileNetV2, trained; with --photos")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="a folder of photographs")
    parser.add_argument("--work", type=Path, default=Path(".narrowcast/planner"), help="what is kept between runs")
    parser.add_argument("--threads", type=int, default=2, help="to train with (2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the rows as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    progress = TerminalProgress()
    chosen = networks(args)
    recipes = {network.name: network.recipes() for network in chosen}
    pairs = {
        network.name: [compile_pair(recipe, network.name, args.work, progress) for recipe in recipes[network.name]]
        for network in chosen
    }
    agreement = common_agreement([real for some in pairs.values() for real in some])
    rows: list[Row] = []
    print(
        f"\nagreement with the teacher: {100 * agreement:.0f} % for real bytes, {100 * KEEP:.0f} % for predicted ones\n"
    )
    print(f"{'network':<14}{'cut':<14}{'predicted B':>12}{'real B':>9}{'features B':>12}{'information B':>15}"
          f"{'at equal B':>12}{'head predicted':>16}{'real':>8} ms")  # fmt: skip
    for network in chosen:
        for row in predict(network, recipes[network.name], pairs[network.name], agreement, args.work, progress):
            rows.append(row)
            print(
                f"{row.network:<14}{row.cut:<14}{row.predicted_bytes:>12.0f}{row.real_bytes:>9.0f}"
                f"{row.feature_bytes:>12.0f}{row.information_bytes:>15.0f}{row.bytes_there:>12.0f}"
                f"{row.predicted_head_ms:>16.2f}{row.real_head_ms:>8.2f}",
                flush=True,
            )
    found = summary(rows, agreement)
    print(f"\nSpearman over {found['pairs']} pairs: bytes {found['spearman_bytes']:.2f} "
          f"(information {found['spearman_information']:.2f}; at equal agreement "
          f"{found['spearman_bytes_at_equal_agreement']:.2f}), head time {found['spearman_head_ms']:.2f}")  # fmt: skip
    ratio = found["payload_to_features_at_equal_agreement"]
    print(f"payloads are {ratio['median']:.2f} times the features' entropy at equal agreement, four fifths of them "
          f"{ratio['low']:.2f} to {ratio['high']:.2f}")  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({**found, "rows": [vars(row) for row in rows]}, indent=2) + "\n")
    enough = len(rows) >= LEAST_PAIRS
    return 0 if enough and min(found["spearman_bytes"], found["spearman_head_ms"]) >= WANTED else 1


if __name__ == "__main__":
    sys.exit(main())
