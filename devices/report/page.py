"""The page: one HTML file without a script, that asks nothing of any network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources

from narrowcast.devices.profile.schema import Link
from narrowcast.devices.report import energy, facts, latency, rates, summary, uplink
from narrowcast.devices.report.entries import Entry, link_words
from narrowcast.devices.report.figures import BY_KEY
from narrowcast.devices.report.markup import Child, Markup, join, tag
from narrowcast.devices.report.side_by_side import side_by_side

# Nothing is fetched and nothing is run, even if something slipped into the page that should not be there.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

PerLink = Callable[[Entry, Link | None, Sequence[float], str], Markup | None]


def page(entries: Sequence[Entry], command: Sequence[str] = ()) -> str:
    """The whole file.

    Args:
        entries: the runs, one or several.
        command: that made this page; shown at its end.
    """
    sections = _sections(entries)
    body = [
        tag("a", "Skip to the figures", href="#verdict", class_="skip"),
        tag("header", _head(entries), _contents([(key, title) for key, title, _ in sections])),
        tag("main", [_section(key, title, content, first=k == 0) for k, (key, title, content) in enumerate(sections)]),
        tag("footer", _foot(entries, command)),
    ]
    title = f"narrowcast: {', '.join(entry.name for entry in entries)}"
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content="narrowcast report"),
        tag("title", title),
        tag("style", Markup(resources.files(__package__).joinpath("style.css").read_text("utf-8"))),
    ]
    document = tag("html", tag("head", head), tag("body", body), lang="en")
    return f"<!doctype html>\n{document}\n"


def _head(entries: Sequence[Entry]) -> list[Markup]:
    first = entries[0]
    if len(entries) == 1:
        model, run = first.run.model, first.run
        title = f"{model.name} on {first.board}"
        against = f"against {run.server.address}" if run.server else "on the board alone"
        when = run.started.replace("T", " ").removesuffix("Z")
        line = f"Measured {when} UTC in {run.seconds:.0f} s, {against}."
    else:
        title = f"{len(entries)} runs side by side"
        line = "; ".join(
            f"{entry.name}: {entry.run.model.name} on {entry.board}, {entry.run.started[:10]}" for entry in entries
        )
    return [tag("h1", title), tag("p", line, class_="soft")]


def _contents(items: Sequence[tuple[str, str]]) -> Markup:
    return tag(
        "nav", tag("ul", [tag("li", tag("a", title, href=f"#{key}")) for key, title in items]), aria_label="Contents"
    )


def _section(key: str, title: str, content: Child, *, first: bool) -> Markup:
    heading = tag("h2", title, id=f"{key}-title")
    return tag("section", heading, content, id=key, aria_labelledby=f"{key}-title", class_="first" if first else None)


def _foot(entries: Sequence[Entry], command: Sequence[str]) -> list[Child]:
    tools = ", ".join(dict.fromkeys(entry.run.tool for entry in entries))
    words = f" Page by: {' '.join(command)}." if command else ""
    return [tag("p", f"Measured by {tools}.{words} Figures without an interval or a sample are absent, never estimated.",
                class_="soft")]  # fmt: skip


def _sections(entries: Sequence[Entry]) -> list[tuple[str, str, Child]]:
    several = len(entries) > 1
    found: list[tuple[str, str, Child]] = [("verdict", "What this means", _verdict(entries))]
    if several:
        found.append(("runs", "The runs side by side", side_by_side(entries)))
    rate_span = rates.spans(entries)
    found += [
        ("rate", "Accuracy over bytes", [
            tag("p", "Left is less to send; up is truer to the whole network. The bars are 95 % intervals."),
            _each(entries, lambda entry, heading: rates.plot(entry, rate_span, heading)),
        ]),
        ("latency", "Where the time goes", [
            tag("p", "Mean time of a frame from handing it over to its answer, one in flight, by what it was spent on."),
            _per_link(entries, latency.stack_plot, _means(entries)),
        ]),
        ("uplink", "Latency against the uplink", _each(entries, uplink.plot)),
        ("energy", "Energy a frame", _energy(entries)),
        ("time", "Power over the run", _each(entries, energy.over_the_run)),
        ("spread", "How latency spreads", [
            tag("p", "Each way's frames by their latency; heights are relative to the way's own "
                     "most frequent latency. Within the upright lines lie 50, 95 and 99 % of the frames."),
            _per_link(entries, latency.histogram_plot, _spreads(entries), folded=True),
        ]),
        ("all", "Every figure", _each(entries, lambda entry, heading: facts.everything(entry), wide=True)),
        ("board", "The board, and what state it was in", _each(entries, lambda entry, heading: _board(entry), wide=True)),
        ("how", "How it was measured", _each(entries, lambda entry, heading: facts.method(entry), wide=True)),
    ]  # fmt: skip
    return found


def _verdict(entries: Sequence[Entry]) -> Child:
    parts: list[Child] = []
    for entry in entries:
        parts.append(tag("h3", entry.name) if len(entries) > 1 else None)
        parts.append(summary.summary(entry))
    return [*parts, summary.warnings(entries), summary.of_ways(entries)]


def _each(entries: Sequence[Entry], draw: Callable[[Entry, str | None], Child], *, wide: bool = False) -> Child:
    """One content for each run: beside one another where there are several."""
    if len(entries) == 1:
        return draw(entries[0], None)
    blocks = [tag("div", tag("h3", entry.name) if wide else None, draw(entry, entry.name)) for entry in entries]
    return blocks if wide else tag("div", blocks, class_="grid")


def _per_link(entries: Sequence[Entry], draw: PerLink, also: Sequence[float], *, folded: bool = False) -> Child:
    """For each link, the runs beside one another; ``folded``: all but the first link's can be opened."""
    found = dict.fromkeys(link.name for entry in entries for link in entry.links)
    names: list[str | None] = [*found] or [None]
    blocks: list[Child] = []
    for name in names:
        drawings: list[Markup] = []
        for entry in entries:
            link = next((one for one in entry.links if one.name == name), None)
            if link is None and (entry.links or name != names[0]):
                continue  # a run without any link stands beside the first one of the others
            over = f"over {link_words(link.name)}" if link else "without a link" if name else ""
            words = " · ".join(word for word in (entry.name if len(entries) > 1 else "", over) if word)
            if (drawn := draw(entry, link, also, words)) is not None:
                drawings.append(drawn)
        block = tag("div", drawings, class_="grid") if len(entries) > 1 else join(drawings)
        if folded and blocks and drawings:
            block = tag("details", tag("summary", f"The same over {link_words(name)}"), block)
        blocks.append(block)
    return blocks


