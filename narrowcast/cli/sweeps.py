"""``narrowcast compile --sweep``: its options, its table."""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path
from typing import Any

from narrowcast.cli.show import TerminalProgress, print_json, print_table
from narrowcast.text import human_bytes, percent
from narrowcast.transport.bundle import SecretKey
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.files import replacing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    group = parser.add_argument_group("several bundles in one run")
    group.add_argument(
        "--sweep",
        action="append",
        metavar="TABLE.KEY=A,B,...",
        help="a bundle for each value, named by it; given again, for each combination. One that fails is passed over; "
        "those that are there already are kept",
    )
    group.add_argument(
        "--sweep-warm-start",
        type=float,
        metavar="SHARE",
        help="train each further one from the one before it, with this part of [train] images",
    )
    group.add_argument("--csv", type=Path, metavar="FILE.csv", help="with --sweep: the table as a file, too")


def check(args: argparse.Namespace) -> None:
    """Whether the options go together.

    Raises:
        ConfigError: they do not.
    """
    if args.sweep and args.retune:
        raise ConfigError("--sweep makes new heads, --retune none: one of the two")
    if not args.sweep and (args.sweep_warm_start is not None or args.csv is not None):
        raise ConfigError("--sweep-warm-start and --csv go with --sweep")


def run(args: argparse.Namespace, train: dict[str, Any], key: SecretKey | None, progress: TerminalProgress) -> int:
    """Compiles all points; 1 where one of them failed."""
    from narrowcast.compiler.sweep import parse_axis, sweep

    axes: dict[str, list[Any]] = {}
    for text in args.sweep:
        name, values = parse_axis(text)
        if name in axes:
            raise ConfigError(f"--sweep {name} is given twice: {name}=A,B,C takes all its values")
        axes[name] = values
    points = sweep(
        args.recipe, axes, args.output, train=train, warm_start=args.sweep_warm_start, key=key, work=args.work,
        progress=progress,
    )  # fmt: skip
    rows = [row for point in points for row in point.rows()]
    if args.json:
        print_json([{**row, "values": point.values} for point in points for row in point.rows()])
    else:
        _show(rows, list(axes))
    if args.csv:
        _write_csv(args.csv, rows)
    return 1 if any(point.error for point in points) else 0


def _show(rows: list[dict[str, Any]], names: list[str]) -> None:
    shown = [
        [
            *(str(row[name]) for name in names),
            row["bundle"],
            *(
                [row["error"], "", "", ""]
                if row["error"]
                else [
                    str(row["level"]),
                    human_bytes(row["mean_packet_bytes"]),
                    "-" if row["agreement"] is None else percent(row["agreement"]),
                    "-" if row["output_error"] is None else f"{row['output_error']:.3g}",
                ]
            ),
        ]
        for row in rows
    ]
    columns = [*names, "bundle", "level", ">bytes a frame", ">agrees with the teacher", ">output error"]
    print_table("", columns, shown)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    with replacing(path) as out:
        out.write(text.getvalue().encode())
