"""``narrowcast demo``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from narrowcast.cli.show import TerminalProgress, print_json, print_table, stderr
from narrowcast.transport.errors import MissingDependencyError

if TYPE_CHECKING:
    from narrowcast.head.results import Result

EXAMPLES = """\
examples:
  narrowcast demo
  narrowcast demo -o /tmp/demo --json

Renders frames (handwritten digits on photographs), trains a small teacher, compiles it, starts a tail server in another
process, and streams held-out frames to it. Nothing is downloaded. About two minutes on two cores.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("demo-output"), metavar="DIR", help="default: demo-output"
    )
    parser.add_argument("--json", action="store_true", help="the figures as JSON on stdout")


def run(args: argparse.Namespace) -> int:
    """Runs the verb."""
    try:
        from narrowcast.demo.page import TABLE_COLUMNS, headline, table_rows, timing_rows, write_page
        from narrowcast.demo.run import run_demo
    except ImportError as error:
        raise MissingDependencyError(
            "the demo", str(error.name or error), "pip install 'narrowcast[demo]'", error
        ) from error
    from narrowcast.head.timing import STAGES

    progress = TerminalProgress(quiet=args.quiet)
    result = run_demo(args.output, progress, lambda level: _Live(level, quiet=args.quiet))
    page = write_page(result)
    if args.json:
        print_json(result.as_dict())
        return 0
    print()
    print_table("Accuracy and bytes a frame", TABLE_COLUMNS, table_rows(result))
    print()
    print_table(
        "Median milliseconds a frame",
        ["", *(f">{stage}" for stage in STAGES), ">latency", ">frames a second"],
        timing_rows(result),
    )
    print(f"\n{headline(result)}")
    print(
        "Such small frames and a loopback link do not show what your network, photographs and radio link will do;\n"
        f"the page says more. It took {result.seconds:.0f} s: {page}"
    )
    return 0


class _Live:
    """One line on a terminal that follows the stream; nothing elsewhere."""

    def __init__(self, level: int, *, quiet: bool) -> None:
        self._console = stderr()
        self._shown = self._console.is_terminal and not quiet
        self._level = level
        self._frames = self._right = self._bytes = 0

    def frame(self, result: Result, right: bool) -> None:
        """See :class:`narrowcast.demo.run.Watcher`."""
        self._frames += 1
        self._right += right
        self._bytes += result.packet_bytes
        if self._shown and self._frames % 25 == 0:
            line = (
                f"streaming, level {self._level}: {self._frames} frames, {100 * self._right / self._frames:.1f} % right, "
                f"{self._bytes / self._frames:.0f} B a packet, {result.latency_ms:.1f} ms"
            )
            self._console.print(line, end="\r")
            if self._frames % 100 == 0:
                self._console.file.flush()
