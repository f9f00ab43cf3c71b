"""What ran, where, and how: enough to repeat it, and to judge whether another run may be laid beside it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from narrowcast.devices.profile.figures import WindowConditions
from narrowcast.devices.profile.schema import Link, Run
from narrowcast.devices.report.energy import instruments
from narrowcast.devices.report.entries import Entry, full_title
from narrowcast.devices.report.figures import QUANTITIES, cell
from narrowcast.devices.report.markup import Child, Markup, tag
from narrowcast.devices.report.tables import facts, table
from narrowcast.text import human_bytes, human_ms, human_rate

_MANY = 8


def identity(entry: Entry) -> Markup:
    """The board, its software, the model and the server."""
    run = entry.run
    board, model = run.board, run.model
    libraries = ", ".join(f"{name} {version}" for name, version in board.libraries.items() if version) or "none"
    virtual = " (a virtual machine)" if board.virtual else ""
    recorded = " (recorded: times, Python and libraries are the machine's that replayed it)" if board.recorded else ""
    system = ", ".join(
        part for part in (board.os, f"kernel {board.kernel}" if board.kernel else None, board.jetpack) if part
    )
    return facts([
        ("board", f"{board.model or 'does not say what it is'}{virtual}{recorded}"),
        ("target", f"{board.target or 'none'}{f' ({board.title})' if board.title else ''}"),
        ("processor", f"{board.cpus} x {board.cpu or board.architecture}, {board.architecture}"),
        ("memory", human_bytes(board.memory_bytes)),
        ("system", system or "unknown"),
        ("Python", f"{board.python}; {libraries}; coder in {'C' if board.coder == 'c' else 'Python'}"),
        ("model", f"{model.name}, release {model.release}, {model.levels} levels, input {model.input}, "
                  f"{human_bytes(model.bytes)}, from {model.file}"),
        ("codec", model.fingerprint),
        ("signed by", model.signed_by or "nobody"),
        ("server", _server(run)),
        ("run", f"{run.id}, {run.started}, {run.seconds:.0f} s, {run.tool}"),
    ])  # fmt: skip


def _server(run: Run) -> str:
    if run.server is None:
        return "none: everything ran on the board"
    release = "" if run.server.release is None else f", release {run.server.release}"
    return f"{run.server.address}, {'TLS' if run.server.tls else 'no TLS'}{release}"


def conditions(entry: Entry) -> Markup:
    """The board's state while ways ran."""
    states = [entry.run.conditions, *(w.conditions for w in entry.run.windows), *(w.conditions for w in entry.run.ways)]
    if not any(map(_tells, states)):
        return tag("p", "The board tells no temperatures, clocks or power mode, nor whether anything slowed it down.")
    rows: list[list[Child]] = [["the whole run", *_state(entry.run.conditions)]]
    rows += [[w.kind.replace("-", " "), *_state(w.conditions)] for w in entry.run.windows]
    single: list[list[Child]] = [[full_title(way), *_state(way.conditions)] for way in entry.run.ways]
    columns = ["when", "hottest", "clocks", "slowed down by", "power mode"]
    return tag(
        "div",
        table(f"The board's state{entry.suffix}", columns, rows, words=[1, 2, 3], left=[4]),
        tag("details", tag("summary", "While each way ran"),
            table(f"The board's state, way by way{entry.suffix}", columns, single, words=[1, 2, 3], left=[4])),
    )  # fmt: skip


def _tells(state: WindowConditions) -> bool:
    return bool(state.hottest_c or state.highest_clocks_mhz or state.throttled is not None or state.power_mode)


def _state(state: WindowConditions) -> list[Child]:
    hottest = [f"{zone} {value:.1f} °C" for zone, value in state.hottest_c.items()]
    clocks = [
        f"{name} {_range(state.lowest_clocks_mhz.get(name, high), high)} MHz"
        for name, high in state.highest_clocks_mhz.items()
    ]
    slowed = "does not say" if state.throttled is None else ", ".join(state.throttled) or "nothing"
    return [_few(hottest) or "does not say", _few(clocks) or "does not say", slowed, state.power_mode or "does not say"]


def _few(words: Sequence[str]) -> str:
    more = f", and {len(words) - _MANY} more" if len(words) > _MANY else ""
    return ", ".join(words[:_MANY]) + more


def _range(low: float, high: float) -> str:
    return f"{high:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}"


