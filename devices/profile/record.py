"""The run's record, of what ran: identity, links, figures, power's course and the verdict."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from narrowcast.devices.power import Reading
from narrowcast.devices.power.sampler import SamplerInfo
from narrowcast.devices.power.trace import Trace
from narrowcast.devices.probe import Board as Probed
from narrowcast.devices.profile.agreement import Answers
from narrowcast.devices.profile.conditions import conditions_over
from narrowcast.devices.profile.connections import Connection
from narrowcast.devices.profile.energy import Idle, PowerOver
from narrowcast.devices.profile.engine import Measured
from narrowcast.devices.profile.figures import Way
from narrowcast.devices.profile.model import figures_of, fit, uplink_kbit
from narrowcast.devices.profile.offset import ClockOffset
from narrowcast.devices.profile.power_now import total_of, watts_of
from narrowcast.devices.profile.schema import (
    Board,
    Link,
    Model,
    Plan,
    Power,
    Run,
    Series,
    Server,
    Window,
    WindowKind,
)
from narrowcast.devices.profile.verdict import verdict
from narrowcast.devices.profile.ways import Context, way_of
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.contract import InputContract

MAX_POINTS = 2000
NO_CLOCK = "no exchange relates the server's clock to the board's: it is of an older release, or answered nothing"


class Subject(NamedTuple):
    """Who and what was measured.

    Attributes:
        bundle: the model.
        probed: the board.
        server: the other end.
        plan: what was asked for.
        command: that reproduces it.
        tool: what writes this.
        frame_warnings: what weakens figures from these frames.
    """

    bundle: Bundle
    probed: Probed
    server: Server | None
    plan: Plan
    command: list[str]
    tool: str
    frame_warnings: list[str]


class Sampled(NamedTuple):
    """What was sampled beside the work.

    Attributes:
        info: what there was; None where nothing could be sampled at all.
        trace: all that was kept.
        why_no_power: None where power was sampled.
    """

    info: SamplerInfo | None
    trace: Trace | None
    why_no_power: str | None


def run_record(
    subject: Subject,
    measured: Measured,
    connections: Sequence[Connection],
    streams: Mapping[str, int],
    sampled: Sampled,
    started: float,
) -> Run:
    """Everything.

    Args:
        subject: who and what.
        measured: what ran.
        connections: over which links.
        streams: how many were opened, by link.
        sampled: power and conditions.
        started: when, in seconds since 1970.
    """
    context = _context(subject, measured, sampled)
    ways = [way_of(tally, context) for tally in measured.tallies.values() if tally.frames or measured.complete]
    links = [_link(one, streams.get(one.name, 0), ways, context) for one in connections]
    figures = figures_of(links)
    ways = [
        way
        if way.link is None
        else msgspec.structs.replace(way, model=fit(way, [o for o in ways if _name(o) == _name(way)], figures))
        for way in ways
    ]
    everything = list(measured.spans.values())
    last = max((span.end_ns for span in everything), default=measured.start_ns)
    return Run(
        format="narrowcast-run", schema=1, id=os.urandom(8).hex(), tool=subject.tool, command=subject.command,
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)), complete=measured.complete,
        why_incomplete=measured.why_incomplete, seconds=(last - measured.start_ns) / 1e9, board=_board(subject.probed),
        model=_model(subject.bundle), server=subject.server, plan=subject.plan, links=links, ways=ways,
        windows=_windows(measured, context), blocks=measured.blocks, power=_power(sampled, measured.start_ns),
        verdict=verdict(ways, links, figures), conditions=conditions_over(sampled.trace, everything),
        warnings=_warnings(subject, measured, connections, context, sampled),
    )  # fmt: skip


def _name(way: Way) -> str:
    return way.id.partition("@")[0]


def _context(subject: Subject, measured: Measured, sampled: Sampled) -> Context:
    power = None
    why = sampled.why_no_power
    if sampled.info is not None and sampled.trace is not None and why is None:
        power = PowerOver(sampled.info, sampled.trace)
    spans = measured.spans
    idle = Idle(None, None, why) if power is None else power.idle(spans.get("idle-before"), spans.get("idle-after"))
    local = next((tally for tally in measured.tallies.values() if tally.info.kind == "local"), None)
    answers: dict[str, Answers] = {}
    for tally in measured.tallies.values():
        answers[tally.info.name] = {**tally.answers, **answers.get(tally.info.name, {})}
    offset = ClockOffset(bound for tally in measured.tallies.values() for bound in tally.bounds())
    return Context(
        measured, subject.bundle.manifest, power, why, idle, sampled.trace, offset, answers,
        None if local is None else local.answers, subject.plan.window,
    )  # fmt: skip


def _link(connection: Connection, streams: int, ways: Sequence[Way], context: Context) -> Link:
    tallies = [tally for tally in context.measured.tallies.values() if tally.info.link == connection.name]
    wires = [wire for tally in tallies if len(wire := tally.stage("wire")) and not np.isnan(wire).all()]
    points = [
        (way.bytes.socket_up, stage.times.p50_ms)
        for way in ways
        if way.link == connection.name and way.bytes is not None and way.bytes.socket_up is not None
        for stage in way.stages
        if stage.name == "wire" and stage.times.p50_ms is not None
    ]
    rate = uplink_kbit(points)
    sent = [at for tally in context.measured.tallies.values() if len(at := tally.exchange("sent"))]
    moments = np.concatenate(sent) if sent else np.empty(0)
    related = context.offset.at(float(np.nanmedian(moments))) if len(moments) and not np.isnan(moments).all() else None
    reasons = ([] if rate is not None else ["the ways' times do not show an uplink rate"]) + (
        [] if related else [NO_CLOCK]
    )
    return Link(
        name=connection.name, kind="real" if connection.settings is None else "emulated", address=connection.address,
        settings=connection.settings, round_trip_ms=min((float(np.nanmin(wire)) for wire in wires), default=None),
        measured_up_kbit=rate, measured_from=len(points),
        clock_offset_ms=None if related is None else 1000 * related.seconds,
        clock_error_ms=None if related is None else 1000 * related.error, connections=streams,
        why_not="; ".join(reasons) or None,
    )  # fmt: skip


def _board(probed: Probed) -> Board:
    identity = probed.identity
    return Board(
        target=probed.target, title=probed.title, model=identity.model, virtual=identity.virtual, cpu=identity.cpu,
        cpus=probed.cpus, architecture=probed.architecture, memory_bytes=identity.memory_bytes, os=identity.os,
        kernel=identity.kernel, jetpack=identity.jetpack, python=platform.python_version(), libraries=probed.backends,
        coder=probed.coder, recorded=probed.recorded,
    )  # fmt: skip


def _model(bundle: Bundle) -> Model:
    manifest = bundle.manifest
    return Model(
        file=bundle.path.name, bytes=bundle.path.stat().st_size, name=manifest.name, release=manifest.release,
        created=manifest.created, fingerprint=manifest.fingerprint, input=_input(manifest.input),
        levels=manifest.codec.levels, figures=manifest.figures,
        signed_by=None if bundle.signed_by is None else bundle.signed_by.id,
    )  # fmt: skip


def _input(contract: InputContract) -> str:
    if contract.free is not None:
        return f"up to {contract.free.most[0]} x {contract.free.most[1]}"
    return f"{contract.size[0]} x {contract.size[1]}, {contract.fit}"


def _windows(measured: Measured, context: Context) -> list[Window]:
    kinds: tuple[WindowKind, ...] = ("idle-before", "warm-up", "loaded", "idle-after")
    found = []
    for kind in kinds:
        if (span := measured.spans.get(kind)) is None:
            continue
        whole = None if context.power is None else context.power.integrate(span)
        found.append(
            Window(
                kind=kind, start_ns=span.start_ns - measured.start_ns, end_ns=span.end_ns - measured.start_ns,
                conditions=conditions_over(context.trace, [span]), mean_watts=None if whole is None else whole.watts,
                why_not=context.why_no_power if whole is None else whole.why_not,
            )
        )  # fmt: skip
    return found


def _warnings(
    subject: Subject, measured: Measured, connections: Sequence[Connection], context: Context, sampled: Sampled
) -> list[str]:
    found = list(subject.frame_warnings)
    if measured.why_incomplete is not None:
        found.insert(0, f"the run broke off ({measured.why_incomplete}): figures are from what there was")
    for connection in connections:
        found += [f"the emulated link {connection.name}: {what}" for what in connection.warnings]
    if any(connection.settings is not None for connection in connections):
        found.append("links were emulated on the board itself: what that took of its time and energy is in the figures")
    ran_on = {tally.info.kind: tally.info.backend for tally in measured.tallies.values() if tally.info.backend}
    if len(set(ran_on.values())) > 1:
        on = ", ".join(f"{kind} on {backend}" for kind, backend in ran_on.items())
        found.append(
            f"the board's networks did not all run on the same backend ({on}): that is a part of their difference"
        )
    if subject.probed.recorded:
        found.append("power and conditions are a recorded board's; times are this machine's")
    if context.idle.warning:
        found.append(context.idle.warning)
    if sampled.trace is not None and sampled.trace.troubles:
        troubles = sampled.trace.troubles
        found.append(f"{len(troubles)} power samples failed, the first: {troubles[0].message}")
    throttled = conditions_over(sampled.trace, list(measured.spans.values())).throttled
    if throttled:
        found.append(f"the board was slowed down: {', '.join(throttled)}")
    return found


def _power(sampled: Sampled, start_ns: int) -> Power:
    info, trace = sampled.info, sampled.trace
    if trace is None:
        return Power(why_not=sampled.why_no_power)
    temperatures = _course(start_ns, [(at, state.temperatures_c) for at, state in trace.conditions])
    clocks = _course(start_ns, [(at, state.clocks_mhz) for at, state in trace.conditions])
    if info is None or sampled.why_no_power is not None:
        return Power(why_not=sampled.why_no_power, temperatures_c=temperatures, clocks_mhz=clocks)
    return Power(
        sensor=info.sensor, scope=info.scope, total=info.total, sample_hz=info.sample_hz, samples=len(trace.readings),
        sampler_cpu_percent=trace.cost.cpu_percent, watts=_watts(info, trace, start_ns), temperatures_c=temperatures,
        clocks_mhz=clocks, why_not=info.why_no_total,
    )  # fmt: skip


def _watts(info: SamplerInfo, trace: Trace, start_ns: int) -> Series:
    """Of each rail and of the total; an energy counter's rail is its mean power since the sample before."""
    rows: list[tuple[int, dict[str, float]]] = []
    before: Reading | None = None
    for reading in trace.readings:
        watts = watts_of(reading, before)
        before = reading
        if (total := total_of(watts, info)) is not None:
            watts["total"] = total
        if watts:
            rows.append((reading.monotonic_ns, watts))
    return _course(start_ns, rows)


def _course(start_ns: int, rows: Sequence[tuple[int, Mapping[str, float]]]) -> Series:
    """Values over time, at most so many: means over equal stretches where there are more."""
    if not rows:
        return Series()
    at = np.array([moment - start_ns for moment, _ in rows], np.float64) / 1e9
    names = sorted({name for _, values in rows for name in values})
    table = np.array([[values.get(name, np.nan) for name in names] for _, values in rows], np.float64)
    if len(at) > MAX_POINTS:
        cuts = np.unique(np.searchsorted(at, np.linspace(at[0], at[-1], MAX_POINTS, endpoint=False)))
        at, table = _means(at[:, None], cuts)[:, 0], _means(table, cuts)
    return Series(
        at_s=[round(float(moment), 4) for moment in at],
        values={
            name: [None if np.isnan(value) else float(value) for value in table[:, k]] for k, name in enumerate(names)
        },
    )


def _means(table: npt.NDArray[np.float64], cuts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    there = ~np.isnan(table)
    sums = np.add.reduceat(np.where(there, table, 0.0), cuts)
    counts = np.add.reduceat(there.astype(np.int64), cuts)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
