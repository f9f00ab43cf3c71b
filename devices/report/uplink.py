"""Latency against the uplink: what was measured, what the model says between, and where one way overtakes another."""

from __future__ import annotations

import math
from collections.abc import Sequence

from narrowcast.devices.profile.figures import LatencyModel, Way
from narrowcast.devices.report.entries import Entry, base_id, short_title, uplink_mbit
from narrowcast.devices.report.figures import BY_KEY
from narrowcast.devices.report.latency import bare_ms, measured_points
from narrowcast.devices.report.markup import Child, Markup, tag
from narrowcast.devices.report.plots.curves import Curve, Point, Upright, curves
from narrowcast.devices.report.plots.drawing import figure
from narrowcast.devices.report.tables import table
from narrowcast.text import human_bytes, human_ms, human_rate

MOST_LINES = 6
_STEPS = 60


def predicted_ms(model: LatencyModel, uplink_mbit: float, round_trip_ms: float) -> float:
    """By the model, with a downlink as fast as the uplink. Megabits a second are bits a microsecond."""
    return model.fixed_ms + round_trip_ms + 8 * (model.up_bytes + model.down_bytes) / (uplink_mbit * 1000)


def bases(entry: Entry) -> dict[str, list[Way]]:
    """Ways by their id without the link."""
    found: dict[str, list[Way]] = {}
    for way in entry.run.ways:
        found.setdefault(base_id(way), []).append(way)
    return found


def model_of(ways: Sequence[Way]) -> LatencyModel | None:
    """The first model that there is."""
    return next((way.model for way in ways if way.model is not None and way.model.why_not is None), None)


def chosen(entry: Entry) -> list[str]:
    """Which ways are drawn: those of the break-evens, then local, then those of the fewest bytes; not all at once."""
    evens = entry.run.verdict.break_evens
    wanted = [way for even in evens if even.outcome in ("below", "above") for way in (even.way, even.against)]
    known = bases(entry)
    small = sorted(known, key=lambda base: min((w.bytes.packet_up or 0 for w in known[base] if w.bytes), default=0.0))
    local = [base for base in known if known[base][0].kind == "local"]
    ordered = dict.fromkeys([*local, *wanted, *small])
    return [base for base in ordered if base in known][:MOST_LINES]


def rates(entry: Entry) -> tuple[float, float] | None:
    """From a quarter of the slowest link to four times the fastest, in Mbit/s."""
    known = [rate for link in entry.links if (rate := uplink_mbit(link)) is not None and math.isfinite(rate)]
    known += [e.uplink_mbit for e in entry.run.verdict.break_evens if e.uplink_mbit and 0 < e.uplink_mbit < 1e6]
    return (min(known) / 4, max(known) * 4) if known else None


def plot(entry: Entry, heading: str | None) -> Markup:
    """The plot, or why there is none."""
    span = rates(entry)
    series = [curve for base in chosen(entry) if (curve := _curve(entry, base, span)) is not None]
    if span is None or not any(curve.points or curve.model for curve in series):
        text = "No figure: no link of this run has a known uplink rate, so there is nothing to draw latency against. "
        return tag("div", tag("h3", heading) if heading else None,
                   tag("p", text, "Emulated links (narrowcast profile --link lte) have one."), texts(entry))  # fmt: skip
    evens = [
        e for e in entry.run.verdict.break_evens if e.uplink_mbit is not None and span[0] <= e.uplink_mbit <= span[1]
    ]
    uprights = [Upright(e.uplink_mbit or 0, human_rate((e.uplink_mbit or 0) * 1e6)) for e in evens[:4]]
    entries = [(curve.style.key(), curve.name) for curve in series if curve.level is None]
    uprights += [
        Upright(rate, link.name, beside=True) for link in entry.links if (rate := uplink_mbit(link)) is not None
    ]

    def draw(width: int) -> Markup:
        return curves(
            width, f"Median latency over the uplink's rate{entry.suffix}",
            "Marks are measured, lines are the fitted model, upright lines are break-evens. "
            + " ".join(even.text for even in evens),
            series, x_label="uplink, logarithmic", y_label="milliseconds, median, logarithmic",
            x_form=lambda mbit: human_rate(mbit * 1e6), y_form=bare_ms, y_log=True, uprights=uprights, x_values=span,
        )  # fmt: skip

    note: list[Child] = [_note(entry)]
    return tag("div", figure(draw, entries, heading=heading, note=note, table=_table(entry)), texts(entry))