def links(entry: Entry) -> Markup:
    """What lay between."""
    columns = ["link", "kind", "uplink", "downlink", "delay", "jitter", "loss", "round trip, measured",
               "offset of the clocks", "streams", "how"]  # fmt: skip
    return table(f"Links{entry.suffix}", columns, [_link(link) for link in entry.links], words=[10], left=[1])


def _link(link: Link) -> list[Child]:
    clock = "-"
    if link.clock_offset_ms is not None:
        # Monotonic clocks begin anywhere: how well their offset is known says something, the offset itself nothing.
        clock = "known" if link.clock_error_ms is None else f"known to ± {human_ms(link.clock_error_ms)}"
    streams, trip = f"{link.connections}", human_ms(link.round_trip_ms)
    at = link.settings
    if at is None:
        rate = link.measured_up_kbit
        up = "not measured" if rate is None else f"{human_rate(rate * 1000)}, from {link.measured_from} ways"
        return [link.name, link.kind, up, "-", "-", "-", "-", trip, clock, streams, link.why_not or link.address]
    rates = ["no limit" if r is None else human_rate(r * 1000) for r in (at.up_kbit, at.down_kbit)]
    figures = [human_ms(at.delay_ms), human_ms(at.jitter_ms), f"{at.loss_percent:g} %"]
    return [
        link.name,
        link.kind,
        *rates,
        *figures,
        trip,
        clock,
        streams,
        at.how + (f"; {link.why_not}" if link.why_not else ""),
    ]


def method(entry: Entry) -> Markup:
    """How it was measured."""
    plan, power = entry.run.plan, entry.run.power
    idle = f"Idle for {plan.idle_s:g} s before and after, warm-up" if plan.idle_s else "Warm-up"
    several = f", and {plan.windowed_s:g} s with {plan.window} in flight" if plan.windowed_s > 0 else ""
    lines = [
        f"{plan.frames} frames from {plan.frames_from}, over and over, the same for every way.",
        f"Ways take turns in {plan.rounds} rounds, in an order drawn at random (seed {plan.seed}), so that drift hits "
        f"all alike; the first {plan.lead_s:g} s of each turn do not count.",
        f"{idle} {plan.warm_up_s:g} s, then {plan.loaded_s:g} s of counted "
        f"load for each way with one frame in flight{several}.",
        "Latency is from handing a frame over to its answer, one frame in flight, by the board's monotonic clock. No time "
        "is the difference of two machines' clocks, unless the estimated offset and its error are given beside it.",
        "Local, image and split ways were all really run; none is a sum of parts. Intervals are 95 %, from how turns "
        "differ: of medians the sign test's, of energy by batch means.",
    ]
    if power.sensor:
        lines.append(
            "Energy is the trapezoid rule over power samples of the board's total (or a counter's difference) within the "
            "same turns. Net is gross less what the idle board takes in that time. Too few samples give no figure, and the "
            "reason."
        )
    command = tag("pre", tag("code", shlex.join(entry.run.command)))
    return tag("div", tag("ul", [tag("li", line) for line in lines], class_="plain"), instruments(entry),
               tag("p", "The command that reproduces it:"), command)  # fmt: skip


def everything(entry: Entry) -> Markup:
    """Every figure of every way, in two tables that fit on paper."""
    ways = entry.run.ways
    there = [q for q in QUANTITIES if any(q.of(way) for way in ways)]  # what no way has is said in its own section
    first = [q for q in there if q.key.startswith("latency_") or q.key.endswith("_fps")]
    second = [q for q in there if q not in first and q.key != "answered"]
    times: list[list[Child]] = []
    for way in ways:
        failed = ", ".join(f"{count} {reason}" for reason, count in way.failed.items())
        times.append([full_title(way), f"{way.frames}", failed or "0", *(cell(q, q.of(way)) for q in first)])
    rest: list[list[Child]] = [
        [full_title(way), _how(way.precision, way.backend), *(cell(q, q.of(way)) for q in second)] for way in ways
    ]
    return tag(
        "div",
        table(f"Time{entry.suffix}", ["way", "frames", "failed", *(q.title for q in first)], times),
        table(
            f"Bytes, energy and answers{entry.suffix}", ["way", "network", *(q.title for q in second)], rest, left=[1]
        ),
    )


def _how(precision: str | None, backend: str | None) -> str:
    return ", ".join(word for word in (precision, backend) if word) or "-"
