"""The frame of every plot: size, axes, marks, and what goes around it on the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from narrowcast.devices.report.markup import Child, Markup, join, tag
from narrowcast.devices.report.scales import Scale

WIDE, NARROW = 880, 340
LETTER = 6.9  # mean width of a letter, at the size that the style sheet gives to text in drawings
_MARKS = ("circle", "square", "diamond", "triangle", "cross", "ring")
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "10 4", "1 4")


class Box(NamedTuple):
    """Where the values are drawn."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Style:
    """How one series is told from the others: colour, mark and dashes, so that no reader depends on colour alone."""

    colour: str
    number: int = 0

    @property
    def dash(self) -> str | None:
        """Of its line."""
        return _DASHES[self.number % len(_DASHES)] or None

    def mark(self, x: float, y: float, title: str = "", size: float = 4.5) -> Markup:
        """A mark at a place, with what it says on being pointed at."""
        kind = _MARKS[self.number % len(_MARKS)]
        text = tag("title", title) if title else None
        if kind in ("circle", "ring"):
            return tag("circle", text, class_=f"mark {self.colour} {kind}", cx=x, cy=y, r=size)
        return tag("path", text, class_=f"mark {self.colour}", d=_outline(kind, x, y, size))

    def key(self) -> Markup:
        """Its sample in a legend."""
        line = tag("path", class_=f"line {self.colour}", d="M1 7H27", stroke_dasharray=self.dash)
        return tag("svg", line, self.mark(14, 7), class_="key", viewBox="0 0 28 14", aria_hidden="true")


def _outline(kind: str, x: float, y: float, r: float) -> str:
    if kind == "square":
        r *= 0.88
        return f"M{x - r:.1f} {y - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z"
    if kind == "diamond":
        r *= 1.25
        return f"M{x:.1f} {y - r:.1f}l{r:.1f} {r:.1f}l{-r:.1f} {r:.1f}l{-r:.1f} {-r:.1f}z"
    if kind == "triangle":
        r *= 1.2
        return f"M{x:.1f} {y - r:.1f}l{r:.1f} {1.8 * r:.1f}h{-2 * r:.1f}z"
    a = r * 0.4  # a cross with some body
    return (
        f"M{x - a:.1f} {y - r:.1f}h{2 * a:.1f}v{r - a:.1f}h{r - a:.1f}v{2 * a:.1f}h{a - r:.1f}v{r - a:.1f}h{-2 * a:.1f}"
        f"v{a - r:.1f}h{a - r:.1f}v{-2 * a:.1f}h{r - a:.1f}z"
    )


def text(words: str, x: float, y: float, anchor: str = "start", kind: str | None = None) -> Markup:
    """Words at a place: ``start``, ``middle`` or ``end`` of them."""
    return tag("text", words, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=kind)


def shortened(words: str, room: float) -> str:
    """What fits into so many units, with an ellipsis where something is missing."""
    letters = max(1, int(room / LETTER))
    return words if len(words) <= letters else words[: max(1, letters - 1)].rstrip() + "…"


def path(points: Sequence[tuple[float, float]], kind: str, dash: str | None = None) -> Markup:
    """A line through points."""
    if not points:
        return Markup()
    steps = " ".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return tag("path", class_=kind, d=f"M{steps}", stroke_dasharray=dash)


def whisker(x: float, low: float, high: float, colour: str, *, upright: bool = True) -> Markup:
    """An interval: a line with ends."""
    if upright:
        return tag(
            "path",
            class_=f"whisker {colour}",
            d=f"M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8M{x:.1f} {low:.1f}V{high:.1f}",
        )
    return tag(
        "path",
        class_=f"whisker {colour}",
        d=f"M{low:.1f} {x - 4:.1f}v8M{high:.1f} {x - 4:.1f}v8M{low:.1f} {x:.1f}H{high:.1f}",
    )


def axes(box: Box, x: Scale, y: Scale | None, x_ticks: Sequence[float] | None = None) -> Markup:
    """Grid, ticks and names of both axes; no upright one where ``y`` is None."""
    width = box.right - box.left
    parts: list[Markup] = []
    places = _apart(x, x_ticks if x_ticks is not None else x.ticks(3 if width < 300 else 6))
    for value in places:
        parts.append(tag("path", class_="rule", d=f"M{x(value):.1f} {box.top:.1f}V{box.bottom:.1f}"))
        words = x.form(value)
        half = len(words) * LETTER / 2
        parts.append(text(words, min(max(x(value), half), box.right + 12 - half), box.bottom + 16, "middle"))
    for value in y.ticks(5) if y else ():
        assert y is not None
        parts.append(tag("path", class_="rule", d=f"M{box.left:.1f} {y(value):.1f}H{box.right:.1f}"))
        parts.append(text(y.form(value), box.left - 6, y(value) + 4, "end"))
    parts.append(tag("path", class_="axis", d=f"M{box.left:.1f} {box.bottom:.1f}H{box.right:.1f}"))
    parts.append(text(x.label, (box.left + box.right) / 2, box.bottom + 34, "middle", "name"))
    if y is not None:
        parts.append(text(y.label, 0, 11, kind="name"))
    return join(parts)


def _apart(x: Scale, values: Sequence[float]) -> list[float]:
    """Those values whose labels do not touch one another."""
    kept: list[float] = []
    free = float("-inf")
    for value in values:
        half = len(x.form(value)) * LETTER / 2 + 3
        if x(value) - half >= free:
            kept.append(value)
            free = x(value) + half
    return kept


def left_room(y: Scale, least: float = 30) -> float:
    """What the labels of an upright axis take."""
    return max([least, *(len(y.form(value)) * LETTER + 10 for value in y.ticks(5))])


def drawing(width: float, height: float, title: str, description: str, *children: Child) -> Markup:
    """The whole plot: a screen reader reads its title and description."""
    return tag(
        "svg", tag("title", title), tag("desc", description), *children,
        class_="wide" if width == WIDE else "narrow", viewBox=f"0 0 {width:g} {height:g}", role="img",
        aria_label=f"{title}. {description}",
    )  # fmt: skip


def legend(entries: Sequence[tuple[Markup, str]]) -> Markup | None:
    """What is which; as words of the page, so that it wraps and can be read."""
    if not entries:
        return None
    return tag("ul", [tag("li", key, tag("span", name)) for key, name in entries], class_="legend")


def figure(
    draw: Callable[[int], Markup],
    entries: Sequence[tuple[Markup, str]] = (),
    *,
    heading: str | None = None,
    note: Child = None,
    table: Markup | None = None,
) -> Markup:
    """A plot in both sizes, with its legend, a note, and the numbers behind it."""
    behind = None
    if table is not None:
        behind = tag("details", tag("summary", "The numbers behind this plot"), table)
    return tag(
        "figure",
        tag("h3", heading) if heading else None,
        legend(entries),
        draw(WIDE),
        draw(NARROW),
        tag("figcaption", note) if note else None,
        behind,
    )
