"""How frames wait, and how long streams stay."""

from __future__ import annotations

import argparse
from typing import Any

from narrowcast.cli.options import at_least, seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The part's options."""
    group = parser.add_argument_group("queue and streams")
    group.add_argument(
        "--max-queue", type=at_least(1), default=1024, metavar="N",
        help="frames that may wait for each model; more are refused, with a time to try again (default: 1024)",
    )  # fmt: skip
    group.add_argument(
        "--max-client-queue", type=at_least(1), metavar="N", help="of one client (default: half of --max-queue)"
    )
    group.add_argument(
        "--max-connection-age", type=_age, metavar="S",
        help="ask each stream to move after so long, a tenth more or less (default: never)",
    )  # fmt: skip


def server_options(args: argparse.Namespace) -> dict[str, Any]:
    """What :class:`narrowcast.tail.server.TailServer` takes of them."""
    from narrowcast.tail.stream import Ageing

    return {
        "max_queue": args.max_queue,
        "max_client_queue": args.max_client_queue,
        "ageing": Ageing(args.max_connection_age, args.drain_timeout),
    }


def _age(text: str) -> float:
    age = seconds(text)
    if age < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than a second")
    return age
