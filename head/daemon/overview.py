"""A daemon's status, put together from what its parts know."""

from __future__ import annotations

import os
from collections.abc import Mapping

from narrowcast.head.daemon.figures import Figures, age
from narrowcast.head.daemon.lane import Lane
from narrowcast.head.daemon.status import LedgerStatus, ModelStatus, SourceStatus, Status, rfc3339, rss_bytes
from narrowcast.transport.bundle import Manifest


def status_of(
    manifest: Manifest,
    figures: Mapping[str, Figures],
    lanes: Mapping[str, Lane],
    *,
    ready: bool,
    started_at: float,
    refused: str | None,
) -> Status:
    """Now.

    Args:
        manifest: of the model that runs.
        figures: of all sources that there have been.
        lanes: of those that there are.
        ready: see :class:`Status`.
        started_at: in seconds of ``time.time()``.
        refused: see :class:`Status`.
    """
    sources = {name: _source(one, lanes.get(name)) for name, one in figures.items()}
    ledger = LedgerStatus()
    for source in sources.values():
        ledger += source.ledger
    latest = max(figures.values(), key=lambda one: one.captured_at or 0.0, default=None)
    return Status(
        pid=os.getpid(),
        started_at=rfc3339(started_at),
        model=ModelStatus(manifest.name, manifest.release, manifest.fingerprint),
        ledger=ledger,
        server=next((one.server for one in sources.values() if one.server is not None), None),
        answer_age_s=min((one.answer_age_s for one in sources.values() if one.answer_age_s is not None), default=None),
        frame_age_s=min((one.frame_age_s for one in sources.values() if one.frame_age_s is not None), default=None),
        level=None if latest is None else latest.level,
        rss_bytes=rss_bytes(),
        ready=ready,
        sources=sources,
        refused=refused,
    )


def line_of(status: Status) -> str:
    """The same in a line."""
    ledger, server = status.ledger, status.server or "no server"
    dropped = sum(ledger.dropped.values())
    spooled = f", {ledger.spooled} spooled" if ledger.spooled else ""
    local = f", {ledger.local} local" if ledger.local else ""
    refused = f"; REFUSED: {status.refused}" if status.refused else ""
    return (
        f"{status.model.name} release {status.model.release}, {server}: {ledger.captured} frames, "
        f"{ledger.answered} answered{local}{spooled}, {dropped} dropped{refused}"
    )


def _source(figures: Figures, lane: Lane | None) -> SourceStatus:
    spool = None if lane is None else lane.spool
    return SourceStatus(
        running=lane is not None and not lane.ended,
        ledger=LedgerStatus.of(figures.ledger.account),
        server=None if lane is None else lane.client.client.server,
        answer_age_s=age(figures.answered_at),
        frame_age_s=age(figures.captured_at),
        level=figures.level,
        stuck_s=0.0 if lane is None else round(lane.stuck_seconds(), 3),
        openings=figures.opened if lane is None else lane.openings,
        spool_waiting=None if spool is None else spool.waiting,
        spool_bytes=None if spool is None else spool.size_bytes,
    )
