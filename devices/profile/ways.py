"""One way's figures, of what was tallied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from narrowcast.devices.power.trace import Trace
from narrowcast.devices.profile.accuracy import accuracy_of
from narrowcast.devices.profile.agreement import Answers, agreement
from narrowcast.devices.profile.conditions import conditions_over
from narrowcast.devices.profile.energy import Idle, PowerOver, Turn
from narrowcast.devices.profile.engine import Measured
from narrowcast.devices.profile.figures import (
    STAGE_ORDER,
    Bytes,
    Distribution,
    Energy,
    Stage,
    StageName,
    Throughput,
    Way,
)
from narrowcast.devices.profile.offset import ClockOffset
from narrowcast.devices.profile.statistics import distribution, median_estimate
from narrowcast.devices.profile.tally import MEASURED, Tally
from narrowcast.devices.windows import LOADED_S
from narrowcast.transport.bundle import Manifest

Floats = npt.NDArray[np.float64]

_WHERE: dict[str, Literal["board", "network", "server", "both"]] = {
    "wire": "network", "network": "network", "return": "network", "queue": "server", "decode": "server", "tail": "server",
    "other": "both",
}  # fmt: skip
_NO_OFFSET = (
    "the server does not tell when packets arrive (an older release), or its clock and the board's could not be related: "
    "was it started again?"
)


class Context(NamedTuple):
    """What the figures of all ways need.

    Attributes:
        measured: what ran.
        manifest: of the bundle.
        power: of the board; None where there is no sensor.
        why_no_power: then.
        idle: the idle board.
        trace: for conditions; None where they could not be read.
        offset: between the clocks.
        answers: by way without its link: what is answered does not depend on the link.
        reference: the answers of the uncut network on the board.
        window: frames in flight, with several.
    """

    measured: Measured
    manifest: Manifest
    power: PowerOver | None
    why_no_power: str | None
    idle: Idle
    trace: Trace | None
    offset: ClockOffset
    answers: Mapping[str, Answers]
    reference: Answers | None
    window: int


def way_of(tally: Tally, context: Context) -> Way:
    """All of a way but its model, which needs the other links."""
    info, measured = tally.info, context.measured
    counted = measured.counted(info.id, "single")
    median, why_no_median = median_estimate(list(tally.by_block(tally.latency).values()))
    loaded_s = sum(turn.span.seconds for turn in counted)
    conditions = conditions_over(context.trace, [turn.span for turn in counted])
    warnings = list(measured.warnings.get(info.id, []))
    if loaded_s < LOADED_S:
        warnings.append(f"loaded for less than {LOADED_S:.0f} s: that is too short to be trusted")
    if tally.failed:
        failed = ", ".join(f"{count} {status}" for status, count in sorted(tally.failed.items()))
        warnings.append(f"{sum(tally.failed.values())} of {tally.frames} frames were not answered: {failed}")
    if conditions.throttled:
        warnings.append(f"the board was slowed down: {', '.join(conditions.throttled)}")
    return Way(
        id=info.id, kind=info.kind, title=info.title, link=info.link, precision=info.precision, backend=info.backend,
        level=info.level, codec=_codec(info.codec), quality=info.quality, frames=tally.frames, failed=dict(tally.failed),
        latency=distribution(tally.latency), median_ms=median, why_no_median=why_no_median,
        stages=stages_of(tally, context.offset), throughput=_throughput(tally, context, loaded_s),
        bytes=_bytes(tally), energy=_energy(context, counted), conditions=conditions, loaded_s=loaded_s,
        agreement=agreement(context.manifest, context.answers[info.name], context.reference),
        accuracy=accuracy_of(context.manifest.figures, info), warnings=warnings,
    )  # fmt: skip


def _codec(name: str | None) -> Literal["jpeg", "webp"] | None:
    return "webp" if name == "webp" else "jpeg" if name == "jpeg" else None


def _energy(context: Context, counted: Sequence[Turn]) -> Energy:
    if context.power is None:
        return Energy(why_not=context.why_no_power or "no power sensor")
    return context.power.energy(counted, context.idle)


def _throughput(tally: Tally, context: Context, loaded_s: float) -> Throughput:
    answered = tally.frames - sum(tally.failed.values())
    single = answered / loaded_s if loaded_s > 0 and answered else None
    if tally.info.link is None:
        return Throughput(single_fps=single, why_not="a board that computes by itself has nothing to wait for")
    if not tally.windowed_s or not tally.windowed_frames:
        return Throughput(single_fps=single, why_not="no turn with several frames in flight was long enough to count")
    counted = context.measured.counted(tally.info.id, "windowed")
    return Throughput(
        single_fps=single, windowed_fps=tally.windowed_frames / tally.windowed_s, window=context.window,
        windowed_latency=distribution(np.asarray(tally.windowed_ms, np.float64)),
        windowed_energy=_energy(context, counted),
    )  # fmt: skip


def _bytes(tally: Tally) -> Bytes | None:
    if tally.info.link is None:
        return None
    up, down = tally.mean_bytes()
    frames, by_frame = tally.socket_frames, tally.up_bytes_by_frame()
    if not frames:
        why = "this system does not tell what a socket has sent"
        return Bytes(packet_up=up, packet_down=down, packet_up_by_frame=by_frame, why_not=why)
    return Bytes(
        packet_up=up, packet_down=down, socket_up=tally.socket_up / frames, socket_down=tally.socket_down / frames,
        packet_up_by_frame=by_frame,
    )  # fmt: skip


def stages_of(tally: Tally, offset: ClockOffset) -> list[Stage]:
    """Where the latency of a way's answered frames went. The means of those not within another add up to its mean."""
    measured: dict[StageName, Floats] = {
        name: values for name in MEASURED if len(values := tally.stage(name)) and not np.isnan(values).any()
    }
    if not measured:
        return []
    found = {
        name: Stage(name=name, where=_WHERE.get(name, "board"), times=distribution(v)) for name, v in measured.items()
    }
    rest = tally.latency - np.sum(list(measured.values()), axis=0)
    found["other"] = Stage(name="other", where="both" if "wire" in measured else "board", times=distribution(rest))
    if "wire" in measured:
        found |= _divided(tally, offset)
    return sorted(found.values(), key=lambda stage: STAGE_ORDER.index(stage.name))


