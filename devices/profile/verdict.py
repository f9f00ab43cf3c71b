"""What a run means: who is best at what, whether splitting pays, and from which uplink on; where it does not, that first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from narrowcast.devices.profile.figures import Estimate, Way
from narrowcast.devices.profile.model import LinkFigures, break_even, lie_apart
from narrowcast.devices.profile.names import capital, in_words
from narrowcast.devices.profile.schema import Best, BreakEven, Goal, Link, Unit, Verdict
from narrowcast.devices.profile.shares import share_estimate
from narrowcast.text import human_bytes, human_ms, percent

_UNITS: dict[Goal, Unit] = {"latency": "ms", "energy": "J", "bytes": "B", "accuracy": "share"}


class _Candidate(NamedTuple):
    way: Way
    figure: Estimate
    order: tuple[float, float]  # less is better; the second breaks ties


def verdict(ways: Sequence[Way], links: Sequence[Link], figures: Mapping[str, LinkFigures]) -> Verdict:
    """The verdict.

    Args:
        ways: all that ran.
        links: all that there were; none where everything ran on the board.
        figures: the links as the model sees them.
    """
    names: list[str | None] = [link.name for link in links] or [None]
    goals: tuple[Goal, ...] = ("latency", "energy", "bytes", "accuracy")
    best = [_best(goal, name, _on(ways, name)) for name in names for goal in goals]
    main = names[0]
    points = _break_evens(ways, main, figures)
    pays, text = _in_words(ways, names, best)
    text += [capital(point.text) + "." for point in points if point.outcome != "unknown"]
    if all(way.energy.gross_joules_per_frame is None for way in ways) and ways:
        text.append(f"Energy was not measured: {ways[0].energy.why_not}.")
    return Verdict(pays=pays, text=text, best=best, break_evens=points)


def _on(ways: Sequence[Way], link: str | None) -> list[Way]:
    """What can be done where there is that link."""
    return [way for way in ways if way.link in (link, None)]


def _figure(way: Way, goal: Goal) -> tuple[Estimate, tuple[float, float]] | None:
    """A way's figure for a goal, and its order; None where there is none."""
    sent = 0.0 if way.bytes is None else way.bytes.socket_up if way.bytes.socket_up is not None else way.bytes.packet_up
    if goal in ("latency", "energy"):
        figure = way.median_ms if goal == "latency" else way.energy.gross_joules_per_frame
        return None if figure is None else (figure, (figure.value, 0.0))
    if goal == "bytes":
        unanswered = way.bytes is not None and way.bytes.packet_up is None  # bytes for nothing
        return None if sent is None or unanswered else (Estimate(value=sent), (sent, 0.0))
    share = share_estimate(way.agreement)
    return None if share is None else (share, (-share.value, sent or 0.0))


def _best(goal: Goal, link: str | None, ways: Sequence[Way]) -> Best:
    found = [_Candidate(way, *figure) for way in ways if (figure := _figure(way, goal)) is not None]
    if goal in ("bytes", "accuracy"):  # a board alone sends nothing, and agrees with itself: no news
        found = [one for one in found if one.way.link is not None] or found
    found.sort(key=lambda one: one.order)
    unit = _UNITS[goal]
    if not found:
        why = {
            "latency": "no way has a median",
            "energy": next((way.energy.why_not for way in ways if way.energy.why_not), "no way ran"),
            "bytes": "nothing was sent",
            "accuracy": next((way.agreement.why_not for way in ways if way.agreement.why_not), "no way ran"),
        }[goal]
        return Best(goal=goal, link=link, way=None, unit=unit, why_not=why)
    first, second = found[0], found[1] if len(found) > 1 else None
    clear = None
    if second is not None and first.figure.low is not None and second.figure.low is not None:
        clear = lie_apart(first.figure, second.figure)
    return Best(
        goal=goal, link=link, way=first.way.id, unit=unit, value=first.figure.value, clear=clear,
        runner_up=None if second is None else second.way.id, runner_up_value=None if second is None else second.figure.value,
    )  # fmt: skip


def fastest(ways: Sequence[Way], kind: str) -> Way | None:
    """Of a kind, by the median."""
    found = [way for way in ways if way.kind == kind and way.median_ms is not None]
    return min(found, key=_ms, default=None)


def _split(ways: Sequence[Way]) -> Way | None:
    """The fastest split; of those that it is not clearly ahead of, the one that agrees with local most often."""
    first = fastest(ways, "split")
    if first is None or first.median_ms is None or first.median_ms.low is None:
        return first
    found = [way for way in ways if way.kind == "split" and way.median_ms is not None]
    alike = [way for way in found if way.median_ms is not None and _as_fast(way.median_ms, first.median_ms)]
    return max([first, *alike], key=lambda way: (way.agreement.share or 0.0, -_ms(way)))