def texts(entry: Entry) -> Markup | None:
    """The break-evens in words."""
    evens = entry.run.verdict.break_evens
    if not evens:
        return None
    lines: list[Child] = []
    for even in evens:
        doubt: Child = None
        if even.contradicted_by:
            doubt = tag("strong", f" Measured otherwise over {', '.join(even.contradicted_by)}.")
        lines.append(tag("li", even.text, doubt))
    return tag("ul", lines, class_="plain")


def _note(entry: Entry) -> str:
    left = len(bases(entry)) - len(chosen(entry))
    more = f" {left} more ways are in the table." if left > 0 else ""
    return (
        f"Marks are measured; lines are the model, for a round trip of {human_ms(_round_trip(entry))}, a downlink as "
        f"fast as the uplink. Marks of links with another round trip lie off them; a ring is what the model says of the "
        f"link of the mark that it is around or beside.{more}"
    )


def _round_trip(entry: Entry) -> float:
    """That the break-evens were computed for, else the first link's."""
    evens = [even.round_trip_ms for even in entry.run.verdict.break_evens if even.outcome in ("below", "above")]
    return evens[0] if evens else (entry.links[0].round_trip_ms or 0.0) if entry.links else 0.0


def _curve(entry: Entry, base: str, span: tuple[float, float] | None) -> Curve | None:
    ways = bases(entry)[base]
    style, name = entry.styles[base], short_title(ways[0])
    if ways[0].link is None:
        median = BY_KEY["latency_p50_ms"].of(ways[0])
        if median is None or median.value <= 0:
            return None
        return Curve(f"{name}: {human_ms(median.value)}", style, level=median.value)
    points, rings, line = [], [], []
    model = model_of(ways)
    for rate, middle, way, link in measured_points(entry, base):
        found = way.median_ms
        interval = (found.low, found.high) if found else (None, None)
        words = f"{name} over {link.name} ({human_rate(rate * 1e6)}): {human_ms(middle)} measured"
        points.append(Point(rate, middle, words, interval))
        if model is not None and (said := middle + model.errors_ms.get(link.name, -middle)) > 0:
            rings.append(Point(rate, said, f"{name} over {link.name}: {human_ms(said)} by the model"))
    if model is not None and span is not None:
        step = (span[1] / span[0]) ** (1 / _STEPS)
        places = [span[0] * step**k for k in range(_STEPS + 1)]
        line = [(x, y) for x in places if 0 < (y := predicted_ms(model, x, _round_trip(entry))) < 1e12]
    return Curve(name, style, points, joined=False, model=line, rings=rings) if points or line else None


def _table(entry: Entry) -> Markup:
    rows: list[list[Child]] = []
    for ways in bases(entry).values():
        model = model_of(ways)
        for way in ways:
            link = next((one for one in entry.links if one.name == way.link), None)
            rate = uplink_mbit(link) if link else None
            off = model.errors_ms.get(way.link or "") if model else None
            rows.append([
                short_title(way), way.link or "-", human_rate(None if rate is None else rate * 1e6),
                human_ms(link.round_trip_ms) if link else "-", human_ms(way.latency.p50_ms),
                "-" if off is None else f"{off:+.3g} ms",
                human_ms(model.fixed_ms) if model else "-", human_bytes(model.up_bytes if model else None),
            ])  # fmt: skip
    columns = ["way", "link", "uplink", "round trip", "median, measured", "model is off by", "fixed part", "bytes up"]
    return table(f"Links and the model{entry.suffix}", columns, rows, left=[1])
