"""Options that several verbs share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from narrowcast.transport.bundle import Bundle, PublicKey, trusted_keys
from narrowcast.transport.bundle.manifest import Precision
from narrowcast.transport.bundle.reader import OpenRole
from narrowcast.transport.bundle.signing import read_keys

PRECISIONS = get_args(Precision)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """``--trust`` and ``--allow-unsigned``."""
    group = parser.add_argument_group("signatures")
    group.add_argument(
        "--trust", type=Path, metavar="FILE.pub", help="trust this key only, not those of the keys folder"
    )
    group.add_argument("--allow-unsigned", action="store_true", help="take bundles that carry no signature")


def add_tls(parser: argparse.ArgumentParser) -> None:
    """``--tls``, ``--tls-name`` and ``--token-file``, for what connects to a server."""
    group = parser.add_argument_group("encryption (docs/security.md)")
    group.add_argument(
        "--tls", type=Path, metavar="DIR", help="of narrowcast keys issue: ca.crt, and tls.crt with tls.key"
    )
    group.add_argument("--tls-name", metavar="NAME", help="in the server's certificate, where it is not that of --to")
    group.add_argument(
        "--token-file", type=Path, metavar="FILE", help="show the token in it (or set NARROWCAST_TOKEN to the token)"
    )


def trusted(args: argparse.Namespace) -> list[PublicKey]:
    """The keys that count."""
    return read_keys(args.trust) if args.trust else trusted_keys()


def open_bundle(args: argparse.Namespace, role: OpenRole) -> Bundle:
    """``args.bundle``, verified for a role."""
    return Bundle.open(args.bundle, role, trusted=trusted(args), allow_unsigned=args.allow_unsigned)


def at_least(least: int, *, most: int | None = None) -> Callable[[str], int]:
    """For argparse: a whole number, ``least`` or more, and no more than ``most``."""

    def convert(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is less than {least}")
        if most is not None and number > most:
            raise argparse.ArgumentTypeError(f"{number} is more than {most}")
        return number

    convert.__name__ = "whole number"  # argparse says: invalid whole number value
    return convert


def seconds(text: str) -> float:
    """For argparse: a finite number, 0 or more."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return number
