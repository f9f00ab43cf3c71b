"""Options of ``narrowcast stream`` for where frames come from, and where they go while no server answers."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from narrowcast.cli.options import at_least, seconds
from narrowcast.transport.errors import ConfigError

if TYPE_CHECKING:
    from narrowcast.head.client import Client
    from narrowcast.head.sources import Captured, Feed, Source
    from narrowcast.head.spool import Spool

MIB = 1024 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Two groups of options."""
    group = parser.add_argument_group("source (docs/sources.md)")
    group.add_argument("--watch", action="store_true", help="go on with images that appear in the folder, for ever")
    group.add_argument("--raw", metavar="WxH[:LAYOUT]", help="raw frames, such as 640x480:nv12 (default layout: rgb)")
    group.add_argument("--fps", type=positive, metavar="N", help="frames a second, at most")
    group.add_argument("--camera-size", metavar="WxH", help="of a camera's pictures (default: its own)")
    group.add_argument(
        "--watchdog",
        type=positive,
        default=20.0,
        metavar="S",
        help="open a camera or stream again that has brought no frame for so long (default: 20)",
    )
    outage = parser.add_argument_group("while no server answers (docs/client.md)")
    outage.add_argument(
        "--on-outage",
        choices=["drop", "block", "local", "spool"],
        help="what becomes of a frame that is not answered within --exit-after (default: local where the bundle has a local "
        "exit; else frames wait, and all ends after --give-up)",
    )
    outage.add_argument("--spool", type=Path, metavar="DIR", help="a folder of its own, with --on-outage spool")
    outage.add_argument("--spool-mib", type=at_least(1), default=256, metavar="N", help="its bound (default: 256)")
    outage.add_argument("--spool-hours", type=positive, metavar="H", help="drop what is older (default: nothing)")
    outage.add_argument(
        "--spool-overflow",
        choices=["oldest", "newest"],
        default="oldest",
        help="what goes where it is full, or the disk (default: oldest)",
    )
    outage.add_argument(
        "--spool-sync",
        choices=["always", "interval", "segment"],
        default="interval",
        help="what a power loss may take: nothing, a second, a segment (default: interval)",
    )
    outage.add_argument(
        "--drain",
        type=seconds,
        default=0.0,
        metavar="S",
        help="at the end, wait so long for the spool to be sent (default: 0)",
    )


def positive(text: str) -> float:
    """For argparse: a finite number above 0."""
    number = seconds(text)
    if not number:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def source_of(args: argparse.Namespace, on_trouble: Callable[[str], None]) -> Source:
    """What ``args.source`` names."""
    from narrowcast.head.sources import open_source
    from narrowcast.head.sources.raw import RawForm

    raw = None if args.raw is None else RawForm.parse(args.raw)
    return open_source(args.source, watch=args.watch, raw=raw, size=args.camera_size, on_trouble=on_trouble)


@contextlib.contextmanager
def feed_of(
    source: Source, args: argparse.Namespace, client: Client, on_trouble: Callable[[str], None]
) -> Iterator[Feed]:
    """The source, running."""
    from narrowcast.head.sources import Feed

    with Feed(
        source, fps=args.fps, watchdog_seconds=args.watchdog, on_trouble=on_trouble,
        on_drop=lambda: client.ledger.drop("overtaken"),
    ) as feed:  # fmt: skip
        yield feed


def named(feed: Feed, names: dict[int, str]) -> Iterator[Captured]:
    """The feed's frames; their names go to ``names``, by the id that the client will give them."""
    for count, frame in enumerate(feed):
        names[count] = frame.name
        yield frame


@contextlib.contextmanager
def spool_of(args: argparse.Namespace) -> Iterator[Spool | None]:
    """The spool, where there is to be one.

    Raises:
        ConfigError: ``--spool`` without ``--on-outage spool``, or the other way round.
        SpoolError: its folder cannot be used.
    """
    if (args.spool is not None) != (args.on_outage == "spool"):
        raise ConfigError("--on-outage spool wants --spool DIR, and --spool DIR --on-outage spool")
    if args.spool is None:
        yield None
        return
    from narrowcast.head.spool import Spool

    with Spool(
        args.spool, max_bytes=args.spool_mib * MIB, overflow=args.spool_overflow, sync=args.spool_sync,
        max_age_seconds=None if args.spool_hours is None else args.spool_hours * 3600,
    ) as spool:  # fmt: skip
        yield spool
