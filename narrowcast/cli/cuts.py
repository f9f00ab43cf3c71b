"""``narrowcast cuts``."""

from __future__ import annotations

import argparse
from typing import Any

from narrowcast.cli import planning
from narrowcast.cli.options import at_least
from narrowcast.cli.show import print_json, print_table
from narrowcast.text import human_bytes, human_count
from narrowcast.transport.errors import ConfigError

EXAMPLES = """\
examples:
  narrowcast cuts timm:resnet50
  narrowcast cuts my_net.py:load --size 480 640
  narrowcast cuts timm:vit_base_patch16_224 --json | jq '.cuts[].name'
  narrowcast cuts my_net.py:load --data photos/ --uplink 5mbit --rtt 20ms
  narrowcast cuts recipe.toml --slowdown 6 --plot plan.svg
  narrowcast cuts recipe.toml --calibration pi.json
  narrowcast cuts recipe.toml --on pi@192.168.1.20 --python /opt/narrowcast/bin/python

MODEL is timm:NAME, torchvision:NAME, package.module:function, file.py:function, FILE.pt2, or a recipe. Its Python code
runs. Without further options the cuts are listed; with a link or images, or of a recipe, each is measured, and the fastest
way of getting answers is marked: on the board, sending the image, or split. It may be not to split.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("model", metavar="MODEL", help="the network")
    parser.add_argument(
        "--size", nargs="+", type=at_least(1), default=[224], metavar="N", help="input: one side, or height and width"
    )
    parser.add_argument("--all", action="store_true", help="every cut, not only where a module of the network ends")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    planning.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from narrowcast.compiler.cuts import cuts

    if len(args.size) > 2 or min(args.size) < 1:
        raise ConfigError(f"--size takes one or two numbers above 0, not {' '.join(map(str, args.size))}")
    if planning.wanted(args):
        return planning.run(args)
    if args.mean or args.std:
        raise ConfigError("--mean and --std are of images, and there are none to look at: give --data DIR as well")
    table = cuts(args.model, size=(args.size[0], args.size[-1]))
    shown = table.cuts if args.all else table.useful if args.json else table.listed
    if args.json:
        found: dict[str, Any] = {
            "model": table.model,
            "input_size": list(table.input_size),
            "traced_by": table.method,
            "macs": table.macs,
            "params": table.params,
            "remark": table.remark,
            "cuts": [cut.as_dict() for cut in shown],
        }
        print_json(found)
        return 0
    rows = [
        [
            cut.name,
            "x".join(map(str, cut.shape)),
            human_bytes(cut.float_bytes),
            human_count(cut.macs_before),
            f"{100 * cut.macs_before / max(1, table.macs):.0f} %",
            human_count(cut.params_before),
            human_count(cut.macs_after),
            human_count(cut.params_after),
        ]
        for cut in shown
    ]
    size = f"{table.input_size[0]}x{table.input_size[1]}"
    print_table(
        f"{table.model} at {size}: {human_count(table.macs)} MACs, {human_count(table.params)} parameters, "
        f"traced by {table.method}",
        ["cut", ">features", ">as float32", ">MACs before", ">", ">parameters", ">MACs after", ">parameters"],
        rows,
        note=f"\n{len(shown)} of {len(table.cuts)} cuts shown{'' if args.all else ' (--all: every one)'}. "
        'Use a name as [cut] at = "..." in a recipe. A learned encoder replaces or follows the layers before the cut.'
        f"{chr(10) + table.remark if table.remark else ''}",
    )
    return 0