def _divided(tally: Tally, offset: ClockOffset) -> dict[StageName, Stage]:
    """The wire, there and back, where the clocks' offset is known well enough."""
    up = tally.exchange("arrived") - tally.exchange("sent")
    down = tally.exchange("answered") - tally.exchange("returned")
    sent = tally.by_block(tally.exchange("sent"))
    moments = {block: float(np.mean(at)) for block, at in sent.items() if not np.isnan(at).any()}
    known = {block: related for block, at in moments.items() if (related := offset.at(at)) is not None}
    numbers = np.asarray(tally.blocks, np.int64)
    why = None
    if len(known) < len(np.unique(numbers)):
        why, error_ms = _NO_OFFSET, None
    else:
        shift = np.array([known[int(number)].seconds for number in numbers])
        error_ms = 1000 * float(np.median([known[int(number)].error for number in numbers]))
    found: dict[StageName, Stage] = {}
    for name, seconds, sign in (("network", up, -1.0), ("return", down, 1.0)):
        times = Distribution(frames=0, why_not=why)
        if error_ms is not None:
            values = 1000 * (seconds + sign * shift)
            middle = float(np.median(values))
            if middle <= error_ms:
                reason = f"the clocks' offset is known to {error_ms:.3g} ms only, and it is {middle:.3g} ms: see wire"
                times = Distribution(frames=0, why_not=reason)
            else:
                times = distribution(np.maximum(values, 0.0))
        stage: StageName = "network" if name == "network" else "return"
        found[stage] = Stage(name=stage, where="network", times=times, within="wire", error_ms=error_ms)
    return found
