"""The run record, ``RUN.json``: what ``narrowcast profile`` writes and reports are made from (``docs/profile-schema.md``).

Every figure that could not be measured is None, and a ``why_not`` beside it says why. Times named ``_ns`` are nanoseconds
since the run began, by the board's monotonic clock; ``at_s`` are seconds since then. The figures of times, stages and ways
are in :mod:`narrowcast.devices.profile.figures`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from narrowcast.devices.errors import RunError
from narrowcast.devices.profile.figures import Kind, Way, WindowConditions
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.files import replacing
from narrowcast.transport.structs import Settings, from_json, to_json

FORMAT = "narrowcast-run"
SCHEMA = 1

Goal = Literal["latency", "energy", "bytes", "accuracy"]
Mode = Literal["single", "windowed"]
WindowKind = Literal["idle-before", "warm-up", "loaded", "idle-after"]
Unit = Literal["ms", "J", "B", "share"]
Outcome = Literal["below", "above", "always", "never", "unknown"]


class LinkSettings(Settings, frozen=True):
    """What an emulated link was set to, by preset; rates None for no limit."""

    preset: str
    up_kbit: float | None
    down_kbit: float | None
    delay_ms: float
    jitter_ms: float
    loss_percent: float
    how: str


class Link(Settings, frozen=True):
    """What lay between board and server.

    Attributes:
        name: ``real``, or the preset's.
        kind: whether it is the network as it was.
        settings: of an emulated one: what it was set to, and by which emulator (``how``).
        address: that was connected to.
        round_trip_ms: the least that an exchange took on it, the server's own time taken off.
        measured_up_kbit: what the ways' medians say of its uplink rate, by the slope of their time on their bytes.
        measured_from: how many ways that is from.
        clock_offset_ms: server's clock less the board's, in the middle of the run.
        clock_error_ms: the bound of its error.
        connections: streams that were opened; more than one for each way means that it broke.
        why_not: for what is None.
    """

    name: str
    kind: Literal["real", "emulated"]
    address: str
    settings: LinkSettings | None = None
    round_trip_ms: float | None = None
    measured_up_kbit: float | None = None
    measured_from: int = 0
    clock_offset_ms: float | None = None
    clock_error_ms: float | None = None
    connections: int = 0
    why_not: str | None = None


class Block(Settings, frozen=True):
    """One turn of one way; ways take turns, so that drift hits all alike.

    Attributes:
        way: its id.
        mode: ``single``: one frame in flight; ``windowed``: several.
        lead_ns: when its first frames began, which do not count.
        start_ns: when counting began: at the end of the last frame of the lead.
        end_ns: at the end of its last frame.
        frames: counted.
        failed: of these, without an answer.
    """

    way: str
    mode: Mode
    lead_ns: int
    start_ns: int
    end_ns: int
    frames: int
    failed: int = 0


class Window(Settings, frozen=True):
    """A stretch of the run outside blocks, or all blocks together.

    Attributes:
        kind: ``idle-before``, ``warm-up``, ``loaded`` (from the first block to the last), ``idle-after``.
        mean_watts: of the board's total; None where not measured.
    """

    kind: WindowKind
    start_ns: int
    end_ns: int
    conditions: WindowConditions
    mean_watts: float | None = None
    why_not: str | None = None


class Series(Settings, frozen=True):
    """Values over time, at most 2000; None where there was none.

    Attributes:
        at_s: moments, rising.
        values: by name, each as long as ``at_s``.
    """

    at_s: list[float] = []
    values: dict[str, list[float | None]] = {}


class Power(Settings, frozen=True):
    """What measured power, and its course.

    Attributes:
        sensor: by name; None where there is none.
        scope: what the total covers.
        total: the rails that are the total.
        sample_hz: how often it was read.
        samples: how many were kept.
        sampler_cpu_percent: of one core, that sampling took.
        watts: ``total`` and each rail, means over equal stretches where there are more samples than fit.
        temperatures_c: by zone.
        clocks_mhz: by clock.
        why_not: why there is no sensor, or no total.
    """

    sensor: str | None = None
    scope: str | None = None
    total: list[str] = []
    sample_hz: float | None = None
    samples: int = 0
    sampler_cpu_percent: float | None = None
    watts: Series = Series()
    temperatures_c: Series = Series()
    clocks_mhz: Series = Series()
    why_not: str | None = None


class Board(Settings, frozen=True):
    """What ran the device's half; None is "does not say"."""

    target: str | None
    title: str | None
    model: str | None
    virtual: bool
    cpu: str | None
    cpus: int
    architecture: str
    memory_bytes: int | None
    os: str | None
    kernel: str | None
    jetpack: str | None
    python: str
    libraries: dict[str, str | None]
    coder: str
    recorded: bool = False


class Model(Settings, frozen=True):
    """Which bundle.

    Attributes:
        figures: as in its manifest.
        signed_by: the key's id; None for an unsigned one.
    """

    file: str
    name: str
    release: int
    fingerprint: str
    created: str
    input: str
    levels: int
    bytes: int
    figures: dict[str, Any] = {}
    signed_by: str | None = None


