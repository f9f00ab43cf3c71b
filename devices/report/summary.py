"""The first screen: what this means, who is best at what, and what weakens the figures."""

from __future__ import annotations

from collections.abc import Sequence

from narrowcast.devices.profile.schema import Best, Goal
from narrowcast.devices.report.entries import Entry, full_title, link_words, short_title
from narrowcast.devices.report.figures import agreement
from narrowcast.devices.report.markup import Child, Markup, join, tag
from narrowcast.devices.report.tables import table
from narrowcast.text import human_bytes, human_joules, human_ms, percent

_GOALS: dict[Goal, str] = {
    "latency": "lowest latency",
    "energy": "least energy a frame",
    "bytes": "fewest bytes up",
    "accuracy": "truest to the whole network",
}
_FORMS = {"ms": human_ms, "J": human_joules, "B": human_bytes, "share": percent}
_ANSWERS = {
    True: "Splitting pays{where}",
    False: "Splitting does not pay{where}",
    None: "Whether splitting pays{where} cannot be told",
}


def summary(entry: Entry) -> Markup:
    """The verdict in words, cards for the first link, and all links in a table."""
    verdict = entry.run.verdict
    kind = {True: "yes", False: "no", None: None}[verdict.pays]
    words = [text for text in verdict.text if text.strip()]
    first = entry.run.links[:1]  # as they were given: what the verdict is about
    where = f" over {link_words(first[0].name)}" if first else ""
    answer = _ANSWERS[verdict.pays].format(where=where)
    return join([
        tag("div", None if words and words[0].startswith(answer) else tag("p", answer, class_="answer"),
            [tag("p", text, class_=None if k else "lead") for k, text in enumerate(words)],
            class_=f"verdict {kind}" if kind else "verdict"),
        _cards(entry),
        _all_links(entry),
    ])  # fmt: skip


def warnings(entries: Sequence[Entry]) -> Markup | None:
    """What weakens runs as a whole; nothing where nothing does."""
    found: list[Markup] = []
    for entry in entries:
        run = entry.run
        lines = [] if run.complete else [f"the run is not complete: {run.why_incomplete or 'it does not say why'}"]
        lines += run.warnings
        if run.conditions.throttled and not any("slowed down" in line for line in lines):
            lines.append(f"the board was slowed down during the run: {', '.join(run.conditions.throttled)}")
        prefix = f"{entry.name}: " if len(entries) > 1 else ""
        found += [tag("li", prefix + line) for line in dict.fromkeys(lines)]
    if not found:
        return None
    return tag("section", tag("strong", "What weakens these figures"), tag("ul", found), class_="warnings",
               aria_label="Warnings")  # fmt: skip


def of_ways(entries: Sequence[Entry]) -> Markup | None:
    """Warnings of single ways."""
    lines = [
        f"{entry.name + ': ' if len(entries) > 1 else ''}{full_title(way)}: {line}"
        for entry in entries
        for way in entry.run.ways
        for line in dict.fromkeys([*way.warnings, *way.energy.warnings])
    ]
    if not lines:
        return None
    return tag("details", tag("summary", f"{len(lines)} warnings of single ways"),
               tag("ul", [tag("li", line) for line in lines], class_="plain"))  # fmt: skip


def _figure(best: Best) -> str:
    return _FORMS[best.unit](best.value)


def _title(entry: Entry, way_id: str | None) -> str:
    way = entry.run.way(way_id) if way_id else None
    return "" if way_id is None else short_title(way) if way else way_id


def _cards(entry: Entry) -> Markup | None:
    """Who is best at what, on the first link."""
    first = entry.links[0].name if entry.links else None
    chosen = {b.goal: b for b in entry.run.verdict.best if b.link in (first, None)}
    cards = [_card(entry, goal, chosen[goal]) for goal in _GOALS if goal in chosen]
    if not cards:
        return None
    return join([tag("h3", f"Best over {link_words(first)}" if first else "Best"), tag("ul", cards, class_="cards")])


def _card(entry: Entry, goal: Goal, best: Best) -> Markup:
    head = tag("div", _GOALS[goal], class_="goal")
    if best.way is None:
        return tag("li", head, tag("div", "no figure", class_="way"), tag("small", best.why_not or ""))
    behind: Child = None
    if best.runner_up is not None:
        clear = {True: "clearly ahead of", False: "not clearly ahead of", None: "ahead of"}[best.clear]
        value = "" if best.runner_up_value is None else f" ({_FORMS[best.unit](best.runner_up_value)})"
        behind = tag("small", f"{clear} {_title(entry, best.runner_up)}{value}")
    return tag(
        "li",
        head,
        tag("div", _figure(best), class_="figure"),
        tag("div", _title(entry, best.way), class_="way"),
        behind,
        _worth(entry, best),
    )


def _worth(entry: Entry, best: Best) -> Markup | None:
    """What the answers of the best are worth, where the goal does not say so: few bytes are easily had with wrong ones."""
    way = entry.run.way(best.way) if best.way else None
    share = None if way is None or best.goal == "accuracy" else agreement(way)
    return (
        None
        if share is None
        else tag("small", f"agrees with the whole network in {percent(share.value)}", class_="worth")
    )


def _all_links(entry: Entry) -> Markup | None:
    """Goals by links, where there are several."""
    best = entry.run.verdict.best
    names = list(dict.fromkeys(b.link for b in best))
    if len(names) < 2:
        return None
    goals = [goal for goal in _GOALS if any(b.goal == goal and b.way for b in best)]  # why there is none, its card says
    rows: list[list[Child]] = []
    for name in names:
        found = {b.goal: b for b in best if b.link == name}
        rows.append([link_words(name), *(_cell(entry, found.get(goal)) for goal in goals)])
    columns = ["link", *(_GOALS[goal] for goal in goals)]
    return table("The best way, link by link", columns, rows, words=range(1, len(columns)))


def _cell(entry: Entry, best: Best | None) -> Child:
    if best is None:
        return "-"
    if best.way is None:
        return ["no figure", tag("small", best.why_not or "")]
    doubt = "" if best.clear is not False else ", not clearly"
    return [_title(entry, best.way), tag("small", f"{_figure(best)}{doubt}")]
