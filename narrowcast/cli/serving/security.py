"""``narrowcast serve``: TLS, who may come, and how much each may send."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from narrowcast.cli.options import at_least
from narrowcast.transport.errors import ConfigError, RevocationError
from narrowcast.transport.pki.names import REVOKED_FILE
from narrowcast.transport.pki.revoked import MAX_BYTES, Revoked, parse_revoked
from narrowcast.transport.pki.tokens import read_tokens

if TYPE_CHECKING:
    from narrowcast.tail.access import Access
    from narrowcast.tail.access_callers import Callers
    from narrowcast.tail.access_files import Watched
    from narrowcast.tail.access_limits import ClientLimits, Limits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    group = parser.add_argument_group("security (docs/security.md; files are taken up again when they change)")
    group.add_argument(
        "--tls", type=Path, metavar="DIR",
        help="encrypt, with tls.crt and tls.key of this folder; clients show certificates of its ca.crt, unless --tokens",
    )  # fmt: skip
    group.add_argument("--client-ca", type=Path, metavar="FILE", help="clients' certificates are of this CA instead")
    group.add_argument(
        "--tokens", type=Path, metavar="FILE", help="clients show tokens instead (narrowcast keys token)"
    )
    group.add_argument(
        "--revoked", type=Path, metavar="FILE", help=f"certificates that count no more (default: DIR/{REVOKED_FILE})"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--rate", type=_more_than_0, metavar="N", help="frames a second for each client")
    limits.add_argument("--client-mbit", type=_more_than_0, metavar="M", help="Mbit/s for each client")
    limits.add_argument("--clients", type=Path, metavar="FILE.toml", help="limits by client; see docs/security.md")
    limits.add_argument("--max-client-streams", type=at_least(1), metavar="N", help="open at once, for each client")
    limits.add_argument(
        "--max-streams", type=at_least(1), default=4096, metavar="N", help="open at once, of all (default: 4096)"
    )


def build_access(args: argparse.Namespace) -> Access:
    """What the options say.

    Raises:
        ConfigError: options that do not go together.
        CertificateError, KeyFileError, TokenError, RevocationError: a file that cannot be used.
    """
    from narrowcast.tail.access import Access
    from narrowcast.tail.access_callers import ByAddress
    from narrowcast.tail.access_gate import AccessGate, GateKeeper
    from narrowcast.tail.access_limits import Limits

    _check_options(args)
    limits = _limits(args.clients, Limits(rate=args.rate, mbit=args.client_mbit, streams=args.max_client_streams))
    if args.tls is None:
        gate = AccessGate(ByAddress(), limits, max_streams=args.max_streams)
        return Access(gate, max_streams=args.max_streams, watch=gate.watch)
    from narrowcast.tail.access_tls import ServerFiles, ServerTls

    files = ServerFiles.of_folder(args.tls, client_authority=args.client_ca, clients=args.tokens is None)
    gate = AccessGate(_callers(args, files.client_authority), limits, max_streams=args.max_streams)
    keeper = GateKeeper(gate)
    return Access(
        gate, ServerTls(files).credentials(), authenticates=True, interceptors=[keeper], report=keeper.report,
        max_streams=args.max_streams, watch=gate.watch,
    )  # fmt: skip


def _check_options(args: argparse.Namespace) -> None:
    if args.tls is None:
        for name in ("tokens", "client_ca", "revoked"):
            if getattr(args, name) is not None:
                raise ConfigError(
                    f"--{name.replace('_', '-')} goes with --tls DIR: nothing else says for sure who calls"
                )
    if args.tokens is not None:
        for name in ("client_ca", "revoked"):
            if getattr(args, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} is about certificates; with --tokens clients show none")


def _callers(args: argparse.Namespace, authority: Path | None) -> Callers:
    from narrowcast.tail.access_callers import ByCertificate, ByToken
    from narrowcast.tail.access_files import Watched
    from narrowcast.tail.access_tls import read_authorities

    if authority is None:
        return ByToken(Watched([args.tokens], partial(read_tokens, args.tokens), f"tokens {args.tokens}"))
    authorities = Watched([authority], partial(read_authorities, authority), f"CA {authority}")
    return ByCertificate(_revoked(args.revoked, args.tls / REVOKED_FILE), authorities=authorities)


def _revoked(named: Path | None, usual: Path) -> Watched[dict[int, Revoked]]:
    """The list of a file; where none is named, it may be absent at first, and count from when it appears."""
    from narrowcast.tail.access_files import Watched

    path = named or usual
    read: Callable[[], dict[int, Revoked]] = partial(_read_revoked, path)
    if named is None and not usual.exists():
        return Watched([path], read, f"revocations {path}", initial={})
    return Watched([path], read, f"revocations {path}")


def _read_revoked(path: Path) -> dict[int, Revoked]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RevocationError(f"revocation list {path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise RevocationError(f"revocation list {path} is larger than {MAX_BYTES} bytes")
    return parse_revoked(data, str(path))


def _limits(path: Path | None, default: Limits) -> Watched[ClientLimits]:
    from narrowcast.tail.access_files import Watched
    from narrowcast.tail.access_limits import ClientLimits, read_limits

    if path is None:
        return Watched([], lambda: ClientLimits(default=default), "limits")
    return Watched([path], partial(read_limits, path, default), f"limits {path}")


def _more_than_0(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return number
