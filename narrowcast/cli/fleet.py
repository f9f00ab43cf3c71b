"""``narrowcast keys ca | issue | rotate | revoke | token``: a fleet's certificates and tokens."""

from __future__ import annotations

import argparse
import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from narrowcast.cli.options import at_least
from narrowcast.cli.show import print_table, stderr
from narrowcast.transport.bundle import keys_folder
from narrowcast.transport.errors import CertificateError, KeyFileError
from narrowcast.transport.files import replacing
from narrowcast.transport.pki.names import AUTHORITY_FILE, REVOKED_FILE
from narrowcast.transport.pki.tokens import add_token, remove_tokens

if TYPE_CHECKING:
    from narrowcast.transport.pki.authority import Authority, Issued

EXAMPLES = """\
  narrowcast keys issue tail --host tail.example --host 192.0.2.7 --out tail-tls/    a server's folder; makes the CA first
  narrowcast keys issue board-7 --out board-7/       a board's folder: narrowcast stream --tls board-7/
  narrowcast keys revoke board-7 --out tail-tls/     the server refuses it from the next second on
  narrowcast keys rotate                             the next CA; --finish drops the old one
  narrowcast keys token board-7 --tokens tokens.txt --out board-7.token
"""
_MAX_DAYS = 36_500  # certificates tell times until the year 9999
_ENDS_SOON = dt.timedelta(days=30)
ACTIONS = ("ca", "issue", "rotate", "revoke", "token")


def add_actions(actions: Any) -> None:
    """The actions' parsers."""
    authority = actions.add_parser("ca", help="make the fleet's CA, or write what is public of it into a folder")
    authority.add_argument("--out", type=Path, metavar="DIR", help=f"write {AUTHORITY_FILE} and {REVOKED_FILE} there")
    _add_days(authority, "15 years")
    issue = actions.add_parser("issue", help="make a folder with certificate, key and CA, for a server or a board")
    issue.add_argument("name", metavar="NAME")
    issue.add_argument(
        "--host", action="append", default=[], metavar="HOST",
        help="DNS name or address of a server (may be repeated); without it the certificate is a client's",
    )  # fmt: skip
    issue.add_argument("--out", type=Path, metavar="DIR", help="default: ./NAME")
    _add_days(issue, "2 years for servers, 5 for clients")
    rotate = actions.add_parser("rotate", help="make the next CA; the old one counts until --finish")
    rotate.add_argument("--finish", action="store_true", help="drop the old CA")
    rotate.add_argument("--force", action="store_true", help="with --finish: although some have no new certificate yet")
    _add_days(rotate, "15 years")
    revoke = actions.add_parser("revoke", help="let a name's certificates, or tokens, count no more")
    revoke.add_argument("name", metavar="NAME")
    revoke.add_argument(
        "--out", type=Path, action="append", default=[], metavar="DIR",
        help="a server's TLS folder to put the list into (may be repeated)",
    )  # fmt: skip
    revoke.add_argument("--serial", metavar="HEX", help="that one alone (narrowcast keys show), not all of the name's")
    revoke.add_argument("--tokens", type=Path, metavar="FILE", help="take its tokens out of this file instead")
    token = actions.add_parser("token", help="make a bearer token; only its hash is kept")
    token.add_argument("name", metavar="NAME")
    token.add_argument("--tokens", type=Path, required=True, metavar="FILE", help="narrowcast serve --tokens FILE")
    token.add_argument("--out", type=Path, metavar="FILE", help="where the token goes (0600), instead of stdout")


def run(args: argparse.Namespace) -> None:
    """Runs one of the actions."""
    {"ca": _ca, "issue": _issue, "rotate": _rotate, "revoke": _revoke, "token": _token}[args.action](args)


def folder() -> Path:
    """Where the CA is."""
    return keys_folder() / "ca"


def _add_days(parser: argparse.ArgumentParser, default: str) -> None:
    number = at_least(1, most=_MAX_DAYS)
    parser.add_argument("--days", type=number, metavar="N", help=f"valid for, {_MAX_DAYS} at most (default: {default})")


def _ca(args: argparse.Namespace) -> None:
    from narrowcast.transport.pki.authority import AUTHORITY_DAYS, Authority

    days = args.days or AUTHORITY_DAYS
    authority, made = (Authority.create(folder(), days), True) if args.out is None else Authority.ensure(folder(), days)
    if made:
        _tell_made(authority)
    elif args.days:
        raise CertificateError(
            "--days is for a CA that is made, and there is one; narrowcast keys rotate makes the next"
        )
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        authority.export(args.out)
        print(f"{args.out}/{AUTHORITY_FILE}, {REVOKED_FILE}    (public; replace those of every server and board)")


def _issue(args: argparse.Namespace) -> None:
    from narrowcast.transport.pki.authority import Authority

    authority, made = Authority.ensure(folder())
    if made:
        _tell_made(authority)
    out = args.out or Path(args.name)
    entry = authority.issue(args.name, out, hosts=args.host, days=args.days)
    what = f"server, for {', '.join(entry.hosts)}" if entry.hosts else "client"
    use = "narrowcast serve --tls" if entry.hosts else "narrowcast stream --tls"
    print(f"{out}/    {entry.name} ({what}), until {entry.ends[:10]}; for: {use} {out}")
    stderr().print("Its tls.key is secret: copy the folder by scp or the like, and delete it here.")


