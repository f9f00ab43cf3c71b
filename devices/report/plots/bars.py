"""Rows: times stacked by stage, and figures with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from narrowcast.devices.report.markup import Markup, tag
from narrowcast.devices.report.plots.drawing import (
    LETTER,
    WIDE,
    Box,
    Style,
    axes,
    drawing,
    shortened,
    text,
    whisker,
)
from narrowcast.devices.report.scales import Scale, linear

_GAP = 1.0  # of paper, between neighbouring segments


@dataclass(frozen=True)
class Stack:
    """One bar.

    Attributes:
        name: of the row.
        parts: (stage, value, colour), in order.
        end: what is said behind it, usually the total.
        mark: a value that stands for itself, such as the 95th percentile of the whole.
        mark_title: what that says.
    """

    name: str
    parts: list[tuple[str, float, str]]
    end: str
    mark: float | None = None
    mark_title: str = ""


@dataclass(frozen=True)
class Dot:
    """One figure of a row."""

    value: float
    low: float | None
    high: float | None
    style: Style
    title: str


@dataclass(frozen=True)
class Row:
    """Figures of one way."""

    name: str
    dots: list[Dot] = field(default_factory=list)
    why_not: str = ""


def _rows(width: int, names: Sequence[str], each: float) -> tuple[Callable[[int], float], Box, float, bool]:
    """Where rows lie: beside their names where there is room, below them on a phone."""
    beside = width == WIDE
    left = min(190.0, max((len(n) for n in names), default=0) * LETTER + 14) if beside else 4.0
    step = each if beside else each + 17
    top = 8.0
    bottom = top + step * len(names)
    return (
        (lambda k: top + step * k + step - each / 2),
        Box(left, top, width - 14, bottom),
        bottom + 44,
        beside,
    )


def _name(name: str, at: float, box: Box, each: float, *, beside: bool) -> Markup:
    if beside:
        return text(shortened(name, box.left - 12), box.left - 8, at + 4, "end")
    return text(shortened(name, box.right), box.left, at - each / 2 - 2)


def stacks(
    width: int,
    title: str,
    description: str,
    rows: Sequence[Stack],
    label: str,
    form: Callable[[float], str],
    *,
    also: Sequence[float] = (),
) -> Markup:
    """A bar per way, split by stage. ``also``: values that the axis reaches too, so that several plots share it."""
    each = 34.0
    place, box, height, beside = _rows(width, [row.name for row in rows], each)
    ends = max((len(row.end) for row in rows), default=0) * LETTER + 8
    totals = [sum(value for _, value, _ in row.parts) for row in rows]
    marks = [row.mark for row in rows if row.mark is not None]
    x = linear([*totals, *marks, *also], box.left, box.right - (ends if beside else 0), label, form, room=0.02)
    parts: list[Markup] = [axes(box, x, None)]
    for k, (row, total) in enumerate(zip(rows, totals, strict=True)):
        at = place(k)
        name = row.name if beside else f"{row.name}: {row.end}"
        parts.append(_name(name, at, box, each, beside=beside))
        parts += _stack(row, x, at, each - 10)
        if beside:
            parts.append(text(row.end, x(max(total, row.mark or 0)) + 8, at + 4, kind="halo"))
    return drawing(width, height, title, description, parts)


def _stack(row: Stack, x: Scale, at: float, thick: float) -> list[Markup]:
    parts: list[Markup] = []
    before = 0.0
    for stage, value, colour in row.parts:
        left, right = x(before), x(before + value)
        before += value
        shown = max(right - left - _GAP, 0.3)
        words = tag("title", f"{row.name}, {stage}: {x.form(value)}")
        parts.append(tag("rect", words, class_=f"bar {colour}", x=left, y=at - thick / 2, width=shown, height=thick))
        if shown > len(stage) * LETTER + 8:
            parts.append(text(stage, left + shown / 2, at + 4, "middle", "on-bar"))
    if row.mark is not None:
        title = tag("title", row.mark_title)
        line = f"M{x(row.mark):.1f} {at - thick / 2 - 3:.1f}V{at + thick / 2 + 3:.1f}"
        parts.append(tag("path", title, class_="tick", d=line))
    return parts


def dots(
    width: int,
    title: str,
    description: str,
    rows: Sequence[Row],
    label: str,
    form: Callable[[float], str],
    *,
    also: Sequence[float] = (),
) -> Markup:
    """A row per way with its figures and their intervals, or why there is none."""
    most = max((len(row.dots) for row in rows), default=1)
    each = 10.0 + 12 * max(most, 1)
    place, box, height, beside = _rows(width, [row.name for row in rows], each)
    values = [v for row in rows for d in row.dots for v in (d.value, d.low, d.high) if v is not None]
    x = linear([*values, *also], box.left, box.right - 10, label, form)
    parts: list[Markup] = [axes(box, x, None)]
    for k, row in enumerate(rows):
        at = place(k)
        parts.append(_name(row.name, at, box, each, beside=beside))
        if not row.dots:
            parts.append(text(shortened(row.why_not, box.right - box.left), box.left + 4, at + 4, kind="soft halo"))
        for n, dot in enumerate(row.dots):
            y = at + 12 * (n - (len(row.dots) - 1) / 2)
            if dot.low is not None and dot.high is not None:
                parts.append(whisker(y, x(dot.low), x(dot.high), dot.style.colour, upright=False))
            parts.append(dot.style.mark(x(dot.value), y, dot.title))
    return drawing(width, height, title, description, parts)
