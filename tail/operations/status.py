"""``/api/status``: what the page shows, as JSON. The schema is these structs; ``docs/operations.md`` tells of it."""

from __future__ import annotations

import time

import msgspec

from narrowcast.tail.drift import DriftWatch
from narrowcast.tail.operations.history import LATENCY_SECONDS, RATE_SECONDS, STEP_SECONDS, TOTAL, History
from narrowcast.tail.operations.process import ProcessUse, process_use
from narrowcast.tail.operations.tally import OTHER, RESULTS, STAGES, ModelTally, Tally, level_name
from narrowcast.tail.operations.version import VERSION

SCHEMA = 1
MAX_CLIENTS = 200
MAX_BUNDLES = 200
MAX_CAMERAS = 100


class Bytes(msgspec.Struct, frozen=True):
    """Bytes since the start, gRPC's framing left out.

    Attributes:
        received: packets of all frames.
        sent: results of all frames.
        compared: packets of the answered frames.
        raw: the same frames as uint8 RGB of the network's input.
        saved: ``raw - compared``; below 0 where packets are larger than such images.
    """

    received: int
    sent: int
    compared: int
    raw: int
    saved: int


class Release(msgspec.Struct, frozen=True):
    """One release that frames go to now.

    Attributes:
        release: its number.
        codec: its name.
        codec_fingerprint: 32 hexadecimal digits.
        levels: how many rate points.
        input_size: height and width, pixels; of the largest, where frames differ.
        free_size: whether frames differ in size.
        tails: their names, ``main`` first.
    """

    release: int
    codec: str
    codec_fingerprint: str
    levels: int
    input_size: tuple[int, int]
    free_size: bool
    tails: list[str]


class Latency(msgspec.Struct, frozen=True):
    """Quantiles of the answered frames of the last minute; None where there was none."""

    p50_ms: float | None
    p95_ms: float | None


class ModelStatus(msgspec.Struct, frozen=True):
    """One model. ``state`` is ``serving``, or ``gone``: it was served since the start, and is no more.

    Attributes:
        frames: by result, a name of google.rpc.Code, since the start.
        frames_per_second: answered ones; None in the first second.
        queue_depth: frames that wait now.
        mean_batch: frames per batch since the start; None before the first.
        levels: answered frames by rate point (``image``: whole images), since the start.
        latency: by stage, and ``total``.
    """

    name: str
    state: str
    releases: list[Release]
    frames: dict[str, int]
    frames_per_second: float | None
    streams: int
    queue_depth: int
    mean_batch: float | None
    levels: dict[str, int]
    latency: dict[str, Latency]
    bytes: Bytes


class ClientStatus(msgspec.Struct, frozen=True):
    """One client with open streams.

    Attributes:
        name: from its certificate or token, else its address.
        streams: open ones, by model.
        frames, received_bytes: since the first of its streams was opened, ``since_seconds`` ago.
    """

    name: str
    streams: dict[str, int]
    frames: int
    received_bytes: int
    since_seconds: float


class BundleStatus(msgspec.Struct, frozen=True):
    """One file of the folder of bundles.

    Attributes:
        file: its name.
        state: ``loading``, ``ready`` (it answers frames), ``standby`` (sound, and another one answers) or ``failed``.
        reason: why it is ``standby`` or ``failed``; else empty.
        name, release, codec_fingerprint: what is in it; None where that could not be read.
    """

    file: str
    state: str
    reason: str
    name: str | None
    release: int | None
    codec_fingerprint: str | None


class DriftingCamera(msgspec.Struct, frozen=True):
    """One camera that is away from its baseline.

    Attributes:
        client, model: whose, and what for.
        stream_id: 32 hexadecimal digits.
        since_unix: when the alarm was raised; None: before this server began.
        statistic, shift: what left the baseline, and by how much now (``docs/drift.md``); None where ``since_unix`` is.
    """

    client: str
    model: str
    stream_id: str
    since_unix: float | None
    statistic: str | None
    shift: float | None


class Drift(msgspec.Struct, frozen=True):
    """Cameras and their baselines; ``cameras_in_alarm`` are the latest of ``in_alarm``, ``alarms`` are since the start."""

    watched: int
    in_alarm: int
    alarms: int
    cameras_in_alarm: list[DriftingCamera]


class Series(msgspec.Struct, frozen=True):
    """The last two minutes, the oldest first: answered frames per second, and p95 from arrival to result."""

    step_seconds: float
    frames_per_second: list[float]
    p95_ms: list[float | None]


class Status(msgspec.Struct, frozen=True):
    """All of it.

    Attributes:
        state: ``starting``, ``serving``, ``draining`` or ``ended``.
        address: where gRPC listens.
        rate_seconds, latency_seconds: what rates and latencies are taken over.
        frames: by result, of all models.
        clients: the busiest ones; ``clients_total`` says how many there are.
        refusals: streams and calls turned away, by status.
        bundles: those that do not answer frames first; ``bundles_total`` says by state how many there are.
        drift: None where it is not watched.
    """

    schema: int
    version: str
    state: str
    address: str
    now_unix: float
    uptime_seconds: float
    rate_seconds: float
    latency_seconds: float
    frames: dict[str, int]
    frames_per_second: float | None
    received_bytes_per_second: float | None
    streams: int
    refusals: dict[str, int]
    bytes: Bytes
    models: list[ModelStatus]
    bundles: list[BundleStatus]
    bundles_total: dict[str, int]
    drift: Drift | None
    clients: list[ClientStatus]
    clients_total: int
    series: Series
    process: ProcessUse


