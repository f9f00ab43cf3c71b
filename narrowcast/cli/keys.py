"""``narrowcast keys``."""

from __future__ import annotations

import argparse
from pathlib import Path

from narrowcast.cli import enrolment, fleet
from narrowcast.cli.options import add_trust, open_bundle
from narrowcast.cli.show import print_json, print_table
from narrowcast.transport.bundle import SecretKey, keys_folder, read_keys, sign_bundle
from narrowcast.transport.errors import KeyFileError
from narrowcast.transport.files import replacing

EXAMPLES = f"""\
examples:
  narrowcast keys new release             a key pair; bundles signed with it are trusted on this machine
  narrowcast keys show                    which keys are here
  narrowcast keys trust colleague.pub     trust somebody else's key on this machine
  narrowcast keys sign model.ncb --key ~/.config/narrowcast/keys/release.key
  narrowcast keys verify model.ncb        exit code 3 if the bundle must not be used
{fleet.EXAMPLES}{enrolment.EXAMPLES}
Keys live in $NARROWCAST_KEYS, else ~/.config/narrowcast/keys. FILE.key signs and stays secret; FILE.pub goes to servers
and boards. The fleet's CA is in the folder ca/ there. docs/security.md tells what protects against what.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    new = actions.add_parser("new", help="make a key pair")
    new.add_argument("name", nargs="?", default="signing")
    actions.add_parser("show", help="list the keys").add_argument("--json", action="store_true")
    actions.add_parser("trust", help="trust a public key").add_argument("file", type=Path, metavar="FILE.pub")
    sign = actions.add_parser("sign", help="sign a bundle")
    sign.add_argument("bundle", type=Path, metavar="MODEL.ncb")
    sign.add_argument("--key", type=Path, metavar="FILE.key")
    verify = actions.add_parser("verify", help="check a bundle's signature and parts")
    verify.add_argument("bundle", type=Path, metavar="MODEL.ncb")
    add_trust(verify)
    enrolment.add_action(actions)
    fleet.add_actions(actions)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    if args.action in fleet.ACTIONS:
        fleet.run(args)
        return 0
    actions = {
        "new": _new, "show": _show, "trust": _trust, "sign": _sign, "verify": _verify, "enrol": enrolment.run,
    }  # fmt: skip
    return int(actions[args.action](args) or 0)


def _new(args: argparse.Namespace) -> None:
    if not args.name.replace("-", "").replace("_", "").isalnum():
        raise KeyFileError(f"a key's name is made of letters, digits, '-' and '_'; {args.name!r} is not")
    key, folder = SecretKey.new(args.name), keys_folder()
    secret, public = folder / f"{args.name}.key", folder / "trusted" / f"{args.name}.pub"
    if public.exists() and not secret.exists():
        raise KeyFileError(f"a key called {args.name!r} is trusted here already; choose another name")
    key.write(secret)
    key.public.write(public)
    print(f"secret  {secret}    (keep it safe; it signs bundles)")
    print(f"public  {public}    (give it to servers and boards)")


def _show(args: argparse.Namespace) -> None:
    folder = keys_folder()
    keys = [
        (path, key, (folder / f"{path.stem}.key").exists())
        for path in sorted((folder / "trusted").glob("*.pub"))
        for key in read_keys(path)
    ]
    issued = fleet.certificates()
    if args.json:
        pairs = [
            {"kind": "key", "name": k.name, "id": k.id, "file": str(path), "can_sign": can} for path, k, can in keys
        ]
        print_json([*pairs, *issued])
        return
    rows = [[key.name or path.stem, key.id, "signs and trusted" if can else "trusted"] for path, key, can in keys]
    print_table("", ["key", "id", "here"], rows, note="" if keys else "no keys here; narrowcast keys new")
    fleet.print_certificates(issued)


def _trust(args: argparse.Namespace) -> None:
    keys = read_keys(args.file)
    target = keys_folder() / "trusted" / f"{args.file.stem}.pub"
    if target.exists() and not {one.raw for one in read_keys(target)} <= {one.raw for one in keys}:
        raise KeyFileError(f"{target} is another key of that name; rename {args.file.name} first")
    with replacing(target) as out:
        out.write("".join(f"{one.line}\n" for one in keys).encode())
    for one in keys:
        print(f"trusted: {one.name or args.file.stem} ({one.id})")


def _sign(args: argparse.Namespace) -> None:
    key = SecretKey.read(args.key or keys_folder() / "signing.key")
    sign_bundle(args.bundle, key)
    print(f"{args.bundle}: signed by {key.name or 'the key'} ({key.public.id})")


def _verify(args: argparse.Namespace) -> None:
    bundle = open_bundle(args, "any")
    signer = f"signed by {bundle.signed_by.name} ({bundle.signed_by.id})" if bundle.signed_by else "NOT SIGNED"
    print(f"{args.bundle}: {bundle.manifest.name}, release {bundle.manifest.release}, {signer}, parts whole")
