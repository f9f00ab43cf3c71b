"""``narrowcast flash``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from narrowcast.cli import flashing, fleet_flash
from narrowcast.cli.options import add_trust, at_least
from narrowcast.cli.show import TerminalProgress, print_json, print_table, stdout
from narrowcast.devices.flash.errors import RolledBackError
from narrowcast.transport.errors import ConfigError

EXAMPLES = """\
examples:
  narrowcast flash model.ncb pi@camera-7 --target rpi5 --to tail.example:7433 --source /dev/video0 --tls camera-7/
  narrowcast flash model.ncb pi@camera-7                     another release; configuration and certificate stay
  narrowcast flash model.ncb pi@camera-7 --dry-run           the plan: steps, commands, bytes, what needs root
  narrowcast flash model.ncb pi@camera-7 --yes --json        for CI; --accept-host-key SHA256:... for a new board
  narrowcast flash model.ncb me@box --prefix /home/me/narrowcast --to tail:7433 --source /home/me/inbox/ --gate ready
  narrowcast flash model.ncb --fleet fleet.toml --canary 1 --wave 10 --stop-after 10%   all boards of an inventory
  narrowcast flash status --fleet fleet.toml --group dock
  narrowcast flash status pi@camera-7
  narrowcast flash rollback pi@camera-7
  narrowcast flash logs pi@camera-7 --follow

The board verifies signature and hashes, measures which head is fastest, tests it, switches by renaming one link, and goes
back by itself where the new release does not answer real frames. Losing the connection changes nothing of that. Exit code
3: the board refuses the bundle; 4: it, or its server, is not reached; 5: it went back. docs/flash.md tells every step.
"""
ACTIONS = ("status", "rollback", "logs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("what", metavar="MODEL.ncb | status | rollback | logs")
    parser.add_argument(
        "board", nargs="?", metavar="USER@HOST", help="as ssh takes it: a name of ~/.ssh/config will do; or --fleet"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan; nothing is left on the board")
    parser.add_argument("--yes", action="store_true", help="carry the plan out without a question")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    parser.add_argument("--lines", type=at_least(1), default=200, metavar="N", help="of logs (default: 200)")
    parser.add_argument("--follow", action="store_true", help="logs: go on with those to come")
    flashing.add_contents(parser)
    flashing.add_gate(parser)
    flashing.add_place(parser)
    flashing.add_connection(parser)
    fleet_flash.add_arguments(parser)
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    if (args.fleet is None) == (args.board is None):
        raise ConfigError("narrowcast flash takes a board, or --fleet FLEET.toml: one of them")
    if args.json and args.what == "logs":
        raise ConfigError("narrowcast flash logs prints lines as the board wrote them: leave --json out")
    if args.fleet is not None:
        return fleet_flash.run(args)
    action = {"status": _status, "rollback": _rollback, "logs": _logs}.get(args.what, _flash)
    return action(args)


def _observer(args: argparse.Namespace) -> flashing.TerminalObserver:
    return flashing.TerminalObserver(TerminalProgress(quiet=args.quiet), yes=args.yes)


def _flash(args: argparse.Namespace) -> int:
    from narrowcast.devices.flash import flash

    if not (args.yes or args.dry_run or sys.stdin.isatty()):
        raise ConfigError("nobody can be asked whether the plan is right: --yes carries it out, --dry-run shows it")
    with _telling(args):
        report = flash(
            Path(args.what), args.board, args.target, options=flashing.options_of(args), observer=_observer(args)
        )
    if args.json:
        print_json(report.as_dict())
    elif report.plan is not None:
        _print_plan(report.plan)
    else:
        stdout().print(flashing.report_line(report), soft_wrap=True)
    return 0


@contextmanager
def _telling(args: argparse.Namespace) -> Iterator[None]:
    """With ``--json``, also what a board did that went back."""
    try:
        yield
    except RolledBackError as error:
        if args.json and error.report is not None:
            print_json({**error.report.as_dict(), "error": str(error)})
        raise


def _print_plan(plan: dict[str, object]) -> None:
    import msgspec

    from narrowcast.devices.flash import Plan

    for line in msgspec.convert(plan, Plan).lines():
        stdout().print(line, soft_wrap=True)


def _rollback(args: argparse.Namespace) -> int:
    from narrowcast.devices.flash import rollback

    with _telling(args):
        report = rollback(args.board, options=flashing.options_of(args), target=args.target, observer=_observer(args))
    if args.json:
        print_json(report.as_dict())
    else:
        stdout().print(flashing.report_line(report), soft_wrap=True)
    return 0


def _status(args: argparse.Namespace) -> int:
    from narrowcast.devices.flash import status

    options = flashing.options_of(args)
    found = status(
        args.board, connection=options.connection, target=args.target, prefix=options.prefix, services=options.services,
        observer=_observer(args),
    )  # fmt: skip
    if args.json:
        print_json(found.as_dict())
    else:
        print_table("", ["", ""], flashing.status_rows(found))
    return 0


def _logs(args: argparse.Namespace) -> int:
    from narrowcast.devices.flash import logs

    options = flashing.options_of(args)
    for line in logs(
        args.board, connection=options.connection, target=args.target, prefix=options.prefix, services=options.services,
        lines=args.lines, following=args.follow, observer=_observer(args),
    ):  # fmt: skip
        print(line, flush=args.follow)
    return 0
