"""``narrowcast report``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from narrowcast.cli.show import print_json, print_table, stderr, stdout
from narrowcast.transport.errors import ConfigError

if TYPE_CHECKING:
    from narrowcast.devices.report.compare import Comparison, Difference

EXAMPLES = """\
examples:
  narrowcast report RUN.json -o report.html             one file that needs no network; report.json beside it
  narrowcast report pi4.json pi5.json -o boards.html    side by side
  narrowcast report RUN.json --json                     the figures on stdout; a page only with -o
  narrowcast report --compare good.json new.json        what got worse beyond noise; exit code 1 if anything did
  narrowcast report --compare good.json new.json --least latency=3,energy=5 --json

RUN.json is written by narrowcast profile. docs/report.md says how to read the plots, what the JSON holds, and when a
difference is a regression.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN.json")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE.html",
        help="the page; its JSON goes beside it (default: report.html)",
    )
    parser.add_argument(
        "--compare", type=Path, nargs=2, metavar=("OLD.json", "NEW.json"),
        help="compare two runs; exit code 1 where something got worse beyond noise",
    )  # fmt: skip
    parser.add_argument(
        "--least", metavar="NAME=PERCENT,...",
        help="the smallest change that matters to --compare; default: latency=5,energy=5,bytes=1,agreement=0.5,answered=0.1",
    )  # fmt: skip
    parser.add_argument("--all", action="store_true", help="with --compare: show what did not change, too")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    if args.compare:
        return _compare(args)
    if args.least or args.all:
        raise ConfigError("--least and --all are for --compare OLD.json NEW.json")
    if not args.runs:
        raise ConfigError("no run record given: narrowcast report RUN.json (narrowcast profile -o RUN.json writes one)")
    from narrowcast.devices.report.data import data
    from narrowcast.devices.report.entries import read_entries
    from narrowcast.devices.report.entry import beside_of, write_report

    output = args.output or (None if args.json else Path("report.html"))
    if output is not None:
        beside_of(output, args.runs)  # first of all: whether it can be called so
    entries = read_entries(args.runs)
    if output is not None:
        beside = write_report(entries, output, args.runs)
        if not args.quiet:
            stderr().print(f"{output} is written, its figures in {beside}", soft_wrap=True)
    if args.json:
        print_json(data(entries))
        return 0
    for entry in entries:
        verdict = entry.run.verdict
        prefix = f"{entry.name}: " if len(entries) > 1 else ""
        for line in verdict.text or ["the run says nothing of what it means"]:
            _say(prefix + line)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from narrowcast.devices.report.compare import compare, least_from
    from narrowcast.devices.report.entries import read_entries

    if args.runs or args.output:
        raise ConfigError("--compare takes two run records and prints; for a page: narrowcast report A.json B.json")
    least = least_from(args.least)
    old, new = read_entries(args.compare)
    found = compare(old, new, least)
    if args.json:
        print_json(found.as_dict())
    else:
        _print(found, everything=args.all)
    return 1 if found.regressions else 0


def _print(found: Comparison, *, everything: bool) -> None:
    shown = [one for one in found.differences if everything or one.outcome != "same"]
    order = {"worse": 0, "better": 1, "cannot tell": 2, "same": 3}
    shown.sort(key=lambda one: order[one.outcome])
    if shown:
        columns = ["", "way", "figure", f">{_clean(found.old.name)}", f">{_clean(found.new.name)}", ">change", "why"]
        print_table("", columns, [[_clean(cell) for cell in _row(one)] for one in shown])
    same = sum(one.outcome == "same" for one in found.differences)
    for line in found.unlike:
        _say(f"not alike: {line}")
    for name, ways in ((found.old.name, found.gone), (found.new.name, found.added)):
        if ways:
            _say(f"only in {name}: {', '.join(ways)}")
    if not found.differences:
        _say("the runs have no way in common: nothing was compared")
        return
    worse = len(found.regressions)
    verdict = "nothing got worse" if not worse else f"{worse} {'figure' if worse == 1 else 'figures'} got worse"
    _say(f"{verdict} beyond noise; {same} of {len(found.differences)} figures are the same within it")


def _clean(text: str) -> str:
    """A record is somebody else's text: none of it steers this terminal."""
    from narrowcast.devices.report.markup import clean

    return clean(text)


def _say(line: str) -> None:
    stdout().print(_clean(line), soft_wrap=True)


def _row(one: Difference) -> list[str]:
    def value(figure: object) -> str:
        return one.quantity.form(getattr(figure, "value", None))

    change = "" if one.change is None else f"{100 * one.change:+.1f} %"
    mark = {"worse": "WORSE", "better": "better", "cannot tell": "?", "same": ""}[one.outcome]
    return [mark, one.title, one.quantity.title, value(one.old), value(one.new), change, one.why or ""]
