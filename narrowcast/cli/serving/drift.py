"""What ``narrowcast serve`` makes of the frames that pass: drift, samples for audit, results elsewhere."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from narrowcast.cli.options import at_least, seconds
from narrowcast.cli.serving.sinks import make_sinks
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.files import replacing

if TYPE_CHECKING:
    from narrowcast.tail.audit import AuditRecorder
    from narrowcast.tail.drift import DriftEvent, DriftWatch
    from narrowcast.tail.observe import Observer
    from narrowcast.tail.operations.tally import Tally
    from narrowcast.tail.sinks import ManifestOf, SinkObserver

log = logging.getLogger(__name__)
SAVE_SECONDS = 300.0
# Of a sink: the metric's name, what it means, and where it is in its counts.
_SINK_COUNTERS = (
    ("sent", "Records that were delivered.", "delivered"),
    ("dropped", "Records that were dropped, since too many waited.", "dropped"),
    ("rejected", "Records that the receiver will never take.", "rejected"),
    ("retried", "Deliveries that were tried again.", "retries"),
    ("waiting", "Records that wait now.", "waiting"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    group = parser.add_argument_group("drift and audit (docs/drift.md)")
    group.add_argument("--no-drift", action="store_true", help="do not watch the sizes of each camera's packets")
    group.add_argument(
        "--drift-learn", type=at_least(200), default=1500, metavar="N",
        help="frames that a camera's baseline is learned from; a multiple of 50 (default: 1500)",
    )  # fmt: skip
    group.add_argument("--drift-state", type=Path, metavar="FILE", help="keep the baselines there, over restarts")
    group.add_argument(
        "--audit", type=Path, metavar="DIR",
        help="keep samples of what arrives there, sealed; clients that consent are asked for the images of these frames",
    )  # fmt: skip
    group.add_argument("--audit-key", type=Path, metavar="FILE.pub", help="of `narrowcast audit key`: seals them")
    group.add_argument(
        "--audit-every", type=at_least(0), default=0, metavar="N",
        help="keep one frame of N (default: 0, only those around drift alarms)",
    )  # fmt: skip
    group.add_argument("--audit-days", type=seconds, default=30.0, metavar="D", help="and for so long (default: 30)")
    group.add_argument(
        "--audit-megabytes", type=at_least(1), default=1000, metavar="M", help="and at most so much (default: 1000)"
    )


class Watching:
    """The observers that the options ask for, tied together.

    Args:
        args: the verb's options.
        manifest_of: see :class:`~narrowcast.tail.sinks.SinkObserver`.

    Attributes:
        observers: for the server.
        audit: keeps samples; None without ``--audit``.
        drift: watches packet sizes; None with ``--no-drift``.
        sinks: tell results elsewhere; None where none are asked for.

    Raises:
        ConfigError: options that do not go together; see also :func:`~narrowcast.cli.serving.sinks.make_sinks`.
        AuditError, KeyFileError: samples cannot be kept, or not sealed.
        DriftStateError: ``--drift-state`` is something else.
    """

    def __init__(self, args: argparse.Namespace, manifest_of: ManifestOf) -> None:
        self.drift = _drift(args, self._drifted)
        self.audit = _audit(args)
        self.sinks = _sinks(args, manifest_of)
        self._state: Path | None = args.drift_state
        self._saving: asyncio.Task[None] | None = None

    @property
    def observers(self) -> list[Observer]:
        """In the order in which they must be told: a frame is known to the audit before drift speaks of it."""
        return [one for one in (self.audit, self.sinks, self.drift) if one is not None]

    def _drifted(self, event: DriftEvent) -> None:
        if self.audit is not None:
            self.audit.drifted(event)
        if self.sinks is not None:
            self.sinks.drifted(event)

    def tell_figures(self, tally: Tally) -> None:
        """Adds the figures to the metrics and the status."""
        from narrowcast.tail.operations.tally import Gauge

        if (sinks := self.sinks) is not None:
            for name, text, attribute in _SINK_COUNTERS:

                def counts(attribute: str = attribute) -> dict[str, float]:
                    return {sink.split()[0]: getattr(one, attribute) for sink, one in sinks.counts.items()}

                tally.add_gauge(Gauge(f"narrowcast_sink_{name}", text, counts, "sink", counter=name != "waiting"))
        if (watch := self.drift) is None:
            return
        names = tally.table.names

        def add(name: str, text: str, values: Callable[[], Mapping[str, int]], *, counter: bool = False) -> None:
            def by_model() -> dict[str, float]:  # with a 0 before there is a camera
                return {**dict.fromkeys(names(), 0), **values()}

            tally.add_gauge(Gauge(name, text, by_model, counter=counter))

        add("narrowcast_rate_drift", "Cameras that are away from their baseline now.", lambda: watch.in_alarm)
        add("narrowcast_rate_drift_alarms", "Drift alarms.", lambda: watch.alarms_total, counter=True)
        tally.drift = watch

    def start(self) -> None:
        """Begins to save the baselines now and then."""
        if self.drift is not None and self._state is not None:
            self._saving = asyncio.create_task(self._save_often(self.drift, self._state))

    async def stop(self, seconds: float = 5.0) -> None:
        """Saves, and delivers what waits, for at most so long."""
        if self._saving is not None:
            self._saving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._saving
        if self.drift is not None and self._state is not None:
            await _save(self.drift, self._state)
        if self.sinks is not None:
            await asyncio.to_thread(self.sinks.close, seconds)
        if self.audit is not None:
            await asyncio.to_thread(self.audit.close)

    @staticmethod
    async def _save_often(drift: DriftWatch, path: Path) -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            await _save(drift, path)


async def _save(drift: DriftWatch, path: Path) -> None:
    data = drift.encode()

    def write() -> None:
        with replacing(path) as out:
            out.write(data)

    try:
        await asyncio.to_thread(write)
    except OSError as error:
        log.error("drift: the baselines were not saved: %s", error)


def _drift(args: argparse.Namespace, told: object) -> DriftWatch | None:
    if args.no_drift:
        if args.drift_state:
            raise ConfigError("--drift-state goes without --no-drift")
        return None
    from narrowcast.tail.drift import DriftSettings, DriftWatch

    if args.drift_learn % 50 or args.drift_learn > 10_000:
        raise ConfigError(f"--drift-learn {args.drift_learn}: a multiple of 50, from 200 to 10000")
    watch = DriftWatch(DriftSettings(learn_frames=args.drift_learn), on_event=told)  # type: ignore[arg-type]
    if args.drift_state:
        known = watch.load(args.drift_state)
        log.info("drift: baselines of %d cameras from %s", known, args.drift_state)
    return watch


def _audit(args: argparse.Namespace) -> AuditRecorder | None:
    if not args.audit:
        if args.audit_key or args.audit_every:
            raise ConfigError("--audit-key and --audit-every go with --audit DIR, which is not given")
        return None
    if not args.audit_key:
        raise ConfigError("--audit needs --audit-key FILE.pub: make one with `narrowcast audit key FILE`")
    if args.no_drift and not args.audit_every:
        raise ConfigError("--audit with --no-drift keeps nothing without --audit-every N")
    from narrowcast.tail.audit import AuditRecorder, AuditStore, Retention, Sampler
    from narrowcast.transport.sealing import SealingKey

    retention = Retention(args.audit_days * 86_400, args.audit_megabytes * 1_000_000)
    store = AuditStore(args.audit, SealingKey.read(args.audit_key), retention)
    return AuditRecorder(Sampler(args.audit_every), store)


def _sinks(args: argparse.Namespace, manifest_of: ManifestOf) -> SinkObserver | None:
    sinks = make_sinks(args)
    if not sinks:
        return None
    from narrowcast.tail.sinks import SinkObserver

    return SinkObserver(sinks, manifest_of, raw=args.sink_raw)
