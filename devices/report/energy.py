"""Joules a frame, and power, temperature and clocks over the time of the run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from narrowcast.devices.profile.schema import Link, Series
from narrowcast.devices.report.entries import Entry, full_title, short_title
from narrowcast.devices.report.figures import BY_KEY, cell, watts, with_interval
from narrowcast.devices.report.latency import over
from narrowcast.devices.report.markup import Child, Markup, tag
from narrowcast.devices.report.plots.bars import Dot, Row, dots
from narrowcast.devices.report.plots.drawing import Style, figure
from narrowcast.devices.report.plots.over_time import Track, Window, over_time
from narrowcast.devices.report.tables import facts, table
from narrowcast.text import human_joules

_GROSS, _NET = BY_KEY["gross_joules_per_frame"], BY_KEY["net_joules_per_frame"]
_STYLES = {"gross": Style("image", 0), "net of idle": Style("split", 5)}
_TRACKS = ("split", "image", "local", "other", "s-queue", "s-decode", "s-return", "s-capture")
MOST_TRACKS = 8


def measurable(entry: Entry) -> bool:
    """Whether any way has a figure."""
    return any(_GROSS.of(way) for way in entry.run.ways)


def not_measured(entry: Entry) -> Markup:
    """That there are no joules, and why: never an estimate."""
    power, ways = entry.run.power, entry.run.ways
    why = (
        power.why_not or next((way.energy.why_not for way in ways if way.energy.why_not), None) or "no reason is given"
    )
    fix = "narrowcast probe on the board says what could be measured, and the fix. Nothing was estimated in its place."
    return tag("p", tag("strong", "Energy was not measurable here: "), f"{why}. ", fix)


def plot(entry: Entry, link: Link | None, also: Sequence[float], heading: str) -> Markup | None:
    """Gross and net joules a frame, with their intervals."""
    ways = entry.over(link)
    if not ways or not measurable(entry):
        return None
    rows = []
    for way in ways:
        found = []
        for name, quantity in (("gross", _GROSS), ("net of idle", _NET)):
            if (figure_ := quantity.of(way)) is not None:
                words = f"{short_title(way)}, {name}: {with_interval(quantity, figure_)}"
                found.append(Dot(figure_.value, figure_.low, figure_.high, _STYLES[name], words))
        rows.append(Row(short_title(way), found, way.energy.why_not or "not measured"))
    description = "; ".join(dot.title for row in rows for dot in row.dots)

    def draw(width: int) -> Markup:
        return dots(width, f"Energy a frame {over(link)}{entry.suffix}", description, rows, "joules a frame", human_joules,
                    also=also)  # fmt: skip

    entries = [(style.key(), name) for name, style in _STYLES.items()]
    body: list[list[Child]] = [
        [short_title(w), cell(_GROSS, _GROSS.of(w)), cell(_NET, _NET.of(w)), watts(w.energy.mean_watts),
         f"{w.energy.samples}", w.energy.why_not or ""]
        for w in ways
    ]  # fmt: skip
    columns = ["way", "gross", "net of idle", "mean power", "samples", "why not"]
    behind = table(f"Energy a frame {over(link)}{entry.suffix}", columns, body, words=[5])
    return figure(draw, entries, heading=heading, table=behind)


def over_the_run(entry: Entry, heading: str | None) -> Markup:
    """Power with the windows marked; temperatures and clocks below it."""
    power = entry.run.power
    told = {"watts": power.watts, "temperatures_c": power.temperatures_c, "clocks_mhz": power.clocks_mhz}
    if not any(_tracks(series) for series in told.values()):
        return tag(
            "p", tag("strong", "Nothing was sampled over the run: "), power.why_not or "there is no course of it", "."
        )
    plots = [
        _course(entry, power.watts, "Power", "watts", heading),
        _course(entry, power.temperatures_c, "Temperature", "degrees Celsius", None, zero=False),
        _course(entry, power.clocks_mhz, "Clocks", "MHz", None),
    ]
    return tag("div", plots)


def _tracks(series: Series) -> list[str]:
    """The names of what has values: the total first, then the largest in the mean."""
    names = [name for name, values in series.values.items() if any(v is not None for v in values)]
    return sorted(names, key=lambda name: (name != "total", -_mean(series.values[name])))


def _course(
    entry: Entry, series: Series, what: str, unit: str, heading: str | None, *, zero: bool = True
) -> Markup | None:
    names = _tracks(series)
    if not names:
        return None
    shown = names[:MOST_TRACKS]
    tracks = [Track(name, Style(_TRACKS[k % len(_TRACKS)], k), series.at_s, series.values[name])
              for k, name in enumerate(shown)]  # fmt: skip
    spans = windows(entry)
    entries = [(_line(track.style), track.name) for track in tracks]
    if what == "Power":  # said once: the others have the same windows
        entries += [
            (tag("span", class_=f"swatch window {kind}", aria_hidden="true"), word)
            for kind, word in _kinds(spans).items()
        ]
    means = [f"{name} {_mean(series.values[name]):.3g} {unit} in the mean" for name in shown]

    def draw(width: int) -> Markup:
        return over_time(width, f"{what} over the run{entry.suffix}", "; ".join(means), tracks, spans, unit,
                         lambda v: f"{v:.4g}", max_gap_s=_gap(series.at_s), zero=zero)  # fmt: skip

    left = f"{len(names) - len(shown)} more are in the run record." if len(names) > len(shown) else None
    return figure(draw, entries, heading=heading or what, note=left)


def _line(style: Style) -> Markup:
    line = tag("path", class_=f"line {style.colour}", d="M1 7H27", stroke_dasharray=style.dash)
    return tag("svg", line, class_="key", viewBox="0 0 28 14", aria_hidden="true")


def _kinds(spans: Sequence[Window]) -> dict[str, str]:
    """What the shades mean, of those that are there."""
    words = {"idle": "idle", "warm-up": "warm-up, does not count", "local": "local", "other": "local exit",
             "image": "send the image", "split": "split"}  # fmt: skip
    there = {span.kind for span in spans}
    return {kind: word for kind, word in words.items() if kind in there}


def windows(entry: Entry) -> list[Window]:
    """What ran when: idle and warm-up, and each block by the kind of its way."""
    found = []
    for window in entry.run.windows:
        if window.kind != "loaded":
            kind = "warm-up" if window.kind == "warm-up" else "idle"
            found.append(Window(window.kind.replace("-", " "), kind, window.start_ns / 1e9, window.end_ns / 1e9))
    for block in entry.run.blocks:
        way = entry.run.way(block.way)
        name = full_title(way) if way else block.way
        several = ", several in flight" if block.mode == "windowed" else ""
        colour = entry.style(way).colour if way else "idle"
        found.append(Window(f"{name}{several}", colour, block.start_ns / 1e9, block.end_ns / 1e9))
    return found


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def _gap(times: Sequence[float]) -> float:
    """What counts as a gap: much more than the usual step."""
    steps = sorted(b - a for a, b in pairwise(times))
    return max(1.0, 5 * steps[len(steps) // 2]) if steps else 1.0


def instruments(entry: Entry) -> Markup:
    """What measured power, what it covers, and what that cost."""
    power = entry.run.power
    percent = "not measured" if power.sampler_cpu_percent is None else f"{power.sampler_cpu_percent:.2f} % of one core"
    return facts([
        ("sensor", power.sensor or "none"),
        ("the total covers", power.scope or "-"),
        ("rails of the total", ", ".join(power.total) or "-"),
        ("samples", f"{power.samples}" + (f", at {power.sample_hz:g} a second" if power.sample_hz else "")),
        ("sampling took", percent),
        *([("why not", power.why_not)] if power.why_not else []),
    ])  # fmt: skip
