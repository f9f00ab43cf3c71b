"""A rollout on the terminal: a table that lives where there is one, lines elsewhere, and the table at the end."""

from __future__ import annotations

from contextlib import ExitStack

from rich.live import Live
from rich.table import Table

from narrowcast.cli.show import print_table, stderr
from narrowcast.devices.fleet.results import BAD, BoardResult, FleetReport
from narrowcast.text import escaped

_ENDED = {"done", "unchanged", "verified", "planned", "rolled-back", "failed", "interrupted"}
_WORDS = {
    "done": "done", "unchanged": "unchanged", "verified": "verified", "planned": "planned", "rolled-back": "ROLLED BACK",
    "failed": "FAILED", "interrupted": "interrupted", "not-begun": "not begun", "waiting": "waiting", "running": "...",
}  # fmt: skip
_LARGEST = 30  # rows of the table that lives; of a large fleet only what is under way and what went wrong


class RolloutView:
    """Told of every change of a board (from several threads, one at a time). Use it as a context."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._console = stderr()
        self._results: dict[str, BoardResult] = {}
        self._live: Live | None = None
        self._stack = ExitStack()

    def __enter__(self) -> RolloutView:
        if not self._quiet and self._console.is_terminal:
            self._live = self._stack.enter_context(Live(console=self._console, transient=True, refresh_per_second=4))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def changed(self, result: BoardResult) -> None:
        """Shows it."""
        self._results[result.name] = result
        if self._live is not None:
            self._live.update(self._table())
        elif not self._quiet and result.state in _ENDED:
            self._console.print(escaped(_line(result)), soft_wrap=True)

    def _table(self) -> Table:
        results = list(self._results.values())
        if len(results) > _LARGEST:
            results = [one for one in results if one.state == "running" or one.state in BAD][:_LARGEST]
        ended = sum(one.state in _ENDED for one in self._results.values())
        table = Table(title=f"{ended} boards are done", title_justify="left", box=None, pad_edge=False)
        for column in ("board", "", "step"):
            table.add_column(column, no_wrap=True)
        table.add_column("", overflow="fold")  # gives way first: a line must say which board it is about
        for one in results:
            table.add_row(one.name, _WORDS[one.state], escaped(one.step), escaped(one.detail))
        return table


def _line(result: BoardResult) -> str:
    step = f" at {result.step}" if result.step and result.state in BAD else ""
    return f"{result.name}: {_WORDS[result.state]}{step}{f': {result.detail}' if result.detail else ''}"


def print_report(report: FleetReport) -> None:
    """The table of a rollout, on stdout."""
    rows = [
        [
            one.name, one.wave, _WORDS[one.state], one.release or "-",
            "-" if one.seconds is None else f"{one.seconds:.0f} s",
            f"{one.step}: {one.detail}" if one.step and one.state in BAD else one.detail,
        ]
        for one in report.boards
    ]  # fmt: skip
    counts = ", ".join(f"{count} {_WORDS[state].lower()}" for state, count in report.counts.items())
    note = f"\n{len(report.boards)} boards: {counts}" + (f"\nstopped: {report.reason}" if report.reason else "")
    print_table("", ["board", "wave", "", "release", ">time", ""], rows, note=note)
