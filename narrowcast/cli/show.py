"""Tables, bars and JSON: data to stdout, progress to stderr, nothing fancy without a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from narrowcast.cli.options import PRECISIONS
from narrowcast.text import escaped, human_bytes, percent

# Without a terminal there is no width to fit into: long lines are better than cut ones.
_WIDE = 200
_UNLIMITED = 1_000_000
_LINES = "\t\n"  # stay in what may have several lines
SECONDS_BETWEEN_LINES = 30.0


class Task(Protocol):
    """One running step."""

    def advance(self, done: int, figures: dict[str, float] | None = None) -> None:
        """``done`` more units are done; ``figures`` replace those shown."""


def stdout() -> Console:
    """For tables."""
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _WIDE)


def stderr() -> Console:
    """For notes and bars."""
    return Console(stderr=True, highlight=False, markup=False, width=None if sys.stderr.isatty() else _WIDE)


def print_json(data: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, note: str = "") -> None:
    """A table on stdout; columns whose name starts with ``>`` are aligned to the right.

    The first column says what a line is about: on a terminal that is too narrow, the others wrap first; elsewhere none does.
    What cells, title and note quote of others steers no terminal; the latter two may have several lines.
    """
    console = stdout()
    table = Table(
        title=escaped(title, keep=_LINES) or None, title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    for column in columns:
        # Folded where it must be: what is cut is lost.
        table.add_column(
            escaped(column.lstrip(">")), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(escaped, row))
    if table.columns:
        names = [columns[0], *(escaped(row[0]) for row in rows)]
        table.columns[0].no_wrap = max(map(cell_len, names)) <= console.width // 2
    if not console.is_terminal:
        whole = Measurement.get(console, console.options.update(width=_UNLIMITED), table)
        console.width = max(console.width, whole.maximum)
    console.print(table)
    if note:
        console.print(escaped(note, keep=_LINES), soft_wrap=True)


def print_precisions(figures: dict[str, Any]) -> None:
    """A table of a bundle's heads, one line per precision and level, and what was left out; nothing for fp32 alone."""
    rows = [
        [
            name,
            f"{entry['head_ms']:.2f} ms",
            str(row["level"]),
            human_bytes(row["mean_packet_bytes"]),
            percent(row["agreement"]),
            f"{row['output_error']:.3g}",
            f"{100 * row['moved_symbols']:.2f} %",
            str(row["largest_step"]),
        ]
        for name, entry in sorted(figures.get("precisions", {}).items(), key=lambda item: PRECISIONS.index(item[0]))
        for row in entry["levels"]
    ]
    columns = ["head", ">time", ">level", ">bytes a frame", ">agrees with the teacher", ">output error"]
    if rows:
        note = f"Times are of the machine that compiled it ({figures['head_ms_with']}). A board measures its own."
        stdout().print()
        print_table("", [*columns, ">symbols not as in fp32", ">by at most"], rows, note=note)
    for name, reason in figures.get("left_out", {}).items():
        stdout().print(f"no {name} head: {reason}", soft_wrap=True)


def print_channels(figures: dict[str, Any]) -> None:
    """How many latent channels training found to be relevant, and what that saved; nothing where it did not look."""
    found = figures.get("channels")
    if found is None:
        return
    spent = ", ".join(f"level {level} {human_bytes(value)}" for level, value in enumerate(found["spent_bytes"]))
    stdout().print(
        f"\nchannels: {found['start']} to start from, {found['kept']} kept; the others took "
        f"{found['saved_macs'] / 1e6:.2f} M multiply-accumulates on the board and, of a frame's bytes, {spent}",
        soft_wrap=True,
    )


def print_exit(figures: dict[str, Any]) -> None:
    """What a bundle's local exit costs and how often it agrees with the teacher; nothing without one."""
    exit_figures = figures.get("exit")
    if exit_figures is None:
        return
    agreements = ", ".join(f"level {row['level']} {percent(row['agreement'])}" for row in exit_figures["levels"])
    stdout().print(
        f"\nlocal exit: {exit_figures['parameters']:,} parameters, {exit_figures['macs'] / 1e6:.2f} M multiply-accumulates, "
        f"{exit_figures['ms']:.2f} ms ({exit_figures['ms_with']}, on the machine that compiled it)\n"
        f"            agrees with the teacher: {agreements}",
        soft_wrap=True,
    )


def print_video(figures: dict[str, Any]) -> None:
    """What a bundle's video tables save on the clips that they were measured on; nothing without any."""
    video = figures.get("video")
    if video is None:
        return
    rows = [
        [
            str(row["level"]),
            human_bytes(row["key_bytes"]),
            human_bytes(row["predicted_bytes"]),
            human_bytes(row["mean_bytes"]),
            percent(row["skipped"]),
            f"{row['error']:.4f}",
            f"{row['error_with_skips']:.4f}",
        ]
        for row in video["levels"]
    ]
    columns = ["level", ">key frames", ">predicted", ">with skips", ">skipped", ">wrong", ">wrong, with skips"]
    note = f"Bytes a frame, behind the first ones of {video['clips']} clips of {video['frames']} frames."
    stdout().print()
    print_table("frames of a camera (video tables)", columns, rows, note=note)


class TerminalProgress:
    """Steps as bars on a terminal, as lines elsewhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = stderr()

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator[Task]:
        """See :class:`narrowcast.compiler.progress.Progress`."""
        started = time.monotonic()
        if self._quiet:
            yield _Counter()
        elif self._console.is_terminal:
            with self._bar(title, total, unit) as bar:
                yield bar
        else:
            counter = _Counter(lambda done, figures: self.note(f"{title}: {done} of {total} {unit}{figures}"))
            yield counter
            self.note(f"{title}: {counter.done} {unit} in {time.monotonic() - started:.1f} s{counter.figures}")

    def note(self, line: str) -> None:
        """See :class:`narrowcast.compiler.progress.Progress`."""
        if not self._quiet:
            self._console.print(escaped(line, keep=_LINES), soft_wrap=True)

    @contextmanager
    def _bar(self, title: str, total: int, unit: str) -> Iterator[Task]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<24}"), BarColumn(24), MofNCompleteColumn(), TextColumn(unit),
            TimeRemainingColumn(), TextColumn("{task.fields[figures]}"),
        )  # fmt: skip
        with Progress(*columns, console=self._console) as progress:
            number = progress.add_task(title, total=total, figures="")
            yield _Bar(lambda done, figures: progress.update(number, advance=done, figures=figures))


class _Counter:
    """Counts; now and then, when a step takes long, it says how far it is."""

    def __init__(self, say: Callable[[int, str], None] = lambda done, figures: None) -> None:
        self.done = 0
        self.figures = ""
        self._say = say
        self._said = time.monotonic()

    def advance(self, done: int, figures: dict[str, float] | None = None) -> None:
        self.done += done
        if figures:
            self.figures = f"; {_figures(figures)}"
        if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            self._say(self.done, self.figures)


class _Bar:
    def __init__(self, update: Any) -> None:
        self._update = update
        self._figures = ""

    def advance(self, done: int, figures: dict[str, float] | None = None) -> None:
        self._figures = _figures(figures) if figures else self._figures
        self._update(done, self._figures)


def _figures(figures: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3g}" for name, value in figures.items())
