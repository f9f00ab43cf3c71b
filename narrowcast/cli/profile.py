"""``narrowcast profile``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from narrowcast.cli.options import PRECISIONS, add_tls, add_trust, at_least, open_bundle, seconds
from narrowcast.cli.show import print_json, stdout
from narrowcast.devices.profile.figures import Kind
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.structs import nearest

if TYPE_CHECKING:
    from narrowcast.devices.profile.schema import Run
    from narrowcast.devices.profile.settings import ProfileSettings

EXAMPLES = """\
examples:
  narrowcast profile model.ncb --to 192.168.1.20:7433 --data photos/
  narrowcast profile model.ncb --to server:7433 --data photos/ --link 3g --link lte --link wifi
  narrowcast profile model.ncb --to server:7433 --no-real --link 2mbit/512kbit,40ms,5ms
  narrowcast profile model.ncb --to server:7433 --ways local,split --levels 0,2 --loaded-s 60 -o RUN.json
  narrowcast profile model.ncb --to server:7433 --meter ina219:bus=1,address=0x40,shunt_ohm=0.1
  narrowcast profile model.ncb --ways local --json              the board alone
  narrowcast profile model.ncb --to server:7433 --root board.jsonl      a recorded board's power

Every way really runs, on the same frames, in short turns: the whole network on the board, JPEG and WebP sent to the whole
network on the server, and the split at each level. Nothing is a sum of parts. docs/profiling.md says how it is measured.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("bundle", type=Path, metavar="MODEL.ncb")
    parser.add_argument(
        "--to", metavar="HOST:PORT", help="the tail server; without one, only what runs on the board alone"
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("RUN.json"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="the record on stdout as well, in place of tables")
    _add_what(parser)
    _add_time(parser)
    _add_board(parser)
    add_tls(parser)
    add_trust(parser)


def _add_what(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what runs")
    what.add_argument("--data", metavar="DIR", help="images to run on (default: drawn ones, whose bytes mean little)")
    what.add_argument("--limit", type=at_least(1), default=200, metavar="N", help="different frames (default: 200)")
    what.add_argument(
        "--read-each", action="store_true", help="read and decode the file of every frame, as part of its way"
    )
    what.add_argument(
        "--ways",
        type=_list_of(_kind),
        metavar="KIND,...",
        help="of local, exit, image, split (default: all that there are)",
    )
    what.add_argument("--levels", type=_list_of(int), metavar="N,...", help="of splits (default: all)")
    what.add_argument(
        "--codecs", type=_list_of(_codec), default=["jpeg", "webp"], metavar="NAME,...", help="of images: jpeg, webp"
    )
    what.add_argument(
        "--qualities", type=_list_of(int), default=[50, 75, 90], metavar="Q,...", help="of images (default: 50,75,90)"
    )
    what.add_argument(
        "--link", dest="links", action="append", default=[], metavar="LINK",
        help="also over this emulated link: a preset (3g, lte, wifi, lora, ...) or its figures; may be repeated",
    )  # fmt: skip
    what.add_argument("--no-real", action="store_true", help="not over the network as it is")
    what.add_argument(
        "--window", type=at_least(2), default=8, metavar="N", help="frames in flight, with several (default: 8)"
    )
    what.add_argument(
        "--deadline-ms", type=at_least(1), default=30_000, metavar="MS", help="then a frame has failed (default: 30000)"
    )


def _add_time(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("for how long")
    group.add_argument(
        "--loaded-s",
        type=seconds,
        default=30.0,
        metavar="S",
        help="counted, of each way (default: 30; less is a warning)",
    )
    group.add_argument(
        "--windowed-s", type=seconds, metavar="S", help="with several frames in flight (default: a fifth; 0: none)"
    )
    group.add_argument(
        "--idle-s", type=seconds, metavar="S", help="before and after (default: 10, and 0 where power is not measured)"
    )
    group.add_argument("--warm-up-s", type=seconds, default=5.0, metavar="S", help="of all ways in turn (default: 5)")
    group.add_argument("--settle-s", type=seconds, default=2.0, metavar="S", help="before idle after (default: 2)")
    group.add_argument("--rounds", type=at_least(1), metavar="N", help="turns of each way (default: 12)")
    group.add_argument(
        "--lead-s", type=seconds, default=0.5, metavar="S", help="uncounted, of each turn (default: 0.5)"
    )
    group.add_argument("--seed", type=at_least(0), default=0, metavar="N", help="of the order of turns (default: 0)")


def _add_board(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the board")
    group.add_argument("--target", metavar="T", help="the kind of board, or a file of your own (default: recognised)")
    group.add_argument(
        "--meter", metavar="NAME:SETTINGS", help="a meter on the supply instead of the board's own sensors"
    )
    group.add_argument("--hz", type=seconds, metavar="HZ", help="samples of power a second (default: the sensor's own)")
    group.add_argument("--root", default="/", metavar="PATH", help="take power and conditions of a recorded board")
    group.add_argument("--architecture", choices=["aarch64", "x86_64"], help="of a recorded folder")
    group.add_argument(
        "--backend",
        choices=["onnxruntime", "tensorrt"],
        help="runs networks (default: the best for this board that loads)",
    )
    group.add_argument(
        "--precision",
        choices=["auto", *PRECISIONS],
        default="auto",
        help="of the head (default: auto, the fastest here)",
    )
    group.add_argument(
        "--whole-precision", choices=["auto", *PRECISIONS], default="auto", help="of the whole network (default: auto)"
    )
    group.add_argument("--threads", type=at_least(0), default=0, metavar="N", help="default: the library's choice")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from narrowcast.cli.live import watching
    from narrowcast.devices.errors import UnwrittenRunError
    from narrowcast.devices.profile.entry import profile
    from narrowcast.transport.rpc.credentials import client_tls

    _check_output(args.output)
    settings = settings_of(args)
    if settings.root == "/":
        _check_idle(settings.target)
    tls = client_tls(args.tls, token_file=args.token_file, server_name=args.tls_name)
    bundle = open_bundle(args, "device")
    try:
        with watching(quiet=args.quiet) as observer:
            result = profile(
                bundle, args.to, settings, output=args.output, tls=tls, observer=observer, more_words=_more_words(args)
            )  # fmt: skip
    except UnwrittenRunError as error:  # a full disk must not take along what was measured for minutes
        _print(error.run, args)
        raise error.disk from None
    _print(result, args)
    if not args.json:
        said = f"\n{args.output} has all of it: narrowcast report {args.output} -o report.html"
        stdout().print(said, soft_wrap=True)
    return 0


def _print(run: Run, args: argparse.Namespace) -> None:
    from narrowcast.cli.run_table import print_run

    if args.json:
        print_json(msgspec.to_builtins(run))
    else:
        print_run(run)


def settings_of(args: argparse.Namespace) -> ProfileSettings:
    """The options, checked.

    Raises:
        ConfigError: they do not go together.
    """
    from narrowcast.devices.profile.settings import ProfileSettings

    given = {field: getattr(args, field) for field in ProfileSettings.__struct_fields__ if hasattr(args, field)}
    if not args.loaded_s > 0:
        raise ConfigError("--loaded-s is more than 0")
    if args.hz is not None and not args.hz > 0:
        raise ConfigError("--hz is more than 0")
    if args.to is None and (args.links or args.no_real):
        raise ConfigError("--link and --no-real say how the server is reached: --to HOST:PORT says where it is")
    return ProfileSettings(**given, real=not args.no_real)


def _more_words(args: argparse.Namespace) -> list[str]:
    """What reproduces the run and is no setting of the profiler's. No token: that is a secret; its file is named."""
    named = {"--tls": args.tls, "--tls-name": args.tls_name, "--token-file": args.token_file, "--trust": args.trust}
    words = [word for option, value in named.items() if value is not None for word in (option, str(value))]
    return words + (["--allow-unsigned"] if args.allow_unsigned else [])


def _check_output(path: Path) -> None:
    """Now, and not after ten minutes of measuring.

    Raises:
        ConfigError: nothing can be written there.
    """
    folder = Path(os.path.realpath(path)).parent
    if path.is_dir():
        raise ConfigError(f"-o {path} is a folder; name a file in it")
    if path.exists() and not path.is_file():  # a device is written to as it is
        return
    if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise ConfigError(f"-o {path}: nothing can be written to {folder}")


def _check_idle(target: str | None) -> None:
    """Whoever measures beside a flash measures both, and what it does to the daemon.

    Raises:
        BusyError: this board is being flashed.
    """
    from narrowcast.devices.flash.agent.locks import holder
    from narrowcast.devices.flash.board import layout_of
    from narrowcast.devices.flash.errors import BusyError
    from narrowcast.devices.targets import DeployPaths, load_target

    layout = layout_of("", load_target(target).paths if target else DeployPaths())
    if who := holder(layout.flash / "work.lock"):
        raise BusyError(f"this board is being flashed by {who}; profile it when that has ended")


def _list_of(convert: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def parse(text: str) -> list[Any]:
        return [convert(word.strip()) for word in text.split(",") if word.strip()]

    parse.__name__ = "list"
    return parse


def _choice(text: str, known: list[str]) -> str:
    if text not in known:
        raise argparse.ArgumentTypeError(f"no {text!r}{nearest(text, known)}")
    return text


def _kind(text: str) -> str:
    return _choice(text, list(get_args(Kind)))


def _codec(text: str) -> str:
    return _choice(text, ["jpeg", "webp"])
