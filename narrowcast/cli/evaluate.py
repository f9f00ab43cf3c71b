"""``narrowcast evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from narrowcast.cli.options import PRECISIONS, add_trust, at_least, open_bundle
from narrowcast.cli.show import TerminalProgress, print_json, print_table
from narrowcast.text import human_bytes, percent

EXAMPLES = """\
examples:
  narrowcast evaluate model.ncb --data photos/
  narrowcast evaluate model.ncb --data photos/ --labels truth.csv --json > curve.json

Labels come from labels.csv in the folder (columns file and label) or from class folders. Without labels, the agreement
with the teacher is what counts; for that the bundle must hold the whole network ([export] whole = true).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("bundle", type=Path, metavar="MODEL.ncb")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a folder of images")
    parser.add_argument("--labels", type=Path, metavar="FILE.csv", help="columns file and label")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="at most N images, drawn at random")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the head (default: fp32)")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from narrowcast.compiler.evaluate import evaluate

    progress = TerminalProgress(quiet=args.quiet)
    bundle = open_bundle(args, "any")
    result = evaluate(
        bundle, args.data, labels=args.labels, limit=args.limit, precision=args.precision, progress=progress
    )
    if result.skipped:
        progress.note(f"{len(result.skipped)} images skipped; the first: {result.skipped[0]}")
    if args.json:
        print_json(result.as_dict())
        return 0
    rows = [
        [
            score.way,
            "" if score.setting is None else f"{'level' if score.way == 'split' else 'quality'} {score.setting}",
            human_bytes(score.mean_bytes),
            percent(score.accuracy),
            percent(score.agreement),
            "-" if score.output_error is None else f"{score.output_error:.3g}",
        ]
        for score in result.scores
    ]
    print_table(
        f"{result.model}, release {result.release}, on {result.images} images of {args.data}",
        ["way", "setting", ">bytes a frame", ">accuracy", ">agrees with the teacher", ">output error"],
        rows,
        note="\nBytes are real: packets with their headers, image files as they are sent.",
    )
    return 0
