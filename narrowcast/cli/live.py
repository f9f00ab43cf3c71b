"""What is seen while a profile runs: a live view on a terminal, and without one nothing but notes."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from narrowcast.cli.show import stderr
from narrowcast.devices.profile.observer import Observer, Outline, PowerSample, Silent
from narrowcast.devices.profile.schema import Mode
from narrowcast.text import escaped, human_ms

REFRESHES = 4  # a second
_KEPT = 512  # latencies of each way, for its figures
_NOTES = 3
_PHASES = {
    "preparing": "preparing",
    "idle-before": "idle, before",
    "warm-up": "warm-up",
    "loaded": "measuring",
    "idle-after": "idle, after",
    "evaluating": "evaluating",
}
_RAILS = 8
_AROUND = 12  # lines of everything but the ways


@dataclass
class _Way:
    """What is known of a way until now."""

    title: str
    link: str | None
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    frames: int = 0
    failed: int = 0
    turn_frames: int = 0
    turn_began: float = 0.0
    rate: float | None = None


class Notes(Silent):
    """Without a terminal: how long it will take, notes as lines, and nothing else."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begun(self, outline: Outline) -> None:
        """See :class:`narrowcast.devices.profile.observer.Observer`."""
        self.note(f"{len(outline.ways)} ways in {outline.rounds} turns each: about {_clock(outline.seconds)} minutes")

    def note(self, line: str) -> None:
        """See :class:`narrowcast.devices.profile.observer.Observer`."""
        self._console.print(escaped(line), soft_wrap=True)


class LiveView(Silent):
    """Collects what happens, in microseconds; :meth:`__rich__` draws it, on the thread that refreshes the terminal.

    Args:
        now: seconds of a monotonic clock.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic, height: Callable[[], int] = lambda: 50) -> None:
        self._now, self._height = now, height
        self._began = self._phase_began = now()
        self._phase, self._phase_s, self._total_s = "preparing", 0.0, 0.0
        self._ways: dict[str, _Way] = {}
        self._current: str | None = None
        self._mode: Mode = "single"
        self._blocks = (0, 0)
        self._sample: PowerSample | None = None
        self._notes: deque[str] = deque(maxlen=_NOTES)

    def begun(self, outline: Outline) -> None:
        """See :class:`narrowcast.devices.profile.observer.Observer`; so are the others."""
        self._began, self._total_s = self._now(), outline.seconds
        self._ways = {way: _Way(outline.titles.get(way, way), outline.links.get(way)) for way in outline.ways}

    def phase(self, name: str, seconds: float) -> None:
        """A stretch begins."""
        self._phase, self._phase_s, self._phase_began = name, seconds, self._now()
        if name != "loaded":
            self._current = None

    def block_started(self, way: str, mode: Mode, done: int, total: int) -> None:
        """A way's turn."""
        self._current, self._mode, self._blocks = way, mode, (done, total)
        if (found := self._ways.get(way)) is not None:
            found.turn_frames, found.turn_began = 0, self._now()

    def frame_done(self, way: str, latency_ms: float, failed: str | None) -> None:
        """A counted frame."""
        found = self._ways.get(way)
        if found is None:
            return
        found.frames += 1
        found.turn_frames += 1
        if failed is not None:
            found.failed += 1
        elif self._mode == "single":
            found.latencies.append(latency_ms)
        passed = self._now() - found.turn_began
        if passed > 0 and self._mode == "single":
            found.rate = found.turn_frames / passed

    def sample(self, sample: PowerSample) -> None:
        """Power and conditions."""
        self._sample = sample

    def note(self, line: str) -> None:
        """Kept below the table."""
        self._notes.append(escaped(line))

    def ended(self, complete: bool) -> None:
        """The measuring is over."""
        self._current = None
        self._phase = "evaluating"

    @property
    def notes(self) -> list[str]:
        """The newest ones."""
        return list(self._notes)

    def left_s(self) -> float:
        """About how long it will still take: planned seconds, corrected by how long turns really take."""
        now = self._now()
        planned = max(0.0, self._total_s - (now - self._began))
        done, total = self._blocks
        if self._phase != "loaded" or not done or not total:
            return planned
        before = self._phase_began - self._began
        after = max(0.0, self._total_s - before - self._phase_s)
        return (now - self._phase_began) * (total - done) / done + after

    def part(self) -> float:
        """How much of it is done, 0 to 1."""
        if not self._ways:
            return 0.0  # it has not begun
        passed = self._now() - self._began
        whole = passed + self.left_s()
        return min(1.0, passed / whole) if whole > 0 else 0.0

    def __rich__(self) -> RenderableType:
        """The view now."""
        parts: list[RenderableType] = [self._head(), self._table()]
        if self._sample is not None:
            parts += _power(self._sample)
        parts += [Text(f"note: {line}", style="yellow", overflow="ellipsis", no_wrap=True) for line in self.notes]
        return Group(*parts)

    def _head(self) -> RenderableType:
        done, total = self._blocks
        turn = f", turn {done + 1} of {total}" if self._phase == "loaded" and total else ""
        grid = Table.grid(padding=(0, 2))
        words = Text(_PHASES.get(self._phase, self._phase) + turn, style="bold")
        bar = ProgressBar(total=1.0, completed=self.part(), width=28)
        left = f"{_clock(self.left_s())} left" if self._ways else ""
        grid.add_row(words, bar, f"{100 * self.part():.0f} %", left)
        return grid

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for name in ("", "way", "link"):
            table.add_column(name, no_wrap=True, overflow="ellipsis")
        for name in ("frames", "failed", "median", "95 %", "frames/s"):
            table.add_column(name, justify="right", no_wrap=True)
        names = list(self._ways)
        shown, above, below = _around(names, self._current, max(3, self._height() - _AROUND))
        if above:
            table.add_row("", f"{above} more", style="dim")
        for name in shown:
            table.add_row(*self._row(name), style="bold" if name == self._current else "")
        if below:
            table.add_row("", f"{below} more", style="dim")
        return table

    def _row(self, name: str) -> list[str | Text]:
        way = self._ways[name]
        median, high = _figures(list(way.latencies))
        failed = Text(str(way.failed), style="red" if way.failed else "")
        rate = "-" if way.rate is None else f"{way.rate:.0f}" if way.rate >= 100 else f"{way.rate:.3g}"
        mark = "" if name != self._current else "▸▸" if self._mode == "windowed" else "▸"
        title = Text(way.title)  # a title is words, whatever brackets it has
        return [mark, title, Text(way.link or "-"), str(way.frames), failed, human_ms(median), human_ms(high), rate]


