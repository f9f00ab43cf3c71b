"""``narrowcast flash ... --fleet``: many boards."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from narrowcast.cli import flashing
from narrowcast.cli.fleet_show import RolloutView, print_report
from narrowcast.cli.options import at_least
from narrowcast.cli.show import print_json, print_table, stderr
from narrowcast.devices.fleet.inventory import Board, load_inventory, select
from narrowcast.devices.fleet.waves import Threshold, Wave, plan_waves
from narrowcast.text import escaped
from narrowcast.transport.errors import ConfigError, NarrowcastError

if TYPE_CHECKING:
    from narrowcast.devices.flash import BoardStatus
    from narrowcast.devices.fleet.flasher import Flasher

ACTIONS = ("status", "rollback", "logs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--fleet`` and what goes with it."""
    group = parser.add_argument_group("fleets, in place of USER@HOST (docs/fleet.md)")
    group.add_argument("--fleet", type=Path, metavar="FLEET.toml", help="all boards of this inventory")
    group.add_argument("--group", action="append", default=[], metavar="G", help="only those of a group (repeatable)")
    group.add_argument("--only", action="append", default=[], metavar="NAME", help="only this board (repeatable)")
    group.add_argument(
        "--canary", action="append", default=[], metavar="N|NAME",
        help="so many boards, or these (repeatable), before all others; if one of them fails, no other is touched",
    )  # fmt: skip
    group.add_argument(
        "--wave", type=at_least(0), default=10, metavar="N", help="boards in a wave (default: 10; 0 for all)"
    )
    group.add_argument("--parallel", type=at_least(1), default=4, metavar="N", help="boards at a time (default: 4)")
    group.add_argument(
        "--stop-after", default="1", metavar="N|P%|never", help="failed boards, or their part, that end it (default: 1)"
    )
    group.add_argument("--state", type=Path, metavar="FILE", help="how far it is (default: FLEET.state.json)")
    group.add_argument(
        "--afresh", action="store_true", help="do not go on from there; rollback: boards that went back too"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the verb for a fleet."""
    boards = select(load_inventory(args.fleet, args.target), args.group, args.only)
    action = {"status": _status, "rollback": _rollback, "logs": _logs}.get(args.what, _flash)
    return action(args, boards)


def _flash(args: argparse.Namespace, boards: list[Board]) -> int:
    from narrowcast.devices.flash.agent.files import sha256_of
    from narrowcast.devices.fleet.flashing import BundleFlasher
    from narrowcast.transport.bundle import Bundle

    options = flashing.options_of(args)
    bundle = Bundle.open(Path(args.what), "device", trusted=options.trusted, allow_unsigned=options.allow_unsigned)
    what = f"{bundle.manifest.name} release {bundle.manifest.release}"
    return roll(args, boards, BundleFlasher(bundle, options), what, f"flash {sha256_of(bundle.path)}")


def _rollback(args: argparse.Namespace, boards: list[Board]) -> int:
    from narrowcast.devices.fleet.flashing import BackRoller

    return roll(args, boards, BackRoller(flashing.options_of(args), args.afresh), "the release before", "")


def roll(args: argparse.Namespace, boards: Sequence[Board], flasher: Flasher, what: str, rollout: str) -> int:
    """A rollout on the terminal.

    Args:
        args: of :func:`add_arguments`, with ``yes``, ``json``, ``quiet`` and ``dry_run``.
        boards: all of it.
        flasher: does it.
        what: in words.
        rollout: names it in the state file; empty keeps no state, and only the file's lock.
    """
    from narrowcast.devices.fleet.rollout import Rollout
    from narrowcast.devices.fleet.state import RolloutState, held, open_state

    names, count = _canaries(args.canary)
    waves = plan_waves([board.name for board in boards], names, count, args.wave)
    threshold = Threshold.parse(args.stop_after)
    _agree(args, waves, threshold, what)

    @contextmanager
    def state() -> Iterator[RolloutState | None]:
        if args.dry_run:
            yield None
            return
        path = args.state or args.fleet.with_name(f"{args.fleet.stem}.state.json")
        if not rollout:
            with held(path):
                yield None
            return
        with open_state(path, rollout, afresh=args.afresh) as opened:
            yield opened

    with state() as opened, RolloutView(quiet=args.quiet) as view:
        report = Rollout(
            boards, waves, flasher, parallel=args.parallel, threshold=threshold, state=opened, dry_run=args.dry_run,
            changed=view.changed,
        ).run()  # fmt: skip
    if args.json:
        print_json(report.as_dict())
    else:
        print_report(report)
    return report.exit_code


def _canaries(words: list[str]) -> tuple[list[str], int]:
    if len(words) == 1 and words[0].isdecimal():
        return [], int(words[0])
    return words, 0


def _agree(args: argparse.Namespace, waves: Sequence[Wave], threshold: Threshold, what: str) -> None:
    """Shows what is about to happen; asks, where that is wanted."""
    lines = [f"{wave.title}: {', '.join(wave.names)}" for wave in waves]
    lines.append(f"{args.parallel} at a time; stops after: {threshold}")
    if args.dry_run or args.yes:
        if not args.quiet:
            _say(f"{what}, to {sum(len(wave.names) for wave in waves)} boards", lines)
        return
    if not sys.stdin.isatty():
        raise ConfigError("nobody can be asked whether the plan is right: --yes carries it out, --dry-run shows it")
    _say(f"{what}, to {sum(len(wave.names) for wave in waves)} boards", lines)
    if not flashing.asked("Carry this out?"):
        from narrowcast.devices.flash.errors import DeclinedError

        raise DeclinedError("the fleet was left as it is")


def _say(title: str, lines: Sequence[str]) -> None:
    for line in (title, *(f"  {line}" for line in lines)):
        stderr().print(escaped(line), soft_wrap=True)


def _status(args: argparse.Namespace, boards: list[Board]) -> int:
    from narrowcast.devices.fleet.flashing import board_status

    options = flashing.options_of(args)
    found = _each(args, boards, lambda board: board_status(board, options))
    if args.json:
        print_json({"boards": [_as_json(board, one) for board, one in zip(boards, found, strict=True)]})
    else:
        columns = ["board", "runs", "daemon", "server", ">answered", ">captured", "last flash"]
        rows = [[board.name, *_status_row(one)] for board, one in zip(boards, found, strict=True)]
        print_table("", columns, rows)
    return max((one.exit_code for one in found if isinstance(one, NarrowcastError)), default=0)


def _as_json(board: Board, found: BoardStatus | NarrowcastError) -> dict[str, Any]:
    said = {"error": str(found)} if isinstance(found, NarrowcastError) else found.as_dict()
    return {"name": board.name, "groups": list(board.groups), "destination": board.destination, **said}


def _status_row(found: BoardStatus | NarrowcastError) -> list[str]:
    if isinstance(found, NarrowcastError):
        return ["?", str(found), "", "", "", ""]
    daemon = found.daemon or {}
    ledger = daemon.get("ledger") or {}
    last = found.last or {}
    state = "ready" if daemon.get("ready") else "not ready" if found.service.get("active") else "does not run"
    return [
        str((found.current or {}).get("id") or "nothing"), state, str(daemon.get("server") or "none"),
        str(ledger.get("answered", "-")), str(ledger.get("captured", "-")), str(last.get("outcome") or "-"),
    ]  # fmt: skip


def _logs(args: argparse.Namespace, boards: list[Board]) -> int:
    from narrowcast.devices.flash import logs
    from narrowcast.devices.fleet.flashing import options_of

    if args.follow:
        raise ConfigError("--follow is for one board: narrowcast flash logs USER@HOST --follow")
    given, lock = flashing.options_of(args), threading.Lock()

    def one(board: Board) -> None:
        options = options_of(board, given)
        lines = list(logs(
            board.destination, connection=options.connection, target=board.target, prefix=options.prefix,
            services=options.services, lines=args.lines,
        ))  # fmt: skip
        with lock:
            for line in lines:
                print(f"{board.name}: {line}")

    found = _each(args, boards, one)
    for board, error in zip(boards, found, strict=True):
        if isinstance(error, NarrowcastError):
            _say(f"{board.name}: {error}", [])
    return max((one.exit_code for one in found if isinstance(one, NarrowcastError)), default=0)


def _each(
    args: argparse.Namespace, boards: Sequence[Board], ask: Callable[[Board], Any]
) -> list[Any | NarrowcastError]:
    """What every board answers, in order; an error where one does not."""

    def safely(board: Board) -> Any | NarrowcastError:
        try:
            return ask(board)
        except NarrowcastError as error:
            return error

    with ThreadPoolExecutor(max_workers=args.parallel) as pool:
        return list(pool.map(safely, boards))
