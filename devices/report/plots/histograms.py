"""How a quantity spreads over frames: one small histogram per way, all on one axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from narrowcast.devices.report.markup import Markup, tag
from narrowcast.devices.report.plots.drawing import LETTER, WIDE, Box, axes, drawing, shortened, text
from narrowcast.devices.report.scales import Scale, logarithmic

_ROOM = 34.0  # of the highest bar


@dataclass(frozen=True)
class Spread:
    """Counts between edges.

    Attributes:
        name: of the way.
        colour: of its bars.
        edges: rising, one more than ``counts``.
        counts: of frames.
        marks: (value, word) of percentiles.
    """

    name: str
    colour: str
    edges: list[float]
    counts: list[int]
    marks: list[tuple[float, str]] = field(default_factory=list)


def histograms(
    width: int,
    title: str,
    description: str,
    rows: Sequence[Spread],
    label: str,
    form: Callable[[float], str],
    *,
    also: Sequence[float] = (),
) -> Markup:
    """One row per way. Heights are parts of the way's own frames; the axis is logarithmic, as waiting is."""
    wide = width == WIDE
    left = min(190.0, max((len(row.name) for row in rows), default=0) * LETTER + 14) if wide else 4.0
    each, top = _ROOM + (20 if wide else 34), 2.0
    box = Box(left, top, width - 14, top + each * len(rows))
    seen = [v for row in rows for v in _filled(row)] + [value for row in rows for value, _ in row.marks]
    x = logarithmic([*seen, *also], box.left, box.right, label, form, room=1.08)
    parts: list[Markup] = [axes(box, x, None)]
    for k, row in enumerate(rows):
        bottom = top + each * (k + 1)
        if wide:
            parts.append(text(shortened(row.name, left - 12), left - 8, bottom - 6, "end"))
        else:
            parts.append(text(shortened(row.name, box.right), left, bottom - each + 13, kind="halo"))
        parts += _row(row, x, bottom, box)
    return drawing(width, box.bottom + 44, title, description, parts)


def _filled(row: Spread) -> list[float]:
    """The outer edges of what is not empty."""
    at = [k for k, count in enumerate(row.counts) if count]
    return [row.edges[at[0]], row.edges[at[-1] + 1]] if at else []


def _row(row: Spread, x: Scale, bottom: float, box: Box) -> list[Markup]:
    parts: list[Markup] = []
    most = max(row.counts, default=0)
    for k, count in enumerate(row.counts):
        low, high = row.edges[k], row.edges[k + 1]
        if not count or high <= 0:
            continue
        tall = max(_ROOM * count / most, 1.0)
        words = tag("title", f"{row.name}: {count} frames from {x.form(low)} to {x.form(high)}")
        place = {"x": x(low), "y": bottom - tall, "width": max(x(high) - x(low) - 0.5, 0.5), "height": tall}
        parts.append(tag("rect", words, class_=f"bar {row.colour}", **place))
    parts.append(tag("path", class_="axis", d=f"M{box.left:.1f} {bottom:.1f}H{box.right:.1f}"))
    free = box.left
    for value, word in sorted(row.marks):
        at, length = x(value), len(word) * LETTER
        words = tag("title", f"{row.name}: {word} % of the frames take {x.form(value)} or less")
        line = f"M{at:.1f} {bottom - _ROOM - 3:.1f}V{bottom:.1f}"
        parts.append(tag("path", words, class_="upright", d=line))
        start = max(min(at - length / 2, box.right - length), free)
        if start - at < 2 * LETTER:
            parts.append(text(word, start, bottom - _ROOM - 6, kind="halo"))
            free = start + length + 4
    return parts
