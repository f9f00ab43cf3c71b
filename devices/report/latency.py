"""Where time goes: stages, how latency spreads, and what it becomes on other uplinks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from narrowcast.devices.profile.figures import STAGE_ORDER, Stage, Way
from narrowcast.devices.profile.schema import Link
from narrowcast.devices.report.entries import Entry, link_words, short_title, uplink_mbit
from narrowcast.devices.report.figures import BY_KEY, QUANTITIES, cell
from narrowcast.devices.report.markup import Child, Markup, tag
from narrowcast.devices.report.plots.bars import Stack, stacks
from narrowcast.devices.report.plots.drawing import figure
from narrowcast.devices.report.plots.histograms import Spread, histograms
from narrowcast.devices.report.tables import table
from narrowcast.text import human_ms


def bare_ms(value: float) -> str:
    """For an axis whose name has the unit."""
    return f"{value:.4g}"


def over(link: Link | None) -> str:
    """``over lte``."""
    return f"over {link_words(link.name)}" if link else "without a link"


def parts(way: Way) -> list[Stage]:
    """The stages whose means add up to the mean latency; ``wire`` as its two halves where those are known."""
    outer = [stage for stage in way.stages if stage.within is None and stage.times.mean_ms is not None]
    halves = {s.name: s for s in way.stages if s.within == "wire" and s.times.mean_ms is not None}
    if not {"network", "return"} <= halves.keys() or min(s.times.mean_ms or 0 for s in halves.values()) < 0:
        return outer
    found = []
    for stage in outer:
        if stage.name == "other":
            found.append(halves["return"])
        found.append(halves["network"] if stage.name == "wire" else stage)
    return found if halves["return"] in found else [*found, halves["return"]]


def mean_ms(stage: Stage) -> float:
    """For drawing: never below 0."""
    return max(0.0, stage.times.mean_ms or 0.0)


def stack_plot(entry: Entry, link: Link | None, also: Sequence[float], heading: str) -> Markup | None:
    """Mean latency by stage, for the ways of a link and those that need none."""
    ways = [way for way in entry.over(link) if parts(way)]
    if not ways:
        return None
    rows = [
        Stack(
            short_title(way),
            [(stage.name, mean_ms(stage), f"s-{stage.name}") for stage in parts(way)],
            human_ms(way.latency.mean_ms),
            way.latency.p95_ms,
            f"{short_title(way)}: 95 % of the frames take {human_ms(way.latency.p95_ms)} or less",
        )
        for way in ways
    ]
    there = {stage.name for way in ways for stage in parts(way)}
    names = [name for name in STAGE_ORDER if name in there]
    entries: list[tuple[Markup, str]] = [
        (tag("span", class_=f"swatch s-{name}", aria_hidden="true"), name) for name in names
    ]
    if any(row.mark is not None for row in rows):
        entries.append((_tick(), "95 % of the frames are faster"))
    if link is not None and entry.links and link != entry.links[0]:
        entries = []  # said once, at the first link
    description = "; ".join(f"{row.name}: {row.end}" for row in rows)

    def draw(width: int) -> Markup:
        return stacks(width, f"Mean latency by stage {over(link)}{entry.suffix}", description, rows,
                      "milliseconds, mean of a frame", bare_ms, also=also)  # fmt: skip

    return figure(draw, entries, heading=heading, table=_stages_table(entry, link, ways))


def _tick() -> Markup:
    line = tag("path", class_="tick", d="M14 1V13")
    return tag("svg", line, class_="key", viewBox="0 0 28 14", aria_hidden="true")


def _stages_table(entry: Entry, link: Link | None, ways: Sequence[Way]) -> Markup:
    rows: list[list[Child]] = []
    for way in ways:
        for stage in way.stages:
            name = f"{stage.name} (within {stage.within})" if stage.within else stage.name
            error = "" if stage.error_ms is None else f" ± {human_ms(stage.error_ms)}"
            figures = [human_ms(v) for v in percentiles(stage)]
            rows.append([short_title(way), name, stage.where, human_ms(stage.times.mean_ms) + error, *figures])
        whole = way.latency
        figures = [human_ms(v) for v in (whole.mean_ms, whole.p50_ms, whole.p90_ms, whole.p95_ms, whole.p99_ms)]
        rows.append([short_title(way), "all of it", "", *figures])
    columns = ["way", "stage", "where", "mean", "50 %", "90 %", "95 %", "99 %"]
    return table(f"Every stage {over(link)}{entry.suffix}", columns, rows, left=[1, 2])


def percentiles(stage: Stage) -> tuple[float | None, ...]:
    """50, 90, 95 and 99 %."""
    times = stage.times
    return times.p50_ms, times.p90_ms, times.p95_ms, times.p99_ms


def histogram_plot(entry: Entry, link: Link | None, also: Sequence[float], heading: str) -> Markup | None:
    """How latency spreads over frames."""
    rows = []
    for way in entry.over(link):
        found = way.latency.histogram
        if found is None or not _sound(found.edges_ms, found.counts):
            continue
        marks = [(v, name) for v, name in ((way.latency.p50_ms, "50"), (way.latency.p95_ms, "95"),
                                           (way.latency.p99_ms, "99")) if v is not None and v > 0]  # fmt: skip
        rows.append(Spread(short_title(way), entry.style(way).colour, found.edges_ms, found.counts, marks))
    if not rows:
        return None
    description = "; ".join(
        f"{row.name}: " + ", ".join(f"{word} % within {human_ms(value)}" for value, word in row.marks) for row in rows
    )

    def draw(width: int) -> Markup:
        return histograms(width, f"How latency spreads {over(link)}{entry.suffix}", description, rows,
                          "milliseconds, logarithmic", bare_ms, also=also)  # fmt: skip

    keys = [q for q in QUANTITIES if q.key.startswith("latency_")]
    body: list[list[Child]] = [
        [short_title(way), *(cell(q, q.of(way)) for q in keys), f"{way.frames}"] for way in entry.over(link)
    ]
    columns = ["way", *(q.title for q in keys), "frames"]
    return figure(draw, heading=heading, table=table(f"Latency {over(link)}{entry.suffix}", columns, body))


def _sound(edges: Sequence[float], counts: Sequence[int]) -> bool:
    """A histogram that can be drawn: what a file says need not fit together."""
    rising = all(0 <= a < b and math.isfinite(b) for a, b in pairwise(edges))
    return len(edges) == len(counts) + 1 and rising and min(counts, default=-1) >= 0 and sum(counts) > 0


def measured_points(entry: Entry, base: str) -> list[tuple[float, float, Way, Link]]:
    """(uplink in Mbit/s, median in milliseconds) of a way, over every link whose rate is known."""
    found = []
    for link in entry.links:
        rate, way = uplink_mbit(link), entry.run.way(f"{base}@{link.name}")
        median = BY_KEY["latency_p50_ms"].of(way) if way else None
        if rate is not None and way is not None and median is not None:
            found.append((rate, median.value, way, link))
    return found