def _means(entries: Sequence[Entry]) -> list[float]:
    """Only where plots of several runs are to share an axis."""
    if len(entries) == 1:
        return []
    return [way.latency.mean_ms for entry in entries for way in entry.run.ways if way.latency.mean_ms is not None]


def _spreads(entries: Sequence[Entry]) -> list[float]:
    ways = [way for entry in entries for way in entry.run.ways]
    return [v for way in ways for v in (way.latency.p50_ms, way.latency.p99_ms) if v is not None and v > 0]


def _energy(entries: Sequence[Entry]) -> Child:
    told = [entry for entry in entries if energy.measurable(entry)]
    gross = BY_KEY["gross_joules_per_frame"]
    values = [f.value for entry in told for way in entry.run.ways if (f := gross.of(way))] if len(told) > 1 else []
    missing = [
        [tag("h3", entry.name) if len(entries) > 1 else None, energy.not_measured(entry)]
        for entry in entries
        if entry not in told
    ]
    if not told:
        return missing
    words = (
        "Gross is all that the board took while it worked on a frame; net is what it took beyond being idle. "
        "The bars are 95 % intervals."
    )
    return [tag("p", words), _per_link(told, energy.plot, values, folded=True), *missing]


def _board(entry: Entry) -> Child:
    return [facts.identity(entry), facts.conditions(entry), facts.links(entry)]
