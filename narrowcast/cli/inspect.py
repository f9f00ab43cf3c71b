"""``narrowcast inspect``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from narrowcast.cli.options import add_trust, open_bundle
from narrowcast.cli.show import (
    print_channels,
    print_exit,
    print_json,
    print_precisions,
    print_table,
    print_video,
    stdout,
)
from narrowcast.text import human_bytes, percent
from narrowcast.transport.bundle import TailSpec
from narrowcast.transport.contract import InputContract
from narrowcast.transport.tasks import DetectTask, SegmentTask, Task

EXAMPLES = """\
examples:
  narrowcast inspect model.ncb
  narrowcast inspect model.ncb --json | jq .figures
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("bundle", type=Path, metavar="MODEL.ncb")
    parser.add_argument("--json", action="store_true", help="the manifest as JSON on stdout")
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    bundle = open_bundle(args, "any")
    manifest = bundle.manifest
    if args.json:
        signed = {"key": bundle.signed_by.id, "name": bundle.signed_by.name} if bundle.signed_by else None
        print_json({**msgspec.to_builtins(manifest), "signed_by": signed})
        return 0
    console = stdout()
    key = f"by {bundle.signed_by.name or 'a trusted key'} ({bundle.signed_by.id})" if bundle.signed_by else "NOT SIGNED"
    shape = ("up to " if manifest.codec.is_free else "") + "x".join(map(str, manifest.codec.shape))
    facts = {
        "model": f"{manifest.name}, release {manifest.release}, {manifest.created}, {manifest.tool}",
        "signature": key,
        "input": f"{_size(manifest.input)}, {manifest.input.interpolation}",
        "symbols": f"{shape} of an alphabet of {manifest.codec.alphabet}, {manifest.codec.levels} levels",
        "codec": f"{manifest.codec.name}, fingerprint {manifest.fingerprint}",
        "outputs": ", ".join(f"{o.name} {o.dtype} {o.shape}" for o in manifest.outputs),
        "task": _task(manifest.task),
        **{f"tail {tail.name}": _tail(tail) for tail in manifest.tails},
        "targets": ", ".join(manifest.targets) or "any",
    }
    for name, value in facts.items():
        console.print(f"{name:<10} {value}", soft_wrap=True)
    rows = [
        [
            p.name,
            p.kind,
            ", ".join(p.roles),
            human_bytes(p.size_bytes),
            "" if bundle.has(p.kind, p.precision, p.tail) else "not here",
        ]
        for p in manifest.parts
    ]
    console.print()
    print_table("", ["part", "kind", "for", ">size", ""], rows)
    if levels := manifest.figures.get("levels"):
        console.print()
        print_table(
            "",
            ["level", ">bytes a frame", f">{_agreement(manifest.figures)}"],
            [[str(row["level"]), human_bytes(row["mean_packet_bytes"]), percent(row["agreement"])] for row in levels],
        )
    print_channels(manifest.figures)
    print_precisions(manifest.figures)
    print_exit(manifest.figures)
    print_video(manifest.figures)
    return 0


def _size(contract: InputContract) -> str:
    free, (height, width) = contract.free, contract.size
    if free is None:
        return f"{height}x{width}, {contract.fit}"
    most = f"free, up to {free.most[0]} x {free.most[1]}, multiples of {free.multiple}"
    return f"{most}; trained on crops of {height} x {width}"


def _task(task: Task | None) -> str:
    if task is None:
        return "outputs as they are"
    kind = str(msgspec.to_builtins(task)["kind"])
    where = f", decoded on the {task.decode_on}" if isinstance(task, DetectTask | SegmentTask) else ""
    return f"{kind}, {len(task.classes)} classes{where}"


def _tail(tail: TailSpec) -> str:
    return f"{_task(tail.task)}; " + ", ".join(f"{o.name} {o.dtype} {o.shape}" for o in tail.outputs)


def _agreement(figures: dict[str, Any]) -> str:
    metric = figures.get("metric", "top-1")
    return "agrees with the teacher" if metric == "top-1" else f"{metric} to the teacher"
