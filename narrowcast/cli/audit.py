"""``narrowcast audit``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

EXAMPLES = """\
examples:
  narrowcast audit key audit.key                         # audit.key stays with you, audit.key.pub goes to the server
  narrowcast serve --bundles models/ --audit samples/ --audit-key audit.key.pub --audit-every 1000
  narrowcast audit list samples/
  narrowcast audit export samples/ --key audit.key -o exported/

The server seals what it keeps with the public key, and cannot read it again. An export has each image as it arrived, each
symbols packet as a file (*.ncp), and index.jsonl, a line for each. docs/drift.md tells what to do with them.
"""
_IMAGES = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG\r\n\x1a\n", ".png"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    key = actions.add_parser("key", help="make a key pair: FILE opens samples, FILE.pub seals them")
    key.add_argument("file", type=Path, metavar="FILE")
    listed = actions.add_parser("list", help="what is in a folder of samples; needs no key")
    listed.add_argument("folder", type=Path, metavar="DIR")
    listed.add_argument("--json", action="store_true", help="a JSON line for each")
    export = actions.add_parser("export", help="open samples and write what is in them")
    export.add_argument("folder", type=Path, metavar="DIR")
    export.add_argument("--key", type=Path, required=True, metavar="FILE", help="the secret key")
    export.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="a folder; made where needed")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    return {"key": _key, "list": _list, "export": _export}[args.action](args)


def _key(args: argparse.Namespace) -> int:
    from narrowcast.transport.sealing import OpeningKey

    key = OpeningKey.new(args.file.stem)
    key.write(args.file)
    public = args.file.with_name(args.file.name + ".pub")
    key.public.write(public)
    print(f"{args.file} (secret: keep it off the server) and {public} ({key.public.id})")
    return 0


def _list(args: argparse.Namespace) -> int:
    from narrowcast.tail.audit import samples_in

    count = total = 0
    for one in samples_in(args.folder):
        count, total = count + 1, total + one.size_bytes
        stream = one.stream_id.hex()
        if args.json:
            told = {"file": one.path.name, "time_us": one.time_us, "stream_id": stream, "frame_id": one.frame_id}
            print(json.dumps(told | {"reason": one.reason, "size_bytes": one.size_bytes}))
        else:
            what = f"stream {stream[:8]}  frame {one.frame_id:>8}  {one.reason:<6}"
            print(f"{_when(one.time_us)}  {what} {one.size_bytes:>9} B")

    if not args.json:
        print(f"{count} samples, {total} bytes")
    return 0


def _export(args: argparse.Namespace) -> int:
    from narrowcast.cli.show import stderr
    from narrowcast.tail.audit import Stored, open_sample, samples_in
    from narrowcast.tail.errors import AuditError
    from narrowcast.transport.packet import Kind
    from narrowcast.transport.sealing import OpeningKey

    key = OpeningKey.read(args.key)
    args.output.mkdir(parents=True, exist_ok=True)
    failed = done = 0

    def lines() -> Iterator[str]:
        nonlocal failed, done
        for stored in samples_in(args.folder):
            try:
                yield json.dumps(one(stored))
                done += 1
            except AuditError as error:
                failed += 1
                stderr().print(f"left out: {error}", markup=False)

    def one(stored: Stored) -> dict[str, object]:
        sample = open_sample(stored.path, key)
        packet = sample.unpacked()
        symbols = packet.kind is Kind.SYMBOLS
        suffix, data = (".ncp", sample.packet) if symbols else (_suffix(packet.payload), packet.payload)
        name = stored.path.name.removesuffix(".sealed") + suffix
        (args.output / name).write_bytes(data)
        return {
            "file": name, "kind": packet.kind.name.lower(), "reason": sample.reason, "time_us": sample.time_us,
            "client": sample.client, "model": sample.model, "release": sample.release, "level": packet.level,
            "stream_id": packet.stream_id.hex(), "frame_id": packet.frame_id, "capture_us": packet.capture_us,
        }  # fmt: skip

    with (args.output / "index.jsonl").open("w", encoding="utf-8") as index:
        index.writelines(line + "\n" for line in lines())
    stderr().print(f"{done} samples in {args.output}" + (f", {failed} left out" if failed else ""), markup=False)
    return 1 if failed else 0


def _suffix(image: bytes) -> str:
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for start, suffix in _IMAGES if image.startswith(start)), ".bin")


def _when(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")
