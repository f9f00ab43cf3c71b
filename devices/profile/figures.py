"""The figures of a run record: of a time, a stage, a way; :mod:`narrowcast.devices.profile.schema` puts them together."""

from __future__ import annotations

from typing import Literal, get_args

from narrowcast.transport.structs import Settings

Kind = Literal["local", "exit", "image", "split"]
StageName = Literal[
    "capture",
    "resize",
    "head",
    "whole",
    "exit",
    "encode",
    "send",
    "wire",
    "network",
    "return",
    "queue",
    "decode",
    "tail",
    "other",
]
# In the order in which they are shown; `network` and `return` lie within `wire`.
STAGE_ORDER: tuple[StageName, ...] = get_args(StageName)


class Estimate(Settings, frozen=True):
    """A figure with its 95 % confidence interval; None for the ends where that cannot be told."""

    value: float
    low: float | None = None
    high: float | None = None


class Histogram(Settings, frozen=True):
    """Counts between edges: ``counts[k]`` values lie in ``edges_ms[k] .. edges_ms[k + 1]``, all of them somewhere.

    Edges lie on one geometric grid (20 a decade) for all figures of all runs, so histograms can be laid side by side.
    """

    edges_ms: list[float]
    counts: list[int]


class Distribution(Settings, frozen=True):
    """How a time is distributed over frames.

    Attributes:
        frames: that it is from.
        mean_ms: of all.
        p50_ms: the median; None with less than 5 frames.
        p90_ms: None with less than 20.
        p95_ms: None with less than 40.
        p99_ms: None with less than 200: at least two frames lie beyond each figure.
        histogram: None without frames.
        why_not: for the figures that are None.
    """

    frames: int
    mean_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    histogram: Histogram | None = None
    why_not: str | None = None


class Stage(Settings, frozen=True):
    """One part of a frame's way.

    Attributes:
        name: ``capture`` (reading the frame), ``resize``, ``head``, ``whole`` (the uncut network on the board), ``exit``,
            ``encode``, ``send`` (from encoded until it is handed to the network: hand-over between threads), ``wire``
            (between board and server, both ways), within it ``network`` (there) and ``return`` (back), then on the server
            ``queue``, ``decode`` and ``tail`` (with images the uncut network), and ``other``: all the rest of the latency,
            on both sides.
        where: whose time it is.
        within: the stage that it is a part of; None for those whose means add up to the mean latency.
        times: over the way's counted frames.
        error_ms: of ``network`` and ``return``: the bound of the clock offset's error, in the middle; None elsewhere.
    """

    name: StageName
    where: Literal["board", "network", "server", "both"]
    times: Distribution
    within: StageName | None = None
    error_ms: float | None = None


class Bytes(Settings, frozen=True):
    """Mean bytes of a frame, over those that there was time for; None where not measurable.

    Attributes:
        packet_up: the packet, its header included.
        packet_down: the answer, as a message.
        socket_up: TCP payload: TLS, HTTP/2 and gRPC framing included, IP and TCP headers not.
        socket_down: likewise.
        packet_up_by_frame: the packet of each of the plan's different frames, in their order (the first 2000 at most); None,
            or nothing at the end, for those that were not answered. Empty in older records.
        why_not: for those on the socket.
    """

    packet_up: float | None
    packet_down: float | None
    socket_up: float | None = None
    socket_down: float | None = None
    packet_up_by_frame: list[float | None] = []
    why_not: str | None = None


class Energy(Settings, frozen=True):
    """Joules of a frame, from the board's total power over the way's counted blocks, by the frames that were answered.

    Attributes:
        gross_joules_per_frame: all that the rails gave, for frames that failed too.
        net_joules_per_frame: beyond what an idle board takes.
        mean_watts: over the blocks.
        seconds: of the blocks.
        samples: in them.
        why_not: for the figures that are None.
        warnings: what weakens the figures.
    """

    gross_joules_per_frame: Estimate | None = None
    net_joules_per_frame: Estimate | None = None
    mean_watts: float | None = None
    seconds: float = 0.0
    samples: int = 0
    why_not: str | None = None
    warnings: list[str] = []


class Throughput(Settings, frozen=True):
    """Frames a second.

    Attributes:
        single_fps: one frame in flight: the next one when the last is answered.
        windowed_fps: ``window`` in flight; None where it was not run.
        window: how many.
        windowed_latency: from handing over to the answer, then.
        windowed_energy: then.
        why_not: for what is None.
    """

    single_fps: float | None
    windowed_fps: float | None = None
    window: int | None = None
    windowed_latency: Distribution | None = None
    windowed_energy: Energy | None = None
    why_not: str | None = None


