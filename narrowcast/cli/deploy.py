"""``narrowcast deploy``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from narrowcast.cli import error_line, flashing, profile
from narrowcast.cli.compile import signing_key
from narrowcast.cli.show import TerminalProgress, print_json, print_table
from narrowcast.transport.errors import ConfigError

if TYPE_CHECKING:
    from narrowcast.deploy.stages import Deployment

EXAMPLES = """\
examples:
  narrowcast deploy recipe.toml --dry-run          what each stage would do; boards are asked, nothing is changed
  narrowcast deploy recipe.toml --yes              compile, publish, flash, profile, report
  narrowcast deploy recipe.toml --skip profile --skip report
  narrowcast deploy recipe.toml --yes --json       for CI

[deploy] in the recipe says where to: docs/deploy.md. What an earlier run did is kept where it still holds, so the same
command goes on where it was interrupted, and does nothing where nothing has changed. Exit codes: those of the verb that
failed (3: refused, 4: not reached, 5: the board went back).
"""
_WORDS = {"done": "done", "kept": "kept", "off": "-", "planned": "planned", "failed": "FAILED", "begun": "..."}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="STAGE",
        help="compile, publish, flash, profile or report (repeatable)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done; nothing is changed anywhere")
    parser.add_argument("--yes", action="store_true", help="flash without a question")
    parser.add_argument("--afresh", action="store_true", help="do everything again, whatever an earlier run did")
    parser.add_argument(
        "--replace", action="store_true", help="publish over another bundle of the same name and release"
    )
    parser.add_argument(
        "--work", type=Path, default=Path(".narrowcast"), help="kept between runs (default: .narrowcast)"
    )
    parser.add_argument(
        "--key", type=Path, metavar="FILE.key", help="sign with this key, not the keys folder's signing.key"
    )
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    flashing.add_gate(parser)
    flashing.add_connection(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    if not (args.yes or args.dry_run or sys.stdin.isatty()):
        raise ConfigError("nobody can be asked whether the plan is right: --yes carries it out, --dry-run shows it")
    _check_profile(args.recipe)
    _agree(args)
    from narrowcast.deploy import DeployOptions, Observer, StageResult, deploy
    from narrowcast.devices.fleet.results import BoardResult

    progress = TerminalProgress(quiet=args.quiet)

    class Telling(Observer):
        def stage(self, result: StageResult) -> None:
            progress.note(f"{result.name}: {_WORDS[result.state]} {result.detail}")

        def board(self, result: BoardResult) -> None:
            if result.state not in ("waiting", "running"):
                progress.note(f"  {result.name}: {result.state} {result.detail}")

    observer = Telling()
    observer.progress = progress
    observer.flash = flashing.TerminalObserver(progress, yes=args.yes)
    options = replace(flashing.options_of(args), dry_run=args.dry_run)
    found = deploy(
        args.recipe,
        DeployOptions(
            key=signing_key(args.key, progress, dry_run=args.dry_run), work=args.work, skip=args.skip, afresh=args.afresh,
            replace=args.replace, dry_run=args.dry_run, flash=options,
        ),
        observer,
    )  # fmt: skip
    if args.json:
        print_json(found.as_dict())
    else:
        _print(found)
    if found.error:
        print(error_line(found.error), file=sys.stderr)
    return found.exit_code


class _Checking(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"[deploy.profile] options: {message}; narrowcast profile --help lists them")


def _check_profile(recipe: Path) -> None:
    """The profile comes last, hours after the start.

    Raises:
        ConfigError: ``narrowcast profile`` does not take the recipe's options.
    """
    from narrowcast.compiler.recipe import load_deployment
    from narrowcast.deploy.measure import option_words

    parser = _Checking(add_help=False)
    profile.add_arguments(parser)
    for everywhere in ("--quiet", "--debug"):
        parser.add_argument(everywhere, action="store_true")
    parser.parse_args(["MODEL.ncb", *option_words(load_deployment(recipe).profile.options)])


def _agree(args: argparse.Namespace) -> None:
    """Asks about a fleet before anything is compiled; about a single board its plan asks."""
    from narrowcast.compiler.recipe import load_deployment

    fleet = load_deployment(args.recipe).fleet
    if fleet is None or args.yes or args.dry_run or "flash" in args.skip:
        return
    if not flashing.asked(f"This ends with flashing the boards of {fleet.inventory} (--dry-run shows them). Go on?"):
        from narrowcast.devices.flash.errors import DeclinedError

        raise DeclinedError("nothing was done")


def _print(found: Deployment) -> None:
    rows = [
        [stage.name, _WORDS[stage.state], "-" if stage.seconds is None else f"{stage.seconds:.0f} s", stage.detail]
        for stage in found.stages
    ]
    title = f"{found.model} release {found.release}" if found.model else "to be compiled first"
    print_table(f"{title}: {found.bundle}", ["stage", "", ">time", ""], rows)
