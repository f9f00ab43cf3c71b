"""``narrowcast keys enrol``: the keys whose bundles a board takes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from narrowcast.cli.show import TerminalProgress, print_json, print_table
from narrowcast.transport.bundle import read_keys
from narrowcast.transport.errors import ConfigError, KeyFileError

EXAMPLES = """\
  narrowcast keys enrol pi@camera-7                          which keys' bundles the board takes
  narrowcast keys enrol pi@camera-7 --key release-2.pub      one more
  narrowcast keys enrol pi@camera-7 --withdraw 25ae68b9ed5f8d7b
"""


def add_action(actions: Any) -> None:
    """The action's parser."""
    from narrowcast.cli import flashing

    enrol = actions.add_parser("enrol", help="show or change the keys whose bundles a board takes (docs/security.md)")
    enrol.add_argument("board", metavar="USER@HOST")
    enrol.add_argument("--key", type=Path, metavar="FILE.pub", help="take this one's bundles too")
    enrol.add_argument("--withdraw", default="", metavar="ID", help="take this one's no more")
    enrol.add_argument("--yes", action="store_true", help="without a question")
    enrol.add_argument("--json", action="store_true", help="JSON on stdout")
    flashing.add_place(enrol, services=False)
    flashing.add_connection(enrol)


def run(args: argparse.Namespace) -> None:
    """Runs it."""
    from narrowcast.cli import flashing
    from narrowcast.devices.flash import trust

    keys = read_keys(args.key) if args.key is not None else []
    if len(keys) > 1:
        raise KeyFileError(f"{args.key} holds {len(keys)} keys; a board is told of one at a time: a file for each")
    key = keys[0] if keys else None
    observer = flashing.TerminalObserver(TerminalProgress(quiet=args.quiet), yes=args.yes)
    if (key is not None or args.withdraw) and not args.yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody can be asked whether that key is right: --yes carries it out")
        what = f"let {args.board} take bundles of {key.name} ({key.id})" if key else ""
        what += (" and " if what and args.withdraw else "") + (f"withdraw {args.withdraw}" if args.withdraw else "")
        if not flashing.asked(f"Shall I {what}?"):
            return
    found = trust(
        args.board, add=key, remove=args.withdraw, connection=flashing.connection_of(args), target=args.target,
        prefix=args.prefix, observer=observer,
    )  # fmt: skip
    if args.json:
        print_json(found)
    else:
        note = "" if found else "the board trusts nobody yet; the first flash enrols the key of its bundle"
        print_table("", ["key", "id"], [[one["name"], one["id"]] for one in found], note=note)