def _rotate(args: argparse.Namespace) -> None:
    from narrowcast.transport.pki.authority import AUTHORITY_DAYS, Authority

    if args.force and not args.finish:
        raise CertificateError("--force goes with --finish; a rotation by itself shuts nobody out")
    if args.days and args.finish:
        raise CertificateError("--days goes with the CA that a rotation makes; --finish makes none")
    authority = Authority.open(folder())
    if not args.finish:
        authority.rotate(args.days or AUTHORITY_DAYS)
        print(f"the CA is now {authority.id}; what the one before it issued still counts")
        _tell_left(authority.left_behind(), "to be issued anew, in any order, then narrowcast keys rotate --finish")
        return
    left = authority.left_behind()
    if left and not args.force:
        names = ", ".join(entry.name for entry in left[:10])
        raise CertificateError(
            f"{len(left)} have no certificate of the new CA yet ({names}{', ...' if len(left) > 10 else ''}): issue them "
            "anew, revoke them, or pass --force and they are shut out"
        )
    authority.finish()
    print(f"the old CA is dropped; only {authority.id} counts")
    print(f"narrowcast keys ca --out DIR writes the new {AUTHORITY_FILE}, for every server and board")


def _revoke(args: argparse.Namespace) -> None:
    if args.tokens is not None:
        if args.out or args.serial:
            raise CertificateError(
                "--out and --serial are about certificates; with --tokens the tokens' file is all that changes"
            )
        count = remove_tokens(args.tokens, args.name)
        print(
            f"{args.name}: {count} token{'s' * (count > 1)} revoked in {args.tokens}; servers take it up by themselves"
        )
        return
    from narrowcast.transport.pki.authority import Authority

    authority = Authority.open(folder())
    revoked = authority.revoke(args.name, args.serial)
    count = len(revoked)
    if any(entry.hosts for entry in revoked):
        stderr().print(
            "boards look at no list: whoever has a server's key can pose as it until its certificate ends. If it was "
            "stolen: narrowcast keys rotate, then keys rotate --finish --force, then keys ca --out DIR for all of them",
            soft_wrap=True,
        )
    print(
        f"{args.name}: {count} certificate{'s' * (count != 1)} revoked{'' if count else ' (all of them were before)'}"
    )
    path = folder() / REVOKED_FILE
    for out in (folder(), *args.out):
        if not out.is_dir():
            raise CertificateError(f"no folder {out}; the list is in {path}")
        with replacing(out / REVOKED_FILE) as file:
            file.write(authority.revocation_list())
    written = ", ".join(str(out / REVOKED_FILE) for out in args.out)
    print(f"written: {written}" if written else f"copy {path} into every server's TLS folder: it counts from then on")


def _token(args: argparse.Namespace) -> None:
    if args.out is not None and args.out.exists():
        raise KeyFileError(f"{args.out} exists; a token is not overwritten")
    token = add_token(args.tokens, args.name)
    if args.out is None:
        print(token)
    else:
        with replacing(args.out, mode=0o600) as file:
            file.write(token.encode() + b"\n")
    where = "" if args.out is None else f", the token itself in {args.out}"
    stderr().print(f"{args.name}: its hash is in {args.tokens}{where}; nobody can show the token again", soft_wrap=True)


def certificates() -> list[dict[str, Any]]:
    """What was issued and has not ended, for ``narrowcast keys show``; empty without a CA."""
    from narrowcast.transport.pki.authority import Authority

    if not (folder() / "authority.pem").exists():
        return []
    authority = Authority.open(folder())
    return [_row(entry, authority) for entry in authority.issued() if not entry.has_ended]


def print_certificates(rows: list[dict[str, Any]]) -> None:
    """The same as a table; nothing without a CA."""
    if not rows:
        return
    table = [
        [
            row["name"],
            ", ".join(row["hosts"]) or "client",
            row["issued"][:10],
            row["ends"][:10],
            ", ".join(row["state"]),
            row["serial"],
        ]
        for row in rows
    ]
    print_table("\nCertificates", ["name", "for", "issued", "ends", "state", "serial"], table)


def _row(entry: Issued, authority: Authority) -> dict[str, Any]:
    ends = dt.datetime.strptime(entry.ends, "%Y-%m-%dT%H:%M:%S%z")
    state = []
    if entry.revoked is not None:
        state.append("revoked")
    elif ends - dt.datetime.now(dt.timezone.utc) < _ENDS_SOON:
        state.append("ends soon")
    if entry.authority != authority.id:
        state.append("of the CA before" if authority.previous is not None else "of a CA that is dropped")
    return {
        "kind": "certificate", "name": entry.name, "hosts": entry.hosts, "issued": entry.issued, "ends": entry.ends,
        "serial": entry.serial, "authority": entry.authority, "revoked": entry.revoked, "state": state or ["counts"],
    }  # fmt: skip


def _tell_made(authority: Authority) -> None:
    stderr().print(
        f"made the fleet's CA, {authority.id}: {authority.folder}/authority.pem (keep it safe, and a copy of it: whoever "
        "has it can let anybody in)",
        soft_wrap=True,
    )


def _tell_left(left: list[Issued], what: str) -> None:
    if left:
        print(f"{what}:")
    for entry in left:
        hosts = "".join(f" --host {host}" for host in entry.hosts)
        print(f"  narrowcast keys issue {entry.name}{hosts}")
