"""``narrowcast evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from narrowcast.cli.options import PRECISIONS, add_trust, at_least, open_bundle
from narrowcast.cli.show import TerminalProgress, print_json, print_table
from narrowcast.text import human_bytes, percent

if TYPE_CHECKING:
    from narrowcast.compiler.bootstrap import Interval
    from narrowcast.compiler.scores import By, Evaluation, Score

EXAMPLES = """\
examples:
  narrowcast evaluate model.ncb --data photos/
  narrowcast evaluate model.ncb --data photos/ --labels truth.csv --json > curve.json
  narrowcast evaluate model.ncb --data photos/ --by agreement --plot curve.svg --csv curve.csv
  narrowcast evaluate model.ncb --data photos/ --codecs webp,avif --limit 100 --all
  narrowcast evaluate detector.ncb --data scenes/images --labels scenes/annotations.json
  narrowcast evaluate both.ncb --data scenes/images --labels scenes/masks --tail segment

Labels come from labels.csv in the folder (columns file and label) or from class folders; for a detector from
annotations.json (COCO), for a segmenter from a folder of masks, beside the images or by --labels. Without labels, the
agreement with the teacher is what counts; for that the bundle must hold the whole network ([export] whole = true). The
split is put beside JPEG, WebP and AVIF at several qualities and sizes, and beside the best of them. docs/evaluation.md says
how each figure is computed.
"""


UNCODED = ("teacher", "local", "split", "exit")  # in the order of the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("bundle", type=Path, metavar="MODEL.ncb")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a folder of images")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="PATH",
        help="a table (columns file and label), boxes (.json) or a folder of masks",
    )
    parser.add_argument("--tail", default="main", metavar="NAME", help="of a bundle with several (default: main)")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="at most N images, drawn at random")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="of what the device runs (default: fp32)"
    )
    parser.add_argument(
        "--codecs",
        metavar="NAME,...",
        help="of png, jpeg, webp, avif (default: all; they take most of the time), or none",
    )
    parser.add_argument(
        "--by", choices=("accuracy", "agreement"), help="compare by this (default: accuracy where there are labels)"
    )
    parser.add_argument("--all", action="store_true", help="every quality and size of every codec, too")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    parser.add_argument("--csv", type=Path, metavar="FILE.csv", help="write one row per level and setting")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="write the curves, as .svg or .png")
    parser.add_argument(
        "--work", type=Path, default=Path(".narrowcast"), metavar="DIR",
        help="keeps the codecs' results for another run on the same images (default: .narrowcast)",
    )  # fmt: skip
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from narrowcast.compiler.codecs import codecs_named
    from narrowcast.compiler.evaluate import evaluate
    from narrowcast.compiler.plots import check_plot, write_plot
    from narrowcast.compiler.progress import note_skipped

    progress = TerminalProgress(quiet=args.quiet)
    codecs = codecs_named(args.codecs)
    if args.plot:
        check_plot(args.plot)
    bundle = open_bundle(args, "any")
    result = evaluate(
        bundle, args.data, labels=args.labels, limit=args.limit, precision=args.precision, codecs=codecs, by=args.by,
        tail=args.tail, work=args.work, progress=progress,
    )  # fmt: skip
    if result.skipped:
        note_skipped(progress, f"{len(result.skipped)} images cannot be read (--json has all)", result.skipped)
    if result.unlabelled:
        what = f"{len(result.unlabelled)} images of {args.data} have no label and are left out (--json has all)"
        note_skipped(progress, what, result.unlabelled)
    if result.absent:
        progress.note(f"left out, since the installed Pillow cannot write it: {', '.join(result.absent)}")
    if args.json:
        print_json(result.as_dict())
    else:
        _print(result, args)
    # Behind what was measured for minutes: a file that cannot be written must not take it along.
    if args.csv:
        result.write_csv(args.csv)
    if args.plot:
        write_plot(result, args.plot, args.by)
    return 0


def _print(result: Evaluation, args: argparse.Namespace) -> None:
    _print_levels(result, args.data, args.precision)
    _print_beside(result, args.by or result.by)
    if args.all:
        _print_settings(result)
    print(
        "\nBytes are real: packets with their headers, image files as they are sent. In brackets: 95 % intervals over\n"
        "images. docs/evaluation.md says how each figure is computed."
    )


def _print_levels(result: Evaluation, data: Path, precision: str) -> None:
    """The teacher, each level and what the device can do alone, with intervals."""
    exact = result.metric == "top-1"  # then the figures are called by their plain names
    accuracy, agreement = ("accuracy", "agreement") if exact else (result.metric, f"{result.metric} to the teacher")
    rows = [
        [
            _name(score, precision),
            "none" if score.mean_bytes is None else human_bytes(score.mean_bytes),
            _with(percent(score.accuracy), score.accuracy_interval),
            _with(_signed(score.accuracy_gain, ""), score.accuracy_gain_interval),
            _with(percent(score.agreement), score.agreement_interval),
            _error(score.output_error),
        ]
        for score in result.scores
        if score.way in UNCODED
    ]
    print_table(
        f"{result.model}, release {result.release}, {'' if result.tail == 'main' else f'tail {result.tail}, '}"
        f"on {result.images} images of {data}",
        ["way", ">bytes a frame", f">{accuracy}", ">minus the teacher", f">{agreement}", ">output error"],
        rows,
    )


def _print_beside(result: Evaluation, by: By) -> None:
    """What the image codecs take where each level is, and the BD-rates."""
    from narrowcast.compiler.scores import BEST, LOSSY

    comparisons = [found for way in (*LOSSY, BEST) if (found := result.comparison(way, by))]
    if not comparisons:
        return
    best, front = comparisons[-1], result.front(BEST, by)
    rows = []
    for row, level in enumerate(result.of("split")):
        reached, there = level.reached(by), best.bytes_there[row]
        first = next((score for score in front if reached is not None and (score.reached(by) or 0) >= reached), None)
        rows.append(
            [
                f"level {level.setting}",
                human_bytes(level.mean_bytes),
                *(_there(one.bytes_there[row]) for one in comparisons),
                "-" if there is None or level.mean_bytes is None else percent(1 - level.mean_bytes / there),
                "-" if first is None else _setting(first),
            ]
        )
    rows.append(["BD-rate", "", *(_signed(one.bd_rate) for one in comparisons), "", ""])
    rows.append(["  95 % interval, %", "", *(_range(one.bd_rate_interval) for one in comparisons), "", ""])
    rows.append(["  over, %", "", *(_range((one.low, one.high)) for one in comparisons), "", ""])
    names = [f">{one.against}" for one in comparisons]
    figure = "accuracy" if result.metric == "top-1" else result.metric
    title = f"Bytes at equal {figure}" if by == "accuracy" else "Bytes at equal agreement with the teacher"
    print_table(f"\n{title}", ["", ">split", *names, ">saved", "first there"], rows)


def _print_settings(result: Evaluation) -> None:
    """Every setting of every codec."""
    rows = [
        [
            _setting(score),
            human_bytes(score.mean_bytes),
            _with(percent(score.accuracy), score.accuracy_interval),
            _with(percent(score.agreement), score.agreement_interval),
            _error(score.output_error),
            "yes" if score.on_front else "",
        ]
        for score in result.scores
        if score.way not in UNCODED
    ]
    columns = [
        "image codec",
        ">bytes a frame",
        ">accuracy",
        ">agrees with the teacher",
        ">output error",
        "on the front",
    ]
    print_table("\nImage codecs", columns, rows)


def _name(score: Score, precision: str) -> str:
    """``split, level 2``."""
    names = {"local": f"whole on the device, {precision}", "exit": "local exit"}
    return names.get(score.way, score.way) + ("" if score.setting is None else f", level {score.setting}")


def _setting(score: Score) -> str:
    """``avif, quality 40, x 0.75``."""
    quality = "" if score.setting is None else f", quality {score.setting}"
    return f"{score.way}{quality}" + ("" if score.scale in (None, 1.0) else f", x {score.scale:g}")


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.3g}"


def _there(size: float | None) -> str:
    return "not reached" if size is None else human_bytes(size)


def _with(figure: str, interval: Interval | None) -> str:
    """A part with its interval: ``61.0 % (55.3..66.7)``."""
    return figure if interval is None else f"{figure} ({_range(interval)})"


def _range(interval: Interval | tuple[float | None, float | None] | None) -> str:
    """``55.3..66.7``, in percent."""
    if interval is None or interval[0] is None or interval[1] is None:
        return "-"
    return f"{100 * interval[0]:.1f}..{100 * interval[1]:.1f}"


def _signed(part: float | None, unit: str = " %") -> str:
    """``-24.3 %``."""
    return "-" if part is None else f"{100 * part:+.1f}{unit}"