def _as_fast(one: Estimate, first: Estimate) -> bool:
    return one.low is not None and not lie_apart(one, first)


def _rival(ways: Sequence[Way], split: Way) -> Way | None:
    """The image with the fewest bytes that agrees with local as often as the split, else the one that agrees most."""
    images = [way for way in ways if way.kind == "image" and way.median_ms is not None and way.bytes is not None]
    wanted = split.agreement.share or 0.0
    good = [way for way in images if (way.agreement.share or 0.0) >= wanted]
    if good:
        return min(good, key=lambda way: (way.bytes.packet_up or 0.0) if way.bytes else 0.0)
    return max(images, key=lambda way: way.agreement.share or 0.0, default=None)


def _break_evens(ways: Sequence[Way], link: str | None, figures: Mapping[str, LinkFigures]) -> list[BreakEven]:
    there = _on(ways, link)
    trip = figures[link].round_trip_ms if link is not None and link in figures else 0.0
    local = next((way for way in there if way.kind == "local"), None)
    splits = [way for way in there if way.kind == "split"]
    pairs = [(split, local) for split in splits if local is not None]
    if (split := _split(there)) is not None and (image := _rival(there, split)) is not None:
        pairs.append((split, image))
        if local is not None:
            pairs.append((image, local))
    return [break_even(one, other, ways, figures, trip) for one, other in pairs]


def _in_words(ways: Sequence[Way], names: Sequence[str | None], best: Sequence[Best]) -> tuple[bool | None, list[str]]:
    """Whether a split pays on the first link, and a sentence or two for each; where it does not, that comes first."""
    lines: list[tuple[int, str]] = []
    pays: bool | None = None
    for name in names:
        there = _on(ways, name)
        split = _split(there)
        others = [way for kind in ("local", "exit", "image") if (way := fastest(there, kind)) is not None]
        if split is None or not others:
            continue
        rival = min(others, key=_ms)
        faster = _is_faster(split, rival)
        saves = faster is not True and _saves_energy(best, ways, name)
        lines.append((_ORDER[True if saves else faster], _compared(name, split, rival, faster, saves=saves)))
        if name == names[0]:
            pays = True if saves else faster
    lines.sort(key=lambda line: line[0])
    if not lines:
        return None, ["Whether splitting pays cannot be told: there is no median of a split and of another way."]
    return pays, [text for _, text in lines]


_ORDER = {False: 0, None: 1, True: 2}


def _is_faster(split: Way, rival: Way) -> bool | None:
    """None where their intervals overlap, or one of them is not known: nobody can tell."""
    assert split.median_ms is not None
    assert rival.median_ms is not None
    return _ms(split) < _ms(rival) if lie_apart(split.median_ms, rival.median_ms) else None


def _why_open(split: Way, rival: Way) -> str:
    """Why nobody can tell which of them is faster."""
    for way in (split, rival):
        if way.median_ms is None or way.median_ms.low is None:
            why = (way.why_no_median or "").removeprefix("no interval: ")
            return f"{in_words(way)} has no 95 % interval" + (f" ({why})" if why else "")
    return "95 % intervals overlap"


def _saves_energy(best: Sequence[Best], ways: Sequence[Way], link: str | None) -> bool:
    least = next((one for one in best if one.goal == "energy" and one.link == link), None)
    winner = next((way for way in ways if least is not None and way.id == least.way), None)
    return winner is not None and winner.kind == "split" and bool(least and least.clear)


def _ms(way: Way) -> float:
    assert way.median_ms is not None
    return way.median_ms.value


def _compared(link: str | None, split: Way, rival: Way, faster: bool | None, *, saves: bool) -> str:
    where = f"over the {link} link"
    head = {
        True: f"Splitting pays {where}",
        False: f"Splitting does not pay {where}",
        None: f"Whether splitting pays {where} cannot be told, since {_why_open(split, rival)}",
    }[faster]
    if saves:
        clearly = "clearly " if faster is None else ""
        head = f"Splitting pays {where} in energy, of which a split takes the least, though not {clearly}in time"
    text = f"{head}: {in_words(split)} takes {_figures(split)}; {in_words(rival)}, the fastest other way, {_figures(rival)}."
    if split.agreement.share is None:
        return text
    text += f" The split's answers agree with the whole network's in {percent(split.agreement.share)} of the frames"
    if rival.kind != "local" and rival.agreement.share is not None:
        text += f", the other way's in {percent(rival.agreement.share)}"
    return text + "."


def _figures(way: Way) -> str:
    sent = (
        "" if way.bytes is None or way.bytes.packet_up is None else f" with {human_bytes(way.bytes.packet_up)} a frame"
    )
    return f"{human_ms(_ms(way))}{sent}"