class Server(Settings, frozen=True):
    """Who ran the other half; ``images``: whether it answers images."""

    address: str
    release: int | None = None
    images: bool | None = None
    tls: bool = False


class Plan(Settings, frozen=True):
    """What was asked for, in full."""

    ways: list[Kind]
    links: list[str]
    levels: list[int]
    codecs: list[str]
    qualities: list[int]
    loaded_s: float
    windowed_s: float
    idle_s: float
    warm_up_s: float
    settle_s: float
    rounds: int
    lead_s: float
    window: int
    seed: int
    deadline_ms: float
    frames: int
    frames_from: str


class Best(Settings, frozen=True):
    """Who does best on a link, for a goal.

    Attributes:
        goal: ``latency`` (median), ``energy`` (gross joules of a frame), ``bytes`` (up, on the socket where measured),
            ``accuracy`` (agreement with local by this run; ties go to fewer bytes).
        link: by name; None where there is none at all.
        way: its id; None where nothing can be said.
        value: of it.
        unit: ``ms``, ``J``, ``B``, ``share``.
        runner_up: the next one's id.
        runner_up_value: of that.
        clear: whether the 95 % intervals lie apart; None where there are none.
        why_not: for None.
    """

    goal: Goal
    link: str | None
    way: str | None
    unit: Unit
    value: float | None = None
    runner_up: str | None = None
    runner_up_value: float | None = None
    clear: bool | None = None
    why_not: str | None = None


class BreakEven(Settings, frozen=True):
    """Where one way overtakes another as the uplink changes: by the model, and what the measured links say of it.

    Attributes:
        way: its id without the link, for instance ``split-2``.
        against: likewise.
        outcome: ``below``: ``way`` is faster below ``uplink_mbit``; ``above``; ``always``; ``never``; ``unknown``.
        uplink_mbit: None where there is no such rate.
        round_trip_ms: that it was computed for.
        measured_low_mbit: the nearest measured link below it, where the faster one was as the model says.
        measured_high_mbit: likewise above. With both, the break-even is measured to lie between them.
        contradicted_by: links on which the faster one was another than the model says.
        text: in words.
    """

    way: str
    against: str
    outcome: Outcome
    text: str
    uplink_mbit: float | None = None
    round_trip_ms: float = 0.0
    measured_low_mbit: float | None = None
    measured_high_mbit: float | None = None
    contradicted_by: list[str] = []


class Verdict(Settings, frozen=True):
    """What all this means.

    Attributes:
        pays: whether a split is the fastest way on the real link (the first one, where there is no real one) or clearly
            takes the least energy there; None where that cannot be told, since intervals overlap or there are no figures.
        text: in words, the most important first; where splitting does not pay, that comes first.
        best: per link and goal.
        break_evens: in latency.
    """

    pays: bool | None = None
    text: list[str] = []
    best: list[Best] = []
    break_evens: list[BreakEven] = []


class Run(Settings, frozen=True):
    """One run of the profiler.

    Attributes:
        format: ``narrowcast-run``.
        schema: of this file.
        id: of the run, random.
        started: RFC 3339, UTC, by the board's clock.
        tool: what wrote it.
        command: that reproduces it.
        complete: False where it was interrupted or broke off: figures are then from what there was.
        why_incomplete: then.
        seconds: that it took.
        board: see there; so are the others.
        server: None where nothing was sent.
        conditions: of the whole run.
        ways: in the order in which they are to be shown.
        windows: of the run.
        blocks: in the order of time.
        warnings: what weakens the whole run.
    """

    format: Literal["narrowcast-run"]
    schema: Literal[1]
    id: str
    started: str
    tool: str
    command: list[str]
    complete: bool
    seconds: float
    board: Board
    model: Model
    server: Server | None
    plan: Plan
    links: list[Link]
    ways: list[Way]
    windows: list[Window]
    blocks: list[Block]
    power: Power
    verdict: Verdict
    why_incomplete: str | None = None
    conditions: WindowConditions = WindowConditions()
    warnings: list[str] = []

    def way(self, way_id: str) -> Way | None:
        """By its id."""
        return next((way for way in self.ways if way.id == way_id), None)


class _Header(msgspec.Struct):
    format: str
    schema: int


def read_run(path: Path) -> Run:
    """A run record.

    Raises:
        RunError: it is none, or one of a later schema.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from error
    return parse_run(data, path.name)


def parse_run(data: bytes, name: str) -> Run:
    """A run record in ``data``; see :func:`read_run`."""
    try:
        header = msgspec.json.decode(data, type=_Header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(f"{name} is no run record (narrowcast profile -o RUN.json writes one): {error}") from error
    if header.format != FORMAT:
        raise RunError(f"{name} is no run record: its format is {header.format!r}, not {FORMAT!r}")
    if header.schema != SCHEMA:
        raise RunError(f"{name} has schema {header.schema}; this release reads {SCHEMA}: update narrowcast")
    try:
        return from_json(Run, data, name)
    except ConfigError as error:
        raise RunError(str(error)) from error


def write_run(run: Run, path: Path) -> None:
    """Writes the record; the file is the old one or the whole new one.

    Raises:
        OSError: it cannot be written; names ``path``.
    """
    with replacing(path) as out:
        out.write(to_json(run, indent=2) + b"\n")