def _figures(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Median and 95th percentile of the newest frames; too few give none."""
    if len(values) < 5:
        return None, None
    ordered = sorted(values)
    high = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))] if len(ordered) >= 40 else None
    return statistics.median(ordered), high


def _around(names: Sequence[str], current: str | None, room: int) -> tuple[Sequence[str], int, int]:
    """As many as fit, the current one among them; and how many are above and below."""
    if len(names) <= room:
        return names, 0, 0
    middle = names.index(current) if current in names else 0
    first = min(max(0, middle - room // 2), len(names) - room)
    return names[first : first + room], first, len(names) - first - room


def _power(sample: PowerSample) -> list[RenderableType]:
    """Power by rail, temperatures, and what slows the board down."""
    rails = [f"{name} {watts:.2f} W" for name, watts in list(sample.rails_watts.items())[:_RAILS]]
    total = "total not measurable" if sample.total_watts is None else f"total {sample.total_watts:.2f} W"
    lines = [_line("power", ", ".join([total, *rails]))]
    warm = [f"{zone} {value:.0f} °C" for zone, value in list(sample.temperatures_c.items())[:_RAILS]]
    speeds = list(sample.clocks_mhz.values())
    if speeds:
        low, high = min(speeds), max(speeds)
        warm.append(f"clocks {high:.0f} MHz" if low == high else f"clocks {low:.0f} to {high:.0f} MHz")
    if warm:
        lines.append(_line("board", ", ".join(warm)))
    if sample.throttled:
        lines.append(_line("slowed down by", ", ".join(sample.throttled), "bold red"))
    return lines


def _line(name: str, words: str, style: str = "") -> RenderableType:
    return Text.assemble((f"{name}: ", "dim"), (words, style), overflow="ellipsis", no_wrap=True)


def _clock(seconds: float) -> str:
    """``1:05``."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


@contextmanager
def watching(*, quiet: bool = False) -> Iterator[Observer]:
    """An observer: a live view on a terminal, notes elsewhere; ``quiet``: nothing at all."""
    console = stderr()
    if quiet:
        yield Silent()
    elif not console.is_terminal or console.is_dumb_terminal:
        yield Notes(console)
    else:
        view = LiveView(height=lambda: console.size.height)
        with Live(view, console=console, refresh_per_second=REFRESHES, transient=True):
            yield view
        for line in view.notes:
            console.print(line, soft_wrap=True)
