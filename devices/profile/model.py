"""Latency over links that were not measured, and where one way overtakes another: a model, fitted to what was measured.

``latency = fixed + round trip + 8 x bytes / rate``: what a way takes on board and server does not depend on the link, its
round trip is the link's, and its bytes take their time. What TCP adds on thin or lossy links (its windows begin small,
losses are sent again) is not in it; how far it is off on the measured links stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from narrowcast.devices.profile.connections import on_the_link
from narrowcast.devices.profile.figures import Estimate, LatencyModel, Way
from narrowcast.devices.profile.names import in_words
from narrowcast.devices.profile.schema import BreakEven, Link, Outcome

LEAST_WAYS = 3
LEAST_SPREAD = 3.0  # between the fewest bytes and the most, for a slope to mean something
MOST_ERROR = 0.25


class LinkFigures(NamedTuple):
    """A measured link, as the model sees it.

    Attributes:
        round_trip_ms: without what bytes take.
        up_kbit: None for one that is too fast to tell, or not known.
        down_kbit: likewise.
        headers: whether its rate counts headers.
    """

    round_trip_ms: float
    up_kbit: float | None
    down_kbit: float | None
    headers: bool = True


def uplink_kbit(points: Sequence[tuple[float, float]]) -> float | None:
    """A link's rate by the slope of what bytes take, where ways with few and with many bytes show one.

    Args:
        points: bytes up, and the median milliseconds on the wire, by way.
    """
    if len(points) < LEAST_WAYS:
        return None
    sizes, times = np.array(points, np.float64).T
    if sizes.max() < LEAST_SPREAD * max(sizes.min(), 1.0):
        return None
    slope, start = np.polyfit(sizes, times, 1)
    rest = times - (slope * sizes + start)
    spread = float(np.square(sizes - sizes.mean()).sum())
    error = float(np.sqrt(np.square(rest).sum() / (len(points) - 2) / spread))
    return None if slope <= 0 or error > MOST_ERROR * slope else float(8 / slope)


def figures_of(links: Sequence[Link]) -> dict[str, LinkFigures]:
    """Measured links for the model: emulated ones as they were set, the real one as it was measured."""
    real = next((link.round_trip_ms for link in links if link.kind == "real" and link.round_trip_ms is not None), 0.0)
    found = {}
    for link in links:
        if link.settings is not None:
            trip = 2 * link.settings.delay_ms + real
            packets = link.settings.how == "packets"
            found[link.name] = LinkFigures(trip, link.settings.up_kbit, link.settings.down_kbit, packets)
        elif link.round_trip_ms is not None:
            found[link.name] = LinkFigures(link.round_trip_ms, link.measured_up_kbit, None)
    return found


def fit(way: Way, others: Sequence[Way], links: Mapping[str, LinkFigures]) -> LatencyModel:
    """A way's model.

    Args:
        way: the way.
        others: the same way over all links, this one among them.
        links: the measured ones.
    """
    known = [(one, links[one.link]) for one in others if one.link and one.link in links and one.median_ms is not None]
    sent = way.bytes
    up = None if sent is None else sent.socket_up if sent.socket_up is not None else sent.packet_up
    down = None if sent is None else sent.socket_down if sent.socket_down is not None else sent.packet_down
    if not known or up is None or down is None or (sent is not None and sent.packet_up is None):
        return LatencyModel(why_not="it was answered on no link whose round trip is known")
    takes = {one.link or "": _takes(up, down, figures) for one, figures in known}
    medians = {one.link or "": one.median_ms.value for one, _ in known if one.median_ms is not None}
    fixed = float(np.mean([medians[name] - takes[name] for name in medians]))
    return LatencyModel(
        fixed_ms=fixed, up_bytes=on_the_link(up), down_bytes=on_the_link(down), fitted_on=sorted(medians),
        errors_ms={name: fixed + takes[name] - medians[name] for name in medians},
    )  # fmt: skip


def _takes(up: float, down: float, link: LinkFigures) -> float:
    """Milliseconds on a link."""
    rates = ((up, link.up_kbit), (down, link.down_kbit))
    return link.round_trip_ms + sum(8 * on_the_link(size, headers=link.headers) / rate for size, rate in rates if rate)


class _Side(NamedTuple):
    """A way, as the model compares it: what it takes but for its bytes, and those."""

    name: str
    words: str
    fixed_ms: float
    up_bits: float
    down_bits: float
    remote: bool


def break_even(
    first: Way, second: Way, ways: Sequence[Way], links: Mapping[str, LinkFigures], round_trip_ms: float
) -> BreakEven:
    """Where two ways change places as the uplink changes, the downlink being as fast.

    Args:
        first: the one that is asked about.
        second: the other.
        ways: all, for what the measured links say.
        links: the measured ones.
        round_trip_ms: that it is computed for.
    """
    one, other = _side(first), _side(second)
    if one is None or other is None:
        missing = in_words(first if one is None else second)
        text = f"where {in_words(first)} overtakes {in_words(second)} cannot be told: {missing} has no model"
        return BreakEven(way=_name(first), against=_name(second), outcome="unknown", text=text)
    outcome, kbit = _solve(one, other, round_trip_ms)
    found = BreakEven(
        way=one.name, against=other.name, outcome=outcome, uplink_mbit=None if kbit is None else kbit / 1000,
        round_trip_ms=round_trip_ms, text="",
    )  # fmt: skip
    return _checked(found, one, other, ways, links)


def _name(way: Way) -> str:
    return way.id.partition("@")[0]


def _side(way: Way) -> _Side | None:
    if way.link is None:
        return (
            None if way.median_ms is None else _Side(_name(way), in_words(way), way.median_ms.value, 0, 0, remote=False)
        )
    if way.model is None or way.model.why_not is not None:
        return None
    model = way.model
    return _Side(_name(way), in_words(way), model.fixed_ms, 8 * model.up_bytes, 8 * model.down_bytes, remote=True)


def _difference_ms(
    one: _Side, other: _Side, trip_ms: float, up_kbit: float | None = None, down_kbit: float | None = None
) -> float:
    """How much longer ``one`` takes; a rate is None where bytes take no time that way."""
    fixed = one.fixed_ms - other.fixed_ms + trip_ms * (one.remote - other.remote)
    rates = ((one.up_bits - other.up_bits, up_kbit), (one.down_bits - other.down_bits, down_kbit))
    return fixed + sum(bits / rate for bits, rate in rates if rate)


def _solve(one: _Side, other: _Side, trip_ms: float) -> tuple[Outcome, float | None]:
    fixed = _difference_ms(one, other, trip_ms)
    bits = one.up_bits + one.down_bits - other.up_bits - other.down_bits
    if fixed < 0:
        return ("always", None) if bits <= 0 else ("above", bits / -fixed)
    if fixed == 0 or bits >= 0:
        return ("always", None) if fixed == 0 and bits < 0 else ("never", None)
    return "below", -bits / fixed


def _checked(
    found: BreakEven, one: _Side, other: _Side, ways: Sequence[Way], links: Mapping[str, LinkFigures]
) -> BreakEven:
    """With what the measured links say of it, and in words."""
    below, above, against = list[float](), list[float](), list[str]()
    for name, link in links.items():
        medians = [_median(ways, side.name, name) for side in (one, other)]
        if medians[0] is None or medians[1] is None:
            continue
        first, second = medians[0], medians[1]
        said = _difference_ms(one, other, link.round_trip_ms, link.up_kbit, link.down_kbit)
        if (first.value < second.value) != (said < 0):
            if lie_apart(first, second):
                against.append(name)
            continue
        # As it would be at the break-even's round trip: there, a far link's own would decide, and not its rate.
        nearer = found.round_trip_ms - link.round_trip_ms
        first, second = _moved(first, nearer * one.remote), _moved(second, nearer * other.remote)
        if link.up_kbit and found.uplink_mbit is not None and lie_apart(first, second):
            wins_below = (first.value < second.value) == (found.outcome == "below")
            mbit = link.up_kbit / 1000
            if wins_below and mbit <= found.uplink_mbit:
                below.append(mbit)
            elif not wins_below and mbit >= found.uplink_mbit:
                above.append(mbit)
    found = msgspec.structs.replace(
        found, measured_low_mbit=max(below, default=None), measured_high_mbit=min(above, default=None),
        contradicted_by=sorted(against),
    )  # fmt: skip
    return msgspec.structs.replace(found, text=_text(found, one.words, other.words))


def _median(ways: Sequence[Way], name: str, link: str) -> Estimate | None:
    return next((way.median_ms for way in ways if _name(way) == name and way.link in (link, None)), None)


def _moved(one: Estimate, by_ms: float) -> Estimate:
    low, high = (None if end is None else end + by_ms for end in (one.low, one.high))
    return Estimate(value=one.value + by_ms, low=low, high=high)


def lie_apart(first: Estimate, second: Estimate) -> bool:
    """Whether two 95 % intervals do; False where either has none."""
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return False
    return first.high < second.low or second.high < first.low


def _text(found: BreakEven, way: str, against: str) -> str:
    rate = found.uplink_mbit
    trip = f"a round trip of {found.round_trip_ms:.3g} ms"
    if rate is None:
        faster, slower = (against, way) if found.outcome == "never" else (way, against)
        text = f"{faster} is faster than {slower} at any uplink (model, {trip})"
    else:
        measured = [f"{mbit:.3g}" for mbit in (found.measured_low_mbit, found.measured_high_mbit) if mbit is not None]
        if len(measured) == 2:
            seen = f"measured to lie between {measured[0]} and {measured[1]} Mbit/s"
        elif measured:
            seen = f"measured on one side, at {measured[0]} Mbit/s"
        else:
            seen = "measured clearly on neither side"
        text = f"{way} is faster than {against} {found.outcome} {rate:.3g} Mbit/s (model, {trip}; {seen})"
    if found.contradicted_by:
        text += f"; measured otherwise on {', '.join(found.contradicted_by)}"
    return text
