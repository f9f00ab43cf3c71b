"""Several runs at once: a plot of their medians, and a table for each link."""

from __future__ import annotations

from collections.abc import Sequence

from narrowcast.devices.report.entries import Entry, link_words, short_title
from narrowcast.devices.report.figures import BY_KEY, cell, with_interval
from narrowcast.devices.report.latency import bare_ms
from narrowcast.devices.report.markup import Child, Markup, join, tag
from narrowcast.devices.report.plots.bars import Dot, Row, dots
from narrowcast.devices.report.plots.drawing import Style, figure
from narrowcast.devices.report.tables import table

_SHOWN = ("latency_p50_ms", "gross_joules_per_frame", "packet_up_bytes", "agreement")
_COLOURS = ("split", "image", "local", "other")


def side_by_side(entries: Sequence[Entry]) -> Markup:
    """For each link: medians, way by way and run by run."""
    found = dict.fromkeys(link.name for entry in entries for link in entry.links)
    names: list[str | None] = [*found] or [None]
    blocks: list[Markup] = []
    for name in names:
        ids = _ids(entries, name)
        block = join([_plot(entries, ids, name), _table(entries, ids, name)])
        if blocks:
            block = tag("details", tag("summary", f"The same over {link_words(name)}"), block)
        blocks.append(block)
    return join(blocks)


def _ids(entries: Sequence[Entry], link: str | None) -> list[str]:
    ways = [way for entry in entries for way in entry.run.ways if way.link is None or way.link == link]
    return list(dict.fromkeys(way.id for way in ways))


def _title(entries: Sequence[Entry], way_id: str) -> str:
    return next(short_title(way) for entry in entries if (way := entry.run.way(way_id)))


def _plot(entries: Sequence[Entry], ids: Sequence[str], link: str | None) -> Markup:
    median = BY_KEY["latency_p50_ms"]
    styles = [Style(_COLOURS[k % len(_COLOURS)], k) for k in range(len(entries))]
    rows = []
    for way_id in ids:
        title, found = _title(entries, way_id), []
        for entry, style in zip(entries, styles, strict=True):
            way = entry.run.way(way_id)
            if way and (value := median.of(way)):
                words = f"{title}, {entry.name}: {with_interval(median, value)}"
                found.append(Dot(value.value, value.low, value.high, style, words))
        rows.append(Row(title, found, "no figure"))
    words = "; ".join(dot.title for row in rows for dot in row.dots)

    def draw(width: int) -> Markup:
        title = f"Median latency over {link_words(link)}, run by run"
        return dots(width, title, words, rows, "milliseconds, median", bare_ms)

    keys = [(style.key(), entry.name) for style, entry in zip(styles, entries, strict=True)]
    return figure(draw, keys, heading=f"Median latency over {link_words(link)}")


def _table(entries: Sequence[Entry], ids: Sequence[str], link: str | None) -> Markup:
    columns = ["way", *(f"{BY_KEY[key].title}: {entry.name}" for key in _SHOWN for entry in entries)]
    rows: list[list[Child]] = []
    for way_id in ids:
        ways = [entry.run.way(way_id) for entry in entries]
        cells = ["not run" if way is None else cell(BY_KEY[key], BY_KEY[key].of(way)) for key in _SHOWN for way in ways]
        rows.append([_title(entries, way_id), *cells])
    return table(f"Over {link_words(link)}, run by run", columns, rows)