def status(tally: Tally, history: History, state: str, address: str, uptime_seconds: float) -> Status:
    """As it is now."""
    models = tally.all_models()
    everything = list(models.values())
    rates = history.rates()
    frames, latencies = history.series()
    return Status(
        schema=SCHEMA,
        version=VERSION,
        state=state,
        address=address,
        now_unix=round(time.time(), 3),
        uptime_seconds=round(uptime_seconds, 1),
        rate_seconds=RATE_SECONDS,
        latency_seconds=LATENCY_SECONDS,
        frames=_results(everything),
        frames_per_second=_rounded(rates.frames),
        received_bytes_per_second=_rounded(rates.received_bytes),
        streams=sum(model.streams for model in everything),
        refusals=_added([dict(model.refused) for model in everything]),
        bytes=_bytes(everything),
        models=_models(tally, models, history),
        bundles=_bundles(tally),
        bundles_total=tally.states(),
        drift=None if tally.drift is None else _drift(tally.drift),
        clients=_clients(tally),
        clients_total=len(tally.clients),
        series=Series(STEP_SECONDS, frames, latencies),
        process=process_use(),
    )


def _models(tally: Tally, models: dict[str, ModelTally], history: History) -> list[ModelStatus]:
    releases: dict[str, list[Release]] = {}
    for slot in tally.table:
        model = slot.batcher.model
        spec = model.codec.spec
        contract = model.manifest.input
        size = contract.size if contract.free is None else contract.free.most
        releases.setdefault(slot.name, []).append(
            Release(
                release=model.manifest.release,
                codec=spec.name,
                codec_fingerprint=slot.fingerprint.hex(),
                levels=spec.levels,
                input_size=size,
                free_size=contract.free is not None,
                tails=model.tails,
            )
        )
    return [
        _model(name, model, releases.get(name, []), history, tally.queued(name))
        for name, model in sorted(models.items())
        if name != OTHER
    ]


def _model(name: str, model: ModelTally, releases: list[Release], history: History, queued: int) -> ModelStatus:
    batches = sum(model.batches)
    latency = history.quantiles_ms(name, (0.5, 0.95))
    return ModelStatus(
        name=name,
        state="serving" if releases else "gone",
        releases=sorted(releases, key=lambda one: one.release),
        frames=_results([model]),
        frames_per_second=_rounded(history.rates(name).frames),
        streams=model.streams,
        queue_depth=queued,
        mean_batch=round(model.batch_frames / batches, 2) if batches else None,
        levels={level_name(level): count for level, count in sorted(model.levels.items())},
        latency={stage: Latency(*latency[stage]) for stage in (*STAGES, TOTAL)},
        bytes=_bytes([model]),
    )


def _bundles(tally: Tally) -> list[BundleStatus]:
    rows = [] if tally.bundles is None else sorted(tally.bundles(), key=lambda row: row.state == "ready")
    return [
        BundleStatus(
            row.file, row.state, row.reason, row.name, row.release, row.fingerprint.hex() if row.fingerprint else None
        )
        for row in rows[:MAX_BUNDLES]
    ]


def _drift(watch: DriftWatch) -> Drift:
    found = [
        DriftingCamera(
            one.camera.client, one.camera.model, one.camera.stream_id.hex(),
            None if one.since_us is None else one.since_us / 1e6, one.statistic, _rounded(one.shift, 4),
        )
        for one in watch.alarms(MAX_CAMERAS)
    ]  # fmt: skip
    return Drift(watch.watched, sum(watch.in_alarm.values()), sum(watch.alarms_total.values()), found)


def _clients(tally: Tally) -> list[ClientStatus]:
    now = time.monotonic()
    busiest = sorted(tally.clients.items(), key=lambda item: -item[1].frames)[:MAX_CLIENTS]
    return [
        ClientStatus(name, dict(one.streams), one.frames, one.received_bytes, round(now - one.since, 1))
        for name, one in busiest
    ]


def _results(models: list[ModelTally]) -> dict[str, int]:
    return _added([{RESULTS.get(code, "UNKNOWN"): count for code, count in model.results.items()} for model in models])


def _added(counts: list[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for name, count in one.items():
            total[name] = total.get(name, 0) + count
    return dict(sorted(total.items()))


def _bytes(models: list[ModelTally]) -> Bytes:
    compared, raw = sum(model.compared_bytes for model in models), sum(model.raw_bytes for model in models)
    received, sent = sum(model.received_bytes for model in models), sum(model.sent_bytes for model in models)
    return Bytes(received, sent, compared, raw, raw - compared)


def _rounded(value: float | None, digits: int = 2) -> float | None:
    return None if value is None else round(value, digits)
