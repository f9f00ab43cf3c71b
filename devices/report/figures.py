"""The figures of a way that a report shows, compares and writes: value, 95 % interval, and how they read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from narrowcast.devices.profile.figures import Bytes, Distribution, Energy, Estimate, Way
from narrowcast.devices.profile.shares import share_estimate, share_interval
from narrowcast.devices.report.markup import Child, tag
from narrowcast.devices.report.noise import Figure, Rule
from narrowcast.text import human_bytes, human_joules, human_ms, percent


@dataclass(frozen=True)
class Quantity:
    """A kind of figure.

    Attributes:
        key: in JSON, with its unit.
        title: in words.
        form: a value as text.
        of: takes it from a way; None where it was not measured.
        rule: when a change of it matters; None for what is not compared.
    """

    key: str
    title: str
    form: Callable[[float | None], str]
    of: Callable[[Way], Figure | None]
    rule: Rule | None = None


def up_bytes(found: Bytes | None) -> float | None:
    """What a frame takes up: on the socket where that was measured, else its packet."""
    if found is None:
        return None
    return found.socket_up if found.socket_up is not None else found.packet_up


def fps(value: float | None) -> str:
    """Frames a second."""
    if value is None:
        return "-"
    return f"{value:.0f}/s" if value >= 1000 else f"{value:.3g}/s"


def watts(value: float | None) -> str:
    """Power."""
    return "-" if value is None else f"{value:.3g} W"


def _estimate(found: Estimate | None) -> Figure | None:
    return None if found is None else Figure(found.value, found.low, found.high)


def _plain(value: float | None) -> Figure | None:
    return None if value is None else Figure(value)


def _bytes(name: str) -> Callable[[Way], Figure | None]:
    def of(way: Way) -> Figure | None:
        return None if way.bytes is None else _plain(getattr(way.bytes, name))

    return of


def _median(way: Way) -> Figure | None:
    return _estimate(way.median_ms) or _plain(way.latency.p50_ms)


def _energy(energy: Energy, *, net: bool) -> Figure | None:
    return _estimate(energy.net_joules_per_frame if net else energy.gross_joules_per_frame)


def agreement(way: Way) -> Figure | None:
    """With the uncut network on the board, by this run; with an interval where frames either agree or do not."""
    return None if way.kind == "local" else _estimate(share_estimate(way.agreement))


def answered(way: Way) -> Figure | None:
    """The share of counted frames that were answered."""
    if way.frames <= 0:
        return None
    share = 1 - min(sum(way.failed.values()), way.frames) / way.frames
    return Figure(share, *(share_interval(share, way.frames) or (None, None)))


def _percentile(name: str) -> Callable[[Way], Figure | None]:
    def of(way: Way) -> Figure | None:
        times: Distribution = way.latency
        return _plain(getattr(times, name))

    return of


QUANTITIES = (
    Quantity("latency_p50_ms", "latency, median", human_ms, _median, Rule(0.05)),
    Quantity("latency_p90_ms", "latency, 90 %", human_ms, _percentile("p90_ms")),
    Quantity("latency_p95_ms", "latency, 95 %", human_ms, _percentile("p95_ms")),
    Quantity("latency_p99_ms", "latency, 99 %", human_ms, _percentile("p99_ms")),
    Quantity("latency_mean_ms", "latency, mean", human_ms, _percentile("mean_ms")),
    Quantity("single_fps", "frames a second, one in flight", fps, lambda way: _plain(way.throughput.single_fps)),
    Quantity("windowed_fps", "frames a second, several in flight", fps, lambda way: _plain(way.throughput.windowed_fps)),
    Quantity("packet_up_bytes", "packet", human_bytes, _bytes("packet_up")),
    Quantity("socket_up_bytes", "on the socket, up", human_bytes, _bytes("socket_up")),
    Quantity("socket_down_bytes", "on the socket, down", human_bytes,
             _bytes("socket_down")),
    Quantity("gross_joules_per_frame", "energy, gross", human_joules, lambda way: _energy(way.energy, net=False),
             Rule(0.05)),
    Quantity("net_joules_per_frame", "energy, net of idle", human_joules, lambda way: _energy(way.energy, net=True),
             Rule(0.05)),
    Quantity("mean_watts", "mean power", watts, lambda way: _plain(way.energy.mean_watts)),
    Quantity("agreement", "agreement with local", percent, agreement, Rule(0.005, more_is_worse=False, absolute=True)),
    Quantity("answered", "frames answered", percent, answered, Rule(0.001, more_is_worse=False, absolute=True)),
)  # fmt: skip
BY_KEY = {quantity.key: quantity for quantity in QUANTITIES}


def cell(quantity: Quantity, figure: Figure | None) -> Child:
    """For a table: the interval below the value."""
    if figure is None or figure.low is None or figure.high is None:
        return with_interval(quantity, figure)
    return [quantity.form(figure.value), tag("small", span(quantity, figure.low, figure.high))]


def span(quantity: Quantity, low: float, high: float) -> str:
    """``11.9 to 12.8 ms``: the unit once, where it is the same."""
    first, second = quantity.form(low), quantity.form(high)
    value, _, unit = first.partition(" ")
    return f"{value if unit and second.endswith(' ' + unit) else first} to {second}"


def with_interval(quantity: Quantity, figure: Figure | None) -> str:
    """``12.3 ms (11.9 to 12.8)``."""
    if figure is None:
        return "-"
    value = quantity.form(figure.value)
    if figure.low is None or figure.high is None:
        return value
    return f"{value} ({span(quantity, figure.low, figure.high)})"
