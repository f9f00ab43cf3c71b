"""``narrowcast compile``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec

from narrowcast.cli import sweeps
from narrowcast.cli.show import (
    TerminalProgress,
    print_channels,
    print_exit,
    print_json,
    print_precisions,
    print_table,
    print_video,
)
from narrowcast.text import human_bytes, percent
from narrowcast.transport.bundle import SecretKey, keys_folder

EXAMPLES = """\
examples:
  narrowcast compile examples/mobilenet_v2.toml -o mobilenet.ncb
  narrowcast compile recipe.toml -o model.ncb --key ~/release.key
  narrowcast compile recipe.toml -o better.ncb --retune model.ncb    another tail; boards go on as they are
  narrowcast compile recipe.toml -o model.ncb --devices 4
  narrowcast compile recipe.toml -o model.ncb --sweep bottleneck.beta=0.08,0.32,1.28 --csv rates.csv

A run that was killed goes on where it was. Python files named as [teacher] model run with your rights.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL.ncb", help="where the bundle goes")
    parser.add_argument(
        "--work", type=Path, default=Path(".narrowcast"), help="caches and checkpoints (default: .narrowcast)"
    )
    parser.add_argument(
        "--retune",
        type=Path,
        metavar="OLD.ncb",
        help="train only what runs on the server, for the boards that have OLD.ncb",
    )
    parser.add_argument(
        "--devices", type=int, metavar="N", help="train on N devices, one process each; goes before [train] devices"
    )
    parser.add_argument("--tensorboard", action="store_true", help="write every step's figures for TensorBoard")
    signing = parser.add_mutually_exclusive_group()
    signing.add_argument(
        "--key", type=Path, metavar="FILE.key", help="sign with this key, not the keys folder's signing.key"
    )
    signing.add_argument(
        "--unsigned", action="store_true", help="do not sign; servers and boards will refuse the bundle"
    )
    parser.add_argument("--json", action="store_true", help="the manifest, or the sweep's table, as JSON on stdout")
    sweeps.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    from narrowcast.compiler.compile import compile as compile_recipe
    from narrowcast.compiler.progress import Progress
    from narrowcast.compiler.recipe import load_recipe

    sweeps.check(args)
    recipe = load_recipe(args.recipe, train=_train_keys(args))
    progress = TerminalProgress(quiet=args.quiet)
    reporter: Progress = progress
    key = None if args.unsigned else signing_key(args.key, progress)
    if args.sweep:
        return sweeps.run(args, _train_keys(args), key, progress)
    if args.retune:
        from narrowcast.compiler.retune import retune

        compiled = retune(recipe, args.retune, args.output, key=key, work=args.work, progress=reporter)
    else:
        compiled = compile_recipe(recipe, args.output, key=key, work=args.work, progress=reporter)
    if args.json:
        print_json(msgspec.to_builtins(compiled.manifest))
        return 0
    figures = compiled.manifest.figures
    rows = [
        [
            str(level["level"]),
            human_bytes(level["mean_packet_bytes"]),
            percent(level["agreement"]),
            f"{level['output_error']:.3g}",
        ]
        if level["output_error"] is not None
        else [str(level["level"]), human_bytes(level["mean_packet_bytes"]), "-", "-"]
        for level in figures["levels"]
    ]
    size = human_bytes(args.output.stat().st_size)
    print_table(
        f"{args.output}: {compiled.manifest.name}, release {compiled.manifest.release}, {size}"
        f"{'' if key else ', NOT SIGNED'}",
        ["level", ">bytes a frame", ">agrees with the teacher", ">output error"],
        rows,
        note=f"\nMeasured on {figures['images']} images that were not trained on. "
        f"ONNX Runtime against torch: {100 * compiled.verified.moved_symbols:.4f} % of the symbols moved by one step.\n"
        f"{compiled.work} and the caches beside it make another run quick; they may be deleted.",
    )
    print_channels(figures)
    print_precisions(figures)
    print_exit(figures)
    print_video(figures)
    return 0


def _train_keys(args: argparse.Namespace) -> dict[str, Any]:
    """What the command line says about ``[train]``."""
    keys: dict[str, Any] = {} if args.devices is None else {"devices": args.devices}
    return {**keys, "tensorboard": True} if args.tensorboard else keys


def signing_key(path: Path | None, progress: TerminalProgress, *, dry_run: bool = False) -> SecretKey:
    """The key to sign with; the keys folder's own is made the first time, in a dry run for nobody to keep."""
    if path is not None:
        return SecretKey.read(path)
    folder = keys_folder()
    file = folder / "signing.key"
    if not file.exists():
        key = SecretKey.new("signing")
        if dry_run:
            progress.note(f"would make a signing key: {file}, and trust it on this machine")
            return key
        key.write(file)
        key.public.write(folder / "trusted" / "signing.pub")
        progress.note(f"made a signing key: {file} (keep it safe), and trusted it on this machine")
    return SecretKey.read(file)
