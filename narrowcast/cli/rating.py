"""``narrowcast stream``: options of rate control."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from narrowcast.cli.options import at_least
from narrowcast.text import human_bytes
from narrowcast.transport.errors import ConfigError

if TYPE_CHECKING:
    from narrowcast.head.client import Client

Level = int | Literal["auto"]


def level(text: str) -> Level:
    """For argparse: a whole number from 0 on, or ``auto``."""
    return "auto" if text == "auto" else at_least(0)(text)


level.__name__ = "level"  # argparse says: invalid level value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options, as a group."""
    group = parser.add_argument_group("rate (docs/rate-control.md)")
    group.add_argument(
        "--level",
        type=level,
        metavar="N|auto",
        help="rate point; 0 takes the fewest bytes (default: the highest). auto: chosen for each frame by what the link "
        "carries, so that as many as can be are answered rightly before --deadline-ms; what cannot be in time is not sent",
    )
    group.add_argument(
        "--budget",
        metavar="RATE",
        help="on the socket, both ways, on average: 200kbit, 1.5Mbit; frames beyond are not sent",
    )
    group.add_argument(
        "--data-cap", metavar="BYTES/day", help="on the socket, both ways, each day (UTC): 1GB/day; kept over restarts"
    )
    group.add_argument(
        "--data-used",
        type=Path,
        metavar="FILE",
        help="where --data-cap keeps what is used; processes with the same file share the cap (default: data-used.json in "
        "$STATE_DIRECTORY, else in ~/.local/state/narrowcast)",
    )
    group.add_argument(
        "--max-packet-bytes",
        type=at_least(1),
        metavar="N",
        help="a frame whose packet would be larger goes at a lower level, or not at all (default with --level auto: twice "
        "the mean of the highest level)",
    )

    group.add_argument(
        "--offload",
        choices=["auto", "split", "local", "image"],
        help="where frames are answered: split (the default), image (as --way image), local (the uncut network here; "
        "nothing is sent), or auto: frame by frame where most is answered rightly in time, of what is as good the cheapest",
    )
    group.add_argument(
        "--way-joules",
        type=joules,
        metavar="WAY=J,...",
        help="what the board spends on a frame, by way, as narrowcast profile measures it: local=1.9,split=0.4,image=0.3; "
        "with it --offload auto goes by energy instead of time where ways are as good",
    )


def joules(text: str) -> dict[str, float]:
    """For argparse: ``local=1.9,split=0.4``."""
    found: dict[str, float] = {}
    for part in text.split(","):
        way, _, number = part.partition("=")
        try:
            found[way.strip()] = float(number)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{part!r} is not WAY=JOULES, such as local=1.9") from error
    return found


def client_options(args: argparse.Namespace) -> dict[str, Any]:
    """What :class:`Client` takes.

    Raises:
        ConfigError: a rate or cap that is none, or a cap that cannot be kept.
    """
    from narrowcast.head.rate.budget import DailyCap, default_cap_file, parse_cap, parse_rate

    if args.data_used is not None and args.data_cap is None:
        raise ConfigError("--data-used is where --data-cap keeps what is used, which is not given")
    cap = None if args.data_cap is None else DailyCap(parse_cap(args.data_cap), args.data_used or default_cap_file())
    return {
        "level": args.level,
        "budget_kbit": None if args.budget is None else parse_rate(args.budget) * 8 / 1000,
        "data_cap": cap,
        "max_packet_bytes": args.max_packet_bytes,
        "offload": args.offload,
        "way_joules": args.way_joules,
    }


def summary(client: Client) -> str | None:
    """What rate control did, in a line; None where it did nothing."""
    rate, chosen = client.rate, None if client.offload is None else client.offload.summary()
    if rate is None:
        return chosen
    parts = [f"{count} not sent ({reason})" for reason, count in sorted(rate.dropped.items())]
    if rate.downgraded:
        parts.append(f"{rate.downgraded} times a level lower, packets being over {human_bytes(rate.max_packet_bytes)}")
    lines = [chosen] if chosen else []
    return "\n".join([*lines, "rate control: " + ", ".join(parts)] if parts else lines) or None