class Agreement(Settings, frozen=True):
    """How often a way's answers are those of the uncut network on the board, frame by frame, same frames.

    Attributes:
        metric: ``top-1`` (same class), ``pixels`` (same class, share of the map), ``boxes`` (F1 of boxes at IoU 0.5),
            ``outputs`` (1 - relative squared error).
        share: mean over frames, 0..1; None where nothing is to compare.
        frames: that were compared.
        why_not: for None.
    """

    metric: Literal["top-1", "pixels", "boxes", "outputs"]
    share: float | None
    frames: int
    why_not: str | None = None


class Accuracy(Settings, frozen=True):
    """What the bundle says of a way, measured on held-out images when it was compiled; not by this run.

    Attributes:
        agreement: with the teacher, 0..1.
        metric: of it, for instance ``top-1``.
        output_error: squared error of the outputs by their variance.
        mean_packet_bytes: then.
        why_not: for what is None.
    """

    agreement: float | None = None
    metric: str | None = None
    output_error: float | None = None
    mean_packet_bytes: float | None = None
    why_not: str | None = None


class WindowConditions(Settings, frozen=True):
    """The board's state within windows; empty or None where it does not tell.

    Attributes:
        hottest_c: the highest temperature, by zone.
        lowest_clocks_mhz: by clock.
        highest_clocks_mhz: by clock.
        throttled: all that slowed the board down, throttle counters that moved among it; None where nothing tells.
        power_mode: at the end.
    """

    hottest_c: dict[str, float] = {}
    lowest_clocks_mhz: dict[str, float] = {}
    highest_clocks_mhz: dict[str, float] = {}
    throttled: list[str] | None = None
    power_mode: str | None = None


class LatencyModel(Settings, frozen=True):
    """``fixed_ms + round_trip_ms + 8 * up_bytes / uplink + 8 * down_bytes / downlink``: a model, not a measurement.

    Attributes:
        fixed_ms: what does not depend on the link, fitted to the measured medians.
        up_bytes: on the socket where measured, else of the packet.
        down_bytes: likewise.
        fitted_on: names of the measured links.
        errors_ms: by link: the model's median less the measured one.
        why_not: why there is no model; its figures are 0 then.
    """

    fixed_ms: float = 0.0
    up_bytes: float = 0.0
    down_bytes: float = 0.0
    fitted_on: list[str] = []
    errors_ms: dict[str, float] = {}
    why_not: str | None = None


class Way(Settings, frozen=True):
    """One way of getting answers, over one link (or none), really run.

    Attributes:
        id: ``local``, ``exit``, ``split-2@lte``, ``jpeg-75@lte``, ...: what blocks and windows refer to.
        kind: ``local`` (the uncut network on the board), ``exit`` (the bundle's local exit there), ``image``, ``split``.
        title: in words.
        link: by name; None for what needs none.
        precision: of the network on the board; None with ``image``.
        backend: that ran it.
        level: of a split.
        codec: of an image.
        quality: of an image.
        frames: counted.
        failed: counted frames without an answer, by reason (the status).
        latency: from handing over a frame to its answer, one in flight.
        median_ms: its median with a 95 % interval, the sign test's over the medians of its turns; None with a reason.
        why_no_median: that reason; also where only the interval is missing.
        stages: in the order of :data:`STAGE_ORDER`, one in flight.
        throughput: see there.
        bytes: None for what sends nothing.
        energy: one in flight.
        agreement: with local; over the frames of all links, since answers do not depend on them.
        accuracy: of the bundle.
        conditions: over its blocks.
        model: for links that were not measured; None for what sends nothing.
        loaded_s: counted seconds, one in flight.
        warnings: what weakens its figures.
    """

    id: str
    kind: Kind
    title: str
    link: str | None
    frames: int
    latency: Distribution
    throughput: Throughput
    energy: Energy
    agreement: Agreement
    accuracy: Accuracy
    conditions: WindowConditions
    loaded_s: float
    precision: str | None = None
    backend: str | None = None
    level: int | None = None
    codec: Literal["jpeg", "webp"] | None = None
    quality: int | None = None
    failed: dict[str, int] = {}
    median_ms: Estimate | None = None
    why_no_median: str | None = None
    stages: list[Stage] = []
    bytes: Bytes | None = None
    model: LatencyModel | None = None
    warnings: list[str] = []
