"""Accuracy over bytes: what each way sends, and how often it answers as the whole network does."""

from __future__ import annotations

from collections.abc import Sequence

from narrowcast.devices.profile.figures import Way
from narrowcast.devices.report.entries import Entry, base_id, short_title
from narrowcast.devices.report.figures import BY_KEY, agreement, cell, up_bytes, with_interval
from narrowcast.devices.report.markup import Child, Markup, tag
from narrowcast.devices.report.plots.curves import Curve, Point, curves
from narrowcast.devices.report.plots.drawing import Style, figure
from narrowcast.devices.report.tables import table
from narrowcast.text import human_bytes, percent

_METRICS = {
    "top-1": "same class",
    "pixels": "pixels of the same class",
    "boxes": "F1 of the boxes",
    "outputs": "1 - error of the outputs",
}
_FAMILIES = {"split": (Style("split", 0), "split"), "jpeg": (Style("image", 1), "send JPEG"),
             "webp": (Style("other", 2), "send WebP")}  # fmt: skip


def measured(entry: Entry) -> list[Way]:
    """One way of each kind and setting: the one with most frames, since bytes and answers do not depend on the link."""
    found: dict[str, Way] = {}
    for way in entry.run.ways:
        if (up_bytes(way.bytes) or 0) > 0 and agreement(way) is not None:
            known = found.get(base_id(way))
            if known is None or way.frames > known.frames:
                found[base_id(way)] = way
    return list(found.values())


def plot(entry: Entry, also: tuple[Sequence[float], Sequence[float]], heading: str | None) -> Markup:
    """The rate-accuracy curve of one run."""
    ways = measured(entry)
    if not ways:
        return tag("div", tag("h3", heading) if heading else None, tag("p", "No figure: ", why_not(entry)))
    series = []
    for name, (style, title) in _FAMILIES.items():
        members = sorted((w for w in ways if family(w) == name), key=lambda w: up_bytes(w.bytes) or 0)
        if members:
            series.append(Curve(title, style, [_point(way) for way in members]))
    entries = [(curve.style.key(), curve.name) for curve in series]
    ends = [way for way in entry.run.ways if way.kind == "exit" and agreement(way) is not None]
    series += [_exit(way) for way in ends[:1]]
    metric = ways[0].agreement.metric
    description = "; ".join(f"{short_title(w)}: {_words(w)}" for w in ways)

    def draw(width: int) -> Markup:
        return curves(
            width, f"Agreement with the whole network over bytes a frame{entry.suffix}", description, series,
            x_label="bytes a frame, up", y_label=f"agreement with the whole network, % ({_METRICS[metric]})",
            x_form=human_bytes, y_form=lambda share: f"{100 * share:.4g}", x_values=also[0], y_values=also[1],
        )  # fmt: skip

    return figure(draw, entries, heading=heading, table=_table(entry, ways))


def why_not(entry: Entry) -> str:
    """Why there is no curve."""
    reasons = [way.agreement.why_not for way in entry.run.ways if way.bytes is not None and way.agreement.why_not]
    return reasons[0] if reasons else "no way that sends something was compared with the whole network"


def family(way: Way) -> str:
    """Which curve a way lies on."""
    return "split" if way.kind == "split" else way.codec or "webp"


def spans(entries: Sequence[Entry]) -> tuple[list[float], list[float]]:
    """Bytes and agreements of all runs, so that their plots share axes."""
    ways = [way for entry in entries for way in measured(entry)]
    shares = [found for way in ways if (found := agreement(way))]
    ends = [v for f in shares for v in f if v is not None]
    return [up_bytes(way.bytes) or 0 for way in ways], ends


def _point(way: Way) -> Point:
    found = agreement(way)
    assert found is not None
    return Point(up_bytes(way.bytes) or 0, found.value, f"{short_title(way)}: {_words(way)}", (found.low, found.high))


def _exit(way: Way) -> Curve:
    found = agreement(way)
    assert found is not None
    return Curve(f"local exit, nothing sent: {percent(found.value)}", Style("other", 5), level=found.value)


def _words(way: Way) -> str:
    return f"{human_bytes(up_bytes(way.bytes))}, {with_interval(BY_KEY['agreement'], agreement(way))}"


def _form(key: str, way: Way) -> str:
    return with_interval(BY_KEY[key], BY_KEY[key].of(way))


def _table(entry: Entry, ways: Sequence[Way]) -> Markup:
    rows: list[list[Child]] = [
        [
            short_title(way),
            _form("packet_up_bytes", way),
            _form("socket_up_bytes", way),
            cell(BY_KEY["agreement"], agreement(way)),
            f"{way.agreement.frames}",
            percent(way.accuracy.agreement),
        ]
        for way in ways
    ]
    columns = ["way", "packet", "on the socket", "agreement (95 % interval)", "frames", "as the bundle says"]
    return table(f"Bytes and agreement{entry.suffix}", columns, rows)
