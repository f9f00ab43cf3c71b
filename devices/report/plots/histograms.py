"""How a quantity spreads over frames: one small histogram per way, all on one axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from narrowcast.devices.report.markup import Markup, tag
from narrowcast.devices.report.plots.drawing import LETTER, WIDE, Box, axes, drawing, shortened, text
from narrowcast.devices.report.scales import Scale, logarithmic


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
    each, top = (86.0 if width == WIDE else 92.0), 4.0
    box = Box(6, top, width - 14, top + each * len(rows))
    seen = [v for row in rows for v in _filled(row)] + [value for row in rows for value, _ in row.marks]
    x = logarithmic([*seen, *also], box.left, box.right, label, form, room=1.08)
    parts: list[Markup] = [axes(box, x, None)]
    for k, row in enumerate(rows):
        parts += _row(row, x, top + each * (k + 1), each, box)
    return drawing(width, box.bottom + 44, title, description, parts)


def _filled(row: Spread) -> list[float]:
    """The outer edges of what is not empty."""
    at = [k for k, count in enumerate(row.counts) if count]
    return [row.edges[at[0]], row.edges[at[-1] + 1]] if at else []


def _row(row: Spread, x: Scale, bottom: float, each: float, box: Box) -> list[Markup]:
    room, frames = each - 44, sum(row.counts)
    parts = [text(shortened(f"{row.name} · {frames} frames", box.right - box.left), box.left, bottom - each + 13, kind="halo")]
    most = max(row.counts, default=0)
    for k, count in enumerate(row.counts):
        low, high = row.edges[k], row.edges[k + 1]
        if not count or high <= 0:
            continue
        left, right = x(low), x(high)
        tall = max(room * count / most, 1.0)
        words = tag("title", f"{row.name}: {count} frames from {x.form(low)} to {x.form(high)}")
        place = {"x": left, "y": bottom - tall, "width": max(right - left - 0.5, 0.5), "height": tall}
        parts.append(tag("rect", words, class_=f"bar {row.colour}", **place))
    parts.append(tag("path", class_="axis", d=f"M{box.left:.1f} {bottom:.1f}H{box.right:.1f}"))
    free = box.left
    for value, word in sorted(row.marks):
        at, length = x(value), len(word) * LETTER
        parts.append(tag("path", tag("title", f"{row.name}, {word}: {x.form(value)}"), class_="upright",
                         d=f"M{at:.1f} {bottom - room - 6:.1f}V{bottom:.1f}"))  # fmt: skip
        start = max(min(at - length / 2, box.right - length), free)
        if start - at < 3 * LETTER:
            parts.append(text(word, start, bottom - room - 9, kind="halo"))
            free = start + length + 5
    return parts
