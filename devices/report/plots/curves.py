"""Lines over a logarithmic axis: accuracy over bytes, latency over the uplink."""

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
    left_room,
    path,
    shortened,
    text,
    whisker,
)
from narrowcast.devices.report.scales import Scale, linear, logarithmic

Interval = tuple[float | None, float | None]


@dataclass(frozen=True)
class Point:
    """A measured value, its 95 % intervals where they are known, and what it says on being pointed at."""

    x: float
    y: float
    title: str
    y_interval: Interval = (None, None)
    x_interval: Interval = (None, None)


@dataclass(frozen=True)
class Curve:
    """A series.

    Attributes:
        name: of the series.
        style: how it is drawn.
        points: measured, in the order in which a line joins them.
        joined: whether one does.
        model: a fitted line, drawn beside the points.
        rings: what the model says of each point, at the place of that point.
        level: the series is one value of ``y`` whatever ``x`` is: a line across, with its name on it.
    """

    name: str
    style: Style
    points: list[Point] = field(default_factory=list)
    joined: bool = True
    model: list[tuple[float, float]] = field(default_factory=list)
    rings: list[Point] = field(default_factory=list)
    level: float | None = None


@dataclass(frozen=True)
class Upright:
    """A line at a value of ``x``, with words above the plot; or, ``beside``, words alone."""

    x: float
    words: str
    beside: bool = False


Form = Callable[[float], str]


def curves(
    width: int,
    title: str,
    description: str,
    series: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    x_form: Form,
    y_form: Form,
    y_log: bool = False,
    y_zero: bool = False,
    uprights: Sequence[Upright] = (),
    x_values: Sequence[float] = (),
    y_values: Sequence[float] = (),
) -> Markup:
    """The plot. ``x_values`` and ``y_values`` lie on the axes too, so that several plots share them."""
    height = 360 if width == WIDE else 300
    xs = [p.x for c in series for p in c.points] + [x for c in series for x, _ in c.model]
    xs += [v for c in series for p in c.points for v in p.x_interval if v is not None] + [u.x for u in uprights]
    ys = [p.y for c in series for p in c.points] + [y for c in series for _, y in c.model]
    ys += [v for c in series for p in c.points for v in p.y_interval if v is not None]
    ys += [p.y for c in series for p in c.rings]
    ys += [c.level for c in series if c.level is not None] + list(y_values)

    def upright_axis(top: float, bottom: float) -> Scale:
        if y_log:
            return logarithmic(ys, bottom, top, y_label, y_form)
        return linear(ys, bottom, top, y_label, y_form, zero=y_zero)

    above = [one for one in uprights if not one.beside]
    beside = [one for one in uprights if one.beside]
    top = 26 + 14 * min(len(above), 4) + (14 if beside else 0)
    y = upright_axis(top, height - 44)
    box = Box(left_room(y), top, width - 14, height - 44)
    x = logarithmic([*xs, *x_values], box.left, box.right, x_label, x_form)
    parts = [axes(box, x, y), _uprights(above, box, x, 14 if beside else 0)]
    parts += [_curve(c, x, y) for c in series]
    parts += [_level(c, box, y) for c in series if c.level is not None]  # last: its name is to be read
    parts += _beside([one for one in uprights if one.beside], box, x)
    return drawing(width, height, title, description, parts)


def _level(curve: Curve, box: Box, y: Scale) -> list[Markup]:
    assert curve.level is not None
    at = y(curve.level)
    name = shortened(curve.name, box.right - box.left)
    return [
        path([(box.left, at), (box.right, at)], f"line {curve.style.colour}", curve.style.dash or "4 4"),
        text(name, box.left + 4, at - 5, kind="halo"),
    ]


def _curve(curve: Curve, x: Scale, y: Scale) -> list[Markup]:
    colour = curve.style.colour
    parts = [path([(x(a), y(b)) for a, b in curve.model], f"line {colour}", curve.style.dash)]
    if curve.joined and len(curve.points) > 1:
        parts.append(path([(x(p.x), y(p.y)) for p in curve.points], f"line {colour}", curve.style.dash))
    for p in curve.points:
        (low, high), (left, right) = p.y_interval, p.x_interval
        if low is not None and high is not None:
            parts.append(whisker(x(p.x), y(low), y(high), colour))
        if left is not None and right is not None and right > left:
            parts.append(whisker(y(p.y), x(left), x(right), colour, upright=False))
    ring = Style(colour, 5)
    parts += [ring.mark(x(p.x), y(p.y), p.title, 7.0) for p in curve.rings]
    return parts + [curve.style.mark(x(p.x), y(p.y), p.title) for p in curve.points]


def _beside(words: Sequence[Upright], box: Box, x: Scale) -> list[Markup]:
    """Words just above the plot: those that have room."""
    parts: list[Markup] = []
    free = box.left
    for one in sorted(words, key=lambda u: u.x):
        length = len(one.words) * LETTER
        start = min(max(x(one.x) - length / 2, box.left), box.right - length)
        if start >= free:
            parts.append(text(one.words, start, box.top - 5, kind="soft halo"))
            free = start + length + 4
    return parts


def _uprights(uprights: Sequence[Upright], box: Box, x: Scale, below: float) -> list[Markup]:
    parts: list[Markup] = []
    for k, one in enumerate(sorted(uprights, key=lambda u: u.x)):
        at, row = x(one.x), box.top - 5 - below - 14 * (min(len(uprights), 4) - 1 - k % 4)
        words = shortened(one.words, box.right)
        length = len(words) * LETTER
        start = min(max(at - length / 2, 2), box.right - length)
        parts.append(
            tag("path", tag("title", one.words), class_="upright", d=f"M{at:.1f} {row + 3:.1f}V{box.bottom:.1f}")
        )
        parts.append(text(words, start, row, kind="halo"))
    return parts
