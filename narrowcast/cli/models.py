"""``narrowcast models``."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from narrowcast.cli.options import add_tls, seconds
from narrowcast.cli.show import print_json, print_table
from narrowcast.transport.rpc.channels import DEFAULT_PORT, parse_address

EXAMPLES = f"""\
examples:
  narrowcast models
  narrowcast models --at tail.example:{DEFAULT_PORT} --tls board-7/
  narrowcast models --json | jq '.models[].release'

A board's bundle fits where `narrowcast inspect` shows the same model and codec fingerprint.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--at", default=f"127.0.0.1:{DEFAULT_PORT}", metavar="HOST:PORT", help="the server (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout", type=seconds, default=10.0, metavar="S", help="for the server's answer (default: 10)"
    )
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    add_tls(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    models = asyncio.run(_ask(args))
    if args.json:
        print_json({"models": models})
        return 0
    rows = [
        [
            model["name"], str(model["release"]), model["codec"], "x".join(map(str, model["symbols"])),
            str(model["levels"]), ", ".join(model["tails"]), "yes" if model["images"] else "no",
        ]
        for model in models
    ]  # fmt: skip
    print_table("", ["model", ">release", "codec", ">symbols", ">levels", "tails", "images"], rows)
    return 0


async def _ask(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What the server has."""
    from narrowcast.head.models import list_models
    from narrowcast.transport.rpc.credentials import client_tls

    tls = client_tls(args.tls, token_file=args.token_file, server_name=args.tls_name)
    return [
        {
            "name": model.name, "release": model.release, "codec": model.codec_fingerprint.hex(),
            "symbols": list(model.symbols_shape), "levels": model.levels, "tails": list(model.tails),
            "images": model.images,
        }
        for model in await list_models(parse_address(args.at), tls=tls, seconds=args.timeout)
    ]  # fmt: skip
