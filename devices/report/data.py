"""The report's figures as JSON: the schema is in ``docs/report.md``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from narrowcast.devices.profile.figures import Way
from narrowcast.devices.report.entries import Entry, base_id, uplink_mbit
from narrowcast.devices.report.figures import QUANTITIES
from narrowcast.devices.report.noise import Figure

FORMAT = "narrowcast-report"
SCHEMA = 1


def data(entries: Sequence[Entry]) -> dict[str, Any]:
    """Every figure of the page."""
    return {"format": FORMAT, "schema": SCHEMA, "runs": [_run(entry) for entry in entries]}


def figure(found: Figure | None) -> dict[str, float | None] | None:
    """A value with its interval."""
    return None if found is None else found._asdict()


def _run(entry: Entry) -> dict[str, Any]:
    run = entry.run
    return {
        "name": entry.name,
        "id": run.id,
        "started": run.started,
        "complete": run.complete,
        "board": msgspec.to_builtins(run.board),
        "model": {"name": run.model.name, "release": run.model.release, "fingerprint": run.model.fingerprint},
        "server": msgspec.to_builtins(run.server),
        "command": run.command,
        "verdict": msgspec.to_builtins(run.verdict),
        "warnings": run.warnings,
        "links": [{"name": link.name, "kind": link.kind, "uplink_mbit": uplink_mbit(link),
                   "round_trip_ms": link.round_trip_ms} for link in entry.links],
        "ways": [_way(way) for way in run.ways],
    }  # fmt: skip


def _way(way: Way) -> dict[str, Any]:
    stages = {
        stage.name: {"mean_ms": stage.times.mean_ms, "p50_ms": stage.times.p50_ms, "p90_ms": stage.times.p90_ms,
                     "p95_ms": stage.times.p95_ms, "p99_ms": stage.times.p99_ms, "where": stage.where,
                     "within": stage.within, "error_ms": stage.error_ms}
        for stage in way.stages
    }  # fmt: skip
    return {
        "id": way.id,
        "way": base_id(way),
        "link": way.link,
        "kind": way.kind,
        "title": way.title,
        "level": way.level,
        "codec": way.codec,
        "quality": way.quality,
        "precision": way.precision,
        "frames": way.frames,
        "failed": way.failed,
        "figures": {quantity.key: figure(quantity.of(way)) for quantity in QUANTITIES},
        "why_no_energy": way.energy.why_not,
        "why_no_agreement": way.agreement.why_not,
        "stages": stages,
        "warnings": way.warnings,
    }
