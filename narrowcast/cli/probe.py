"""``narrowcast probe``."""

from __future__ import annotations

import argparse
from pathlib import Path

from narrowcast.cli.show import print_json, print_table, stdout
from narrowcast.text import human_bytes

EXAMPLES = """\
examples:
  narrowcast probe
  narrowcast probe --json
  narrowcast probe --targets
  narrowcast probe --root recorded-board/ --architecture aarch64
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--targets", action="store_true", help="list the kinds of board that narrowcast knows")
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="a recorded board's files")
    parser.add_argument("--architecture", choices=["aarch64", "x86_64"], help="of a recorded board")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    if args.targets:
        return _targets(args.json)
    from narrowcast.devices.probe import probe

    board = probe(args.root, architecture=args.architecture)
    if args.json:
        print_json(board.as_dict())
        return 0
    console = stdout()
    backends = ", ".join(f"{name} {version}" for name, version in board.backends.items() if version) or "none installed"
    facts = {
        "board": board.model or "no device tree: a PC or a virtual machine",
        "target": f"{board.target} ({board.title})" if board.target else "none that narrowcast knows",
        "cpu": f"{board.cpus} x {board.architecture}",
        "memory": human_bytes(board.memory_bytes),
        "system": f"{board.os or 'unknown'}, kernel {board.kernel or 'unknown'}, Python {board.python}",
        "backends": backends,
        "coder": "C kernel" if board.coder == "c" else "Python (slow: no C kernel was built)",
    }
    for name, value in facts.items():
        console.print(f"{name:<9} {value}", soft_wrap=True)
    for measure in board.measures:
        now = ", ".join(f"{rail} {value:.0f}" for rail, value in (measure.now or {}).items())
        line = f"{measure.by}: {now}" if now else "cannot be measured"
        console.print(f"{measure.what:<9} {line}{f' ({measure.why_not})' if measure.why_not else ''}")
    return 0


def _targets(as_json: bool) -> int:
    import msgspec

    from narrowcast.devices.targets import load_target, target_names

    targets = [load_target(name) for name in target_names()]
    if as_json:
        print_json([msgspec.to_builtins(target) for target in targets])
        return 0
    rows = [
        [t.name, t.title, t.architecture, ", ".join(t.backends), ", ".join(t.precisions), t.power.sensor or "-"]
        for t in targets
    ]
    print_table("", ["target", "board", "architecture", "backends", "precisions", "power sensor"], rows)
    return 0
