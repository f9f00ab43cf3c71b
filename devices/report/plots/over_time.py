"""Power and temperature over the time of a run, with its windows marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from narrowcast.devices.report.markup import Markup, tag
from narrowcast.devices.report.plots.drawing import (
    WIDE,
    Box,
    Style,
    axes,
    drawing,
    left_room,
    path,
)
from narrowcast.devices.report.scales import Scale, linear


@dataclass(frozen=True)
class Track:
    """A quantity over time; a value of None is a gap, and stays one."""

    name: str
    style: Style
    times_s: Sequence[float]
    values: Sequence[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class Window:
    """What ran from when to when."""

    name: str
    kind: str
    start_s: float
    end_s: float


def over_time(
    width: int,
    title: str,
    description: str,
    tracks: Sequence[Track],
    windows: Sequence[Window],
    label: str,
    form: Callable[[float], str],
    *,
    max_gap_s: float,
    also: Sequence[float] = (),
    zero: bool = True,
) -> Markup:
    """The plot. Samples further apart than ``max_gap_s`` are not joined. ``also``: values that the axis reaches too."""
    height = 300 if width == WIDE else 260
    top = 24.0
    values = [v for track in tracks for v in track.values if v is not None]
    y = linear([*values, *also], height - 44, top, label, form, zero=zero)
    box = Box(left_room(y), top, width - 14, height - 44)
    times = [t for track in tracks for t in track.times_s] + [t for w in windows for t in (w.start_s, w.end_s)]
    x = _time_axis(times, box)
    shades = [_shade(w, x, box) for w in windows]
    lines = [_track(track, x, y, max_gap_s) for track in tracks]
    return drawing(width, height, title, description, shades, axes(box, x, y), lines)


def _time_axis(times: Sequence[float], box: Box) -> Scale:
    low, high = (min(times), max(times)) if times else (0.0, 1.0)
    if high <= low:
        high = low + 1.0
    return Scale(
        low, high, box.left, box.right, log=False, label="seconds since the beginning", form=lambda s: f"{s:g}"
    )


def _shade(window: Window, x: Scale, box: Box) -> Markup:
    left, right = x(window.start_s), x(window.end_s)
    words = f"{window.name}, {window.start_s:.1f} to {window.end_s:.1f} s"
    return tag("rect", tag("title", words), class_=f"window {window.kind}", x=left, y=box.top,
               width=max(right - left, 0.5), height=box.bottom - box.top)  # fmt: skip


def _track(track: Track, x: Scale, y: Scale, max_gap_s: float) -> list[Markup]:
    """Its line, broken where there is a gap; a lone sample is a mark."""
    runs: list[list[tuple[float, float]]] = [[]]
    last: float | None = None
    for at, value in zip(track.times_s, track.values, strict=False):
        if value is None or (last is not None and at - last > max_gap_s):
            runs.append([])
        if value is not None:
            runs[-1].append((x(at), y(value)))
        last = at
    found: list[Markup] = []
    for points in runs:
        if len(points) == 1:
            found.append(track.style.mark(*points[0], track.name, 2.0))
        elif points:
            found.append(path(_thin(points), f"line {track.style.colour}", track.style.dash))
    return found


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most four points for each unit of width: the first, the least, the greatest, the last."""
    columns: dict[int, list[tuple[float, float]]] = {}
    for point in points:
        columns.setdefault(int(point[0]), []).append(point)
    thin: list[tuple[float, float]] = []
    for column in columns.values():
        if len(column) <= 4:
            thin += column
        else:
            ends = {column[0], min(column, key=lambda p: p[1]), max(column, key=lambda p: p[1]), column[-1]}
            thin += sorted(ends, key=column.index)
    return thin
