"""``narrowcast models``."""

from __future__ import annotations

import argparse
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
