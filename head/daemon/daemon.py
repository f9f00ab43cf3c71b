"""The edge client as a service: several sources, one model, outputs, figures; reloaded while it runs, and ended in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from narrowcast.head.daemon.clients import check_sources
from narrowcast.head.daemon.config import DaemonConfig, SourceConfig
from narrowcast.head.daemon.figures import Figures
from narrowcast.head.daemon.http import HttpServer, Page
from narrowcast.head.daemon.lane import Lane
from narrowcast.head.daemon.lock import StateLock
from narrowcast.head.daemon.logs import for_journal
from narrowcast.head.daemon.model import Backends, Model, Stamp, load_model, stamp_of
from narrowcast.head.daemon.notify import Notifier
from narrowcast.head.daemon.output_config import LinesOutput
from narrowcast.head.daemon.outputs import Outputs
from narrowcast.head.daemon.overview import line_of, status_of
from narrowcast.head.daemon.status import Status, StatusFile
from narrowcast.head.errors import StuckSourceError
from narrowcast.head.socket_bytes import SocketBytes, SocketMeter
from narrowcast.transport.errors import NarrowcastError
from narrowcast.transport.sinks import SinkCounts

if TYPE_CHECKING:
    from narrowcast.head.daemon.metrics import Metrics

log = logging.getLogger(__name__)
TICK_SECONDS = 1.0
# Without a watchdog, a frame that has not got on for so long makes the daemon not ready.
STUCK_SECONDS = 30.0
# A source that blocks may wait for a server that is there and has no room for it, again and again.
BLOCK_SECONDS = 300.0


class Daemon:
    """One daemon. Made and run on one event loop.

    Args:
        config: its settings.
        reread: reads them again, for a reload; raises ConfigError.
        preferred: the board's backends, best first.
        notifier: tells systemd.

    Attributes:
        figures: by source, those that are gone included.
        lanes: the sources that run.
        model_changes: how often another model took over.
        started_at: seconds of ``time.time()``.
    """

    def __init__(
        self, config: DaemonConfig, reread: Callable[[], DaemonConfig], preferred: Backends, notifier: Notifier
    ) -> None:
        self._config, self._reread, self._preferred, self._notifier = config, reread, preferred, notifier
        self.figures: dict[str, Figures] = {}
        self.lanes: dict[str, Lane] = {}
        self.model_changes = 0
        self.started_at = time.time()
        self._state = config.state_folder
        self._model: Model
        self._stamp: Stamp | None = None  # of the bundle's file that was looked at last
        self._refused: dict[str, str] = {}
        self._outputs = Outputs(self._state)
        self._status_file = StatusFile(config.run_folder)
        self._http: HttpServer | None = None
        self._meter = SocketMeter(*config.ports)
        self._reload = asyncio.Event()
        self._running = self._ending = False
        self._told_stuck = False
        self._textfile_at = self._looked_at = 0.0

    @property
    def drain_seconds(self) -> float:
        """What there is at the end for what is under way, by the settings as they are now."""
        return self._config.drain_seconds

    def reload(self) -> None:
        """Settings and bundle are read again, soon. For SIGHUP."""
        self._reload.set()

    async def run(self, stop: asyncio.Event) -> int:
        """Until ``stop`` is set, or all sources have ended: 0.

        Raises:
            NarrowcastError: it cannot start; or a source is lost in the system, which another process may not be.
        """
        lock = StateLock(self._state)
        failure: BaseException | None = None
        ticking = asyncio.create_task(self._tick_all())
        try:
            await self._start()
            failure = await self._go_on(stop)
        finally:
            self._notifier.stopping()
            self._running, self._ending = False, True
            await self._stop()
            ticking.cancel()
            gc.unfreeze()
            self._status_file.remove()
            self._notifier.close()
            lock.close()
        if failure is not None:
            raise failure
        return 0

    async def _start(self) -> None:
        started = time.monotonic()
        self._stamp = stamp_of(self._config.bundle)
        self._model = await asyncio.to_thread(load_model, self._config, self._preferred)
        await asyncio.to_thread(check_sources, self._config, self._model)
        await self._outputs.change(list(self._config.outputs) or [LinesOutput()])
        if any(one.key == "lines -" for one in self._config.outputs or [LinesOutput()]) and for_journal(sys.stdout):
            log.warning('every result is a line in the journal: name another output, such as kind = "socket"')
        await self._show_at(await self._listening(self._config.metrics.listen))
        # What is there by now stays: looking for rings of objects among the rest takes a millisecond.
        gc.collect()
        gc.freeze()
        for source in self._config.sources:
            self._start_lane(self._config, source)
        self._running = True
        self._write()
        manifest = self._model.manifest
        log.info(
            "ready in %.2f s: %s release %d, %s, %d source%s", time.monotonic() - started, manifest.name,
            manifest.release, self._model.session.choice, len(self.lanes), "" if len(self.lanes) == 1 else "s",
        )  # fmt: skip
        self._notifier.ready(self._line())

    def _start_lane(self, config: DaemonConfig, source: SourceConfig) -> None:
        figures = self.figures.setdefault(source.name, Figures())
        self.lanes[source.name] = Lane(config, source, self._model, figures, self._outputs)

    async def _listening(self, where: str | None) -> HttpServer | None:
        """Figures over HTTP, where they are wanted."""
        if where is None:
            return None
        metrics = self._metrics
        pages = {
            "/metrics": lambda: Page("200 OK", metrics.content_type, metrics.text()),
            "/status": lambda: Page("200 OK", "application/json", self.status().to_json()),
            "/healthz": self._health,
        }
        server = HttpServer(where, pages)
        await server.start()
        log.info("figures at %s: %s", server.where, ", ".join(pages))
        return server

    async def _show_at(self, server: HttpServer | None) -> None:
        """What was listened on before is given up."""
        before, self._http = self._http, server
        if before is not None and before is not server:
            await before.stop()

    def _health(self) -> Page:
        status = "200 OK" if self.status().ready else "503 Service Unavailable"
        return Page(status, "text/plain; charset=utf-8", self._line().encode() + b"\n")

    async def _go_on(self, stop: asyncio.Event) -> BaseException | None:
        """Ticks; what ended it, where that was a fault."""
        while not stop.is_set():
            # A model may take minutes to load: the end does not wait for that.
            work = asyncio.create_task(self._look_after())
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait([work])
                return None
            work.result()
            for name, lane in self.lanes.items():
                if lane.failure is not None and lane.feed.source.live:
                    return StuckSourceError(f"source {name!r} is lost: {lane.failure}")
            if self.lanes and all(lane.ended for lane in self.lanes.values()):
                failures = [lane.failure for lane in self.lanes.values() if lane.failure is not None]
                log.info("all sources have ended")
                return failures[0] if failures else None
        return None

    async def _tick_all(self) -> None:
        """Once a second, also while a model is being loaded."""
        while True:
            if self._running:
                self._feed_watchdog()
                self._notifier.status(self._line())
                self._write_files()
            elif not self._ending:
                self._notifier.starting("loading the model")
            await asyncio.sleep(TICK_SECONDS)

    def _write_files(self) -> None:
        self._meter.read()
        self._write()
        wanted, now = self._config.metrics, time.monotonic()
        if wanted.textfile is not None and now - self._textfile_at >= wanted.textfile_seconds:
            self._textfile_at = now
            self._metrics.write(Path(wanted.textfile))

    @cached_property
    def _metrics(self) -> Metrics:
        """Where nobody wants figures, their library is not loaded."""
        from narrowcast.head.daemon.metrics import Metrics

        return Metrics(self)

    async def _look_after(self) -> None:
        """About once a second, what may take its time: settings, links that have failed, a bundle that was replaced."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._reload.wait(), TICK_SECONDS)
        if self._reload.is_set():
            self._reload.clear()
            await self._reload_all()
        for lane in list(self.lanes.values()):
            await lane.tick()
        if time.monotonic() - self._looked_at >= self._config.check_bundle_seconds:
            self._looked_at = time.monotonic()
            await self._look_at_bundle()

    def _feed_watchdog(self) -> None:
        """While frames get on, or there are none. A frame that waits for a server by its settings is not stuck."""
        stuck = self._stuck()
        if not stuck:
            self._told_stuck = False
            self._notifier.watchdog()
        elif not self._told_stuck:
            self._told_stuck = True
            log.error(
                "no frame has got on for %s", ", ".join(f"{seconds:.0f} s in {name}" for name, seconds in stuck.items())
            )

    def _stuck(self) -> dict[str, float]:
        """Sources of which a frame does not get on, and for how many seconds."""
        found = {name: lane.stuck_seconds() for name, lane in self.lanes.items()}
        return {name: seconds for name, seconds in found.items() if seconds > self._patience(self.lanes[name])}

    def _patience(self, lane: Lane) -> float:
        """Seconds within which a frame gets on, whatever the network does."""
        least = STUCK_SECONDS if self._notifier.watchdog_seconds is None else self._notifier.watchdog_seconds / 2
        waits = BLOCK_SECONDS if lane.source.on_outage == "block" else lane.source.exit_after_seconds + 5.0
        return max(least, waits)

    # Another model, other settings.

    async def _look_at_bundle(self) -> None:
        """A file that was replaced is loaded beside the running model."""
        stamp = stamp_of(self._config.bundle)
        if stamp is None or stamp == self._stamp or (model := await self._load(self._config, stamp)) is None:
            return
        self._take_over(model)
        try:
            await self._change_lanes(self._config)
        except (NarrowcastError, OSError) as error:  # its certificates are being replaced at this moment
            self._refuse("bundle", f"{error}; it is tried again")
            self._stamp = None

    async def _load(self, config: DaemonConfig, stamp: Stamp | None) -> Model | None:
        """The configured model; None where it is refused."""
        self._stamp = stamp
        try:
            model = await asyncio.to_thread(load_model, config, self._preferred, self._model)
            await asyncio.to_thread(check_sources, config, model)
        except Exception as error:  # noqa: BLE001  (whatever a bundle does to a library: what runs goes on)
            self._refuse(
                "bundle", f"{str(error) or type(error).__name__}; release {self._model.manifest.release} goes on"
            )
            return None
        self._refused.pop("bundle", None)
        return model

    def _take_over(self, model: Model) -> None:
        """Frames to come are the new model's."""
        old, new = self._model.manifest, model.manifest
        self._model = model
        self.model_changes += 1
        log.info("%s release %d takes over from %s release %d", new.name, new.release, old.name, old.release)

    async def _reload_all(self) -> None:
        """SIGHUP: settings first, then the bundle; what is no good leaves all as it is."""
        self._notifier.reloading()
        try:
            config = self._reread()
            if config.state_folder != self._state:
                log.warning("state = %s counts from the next start on", config.state_folder)
                config = msgspec.structs.replace(config, state=str(self._state))  # for sources that are begun anew, too
            if config.runtime.cpus != self._config.runtime.cpus:
                log.warning("runtime.cpus counts from the next start on")
            await self._change_config(config)
            self._refused.pop("settings", None)
            log.info("reloaded")
        except Exception as error:  # noqa: BLE001  (whatever is wrong with them: what runs goes on)
            self._refuse("settings", f"{str(error) or type(error).__name__}; those before go on")
        self._notifier.ready(self._line())

    async def _change_config(self, config: DaemonConfig) -> None:
        old, before, stamp, model = self._config, self._stamp, stamp_of(config.bundle), None
        other_file = config.bundle != old.bundle
        if config.model != old.model or stamp != self._stamp or "bundle" in self._refused:
            model = await self._load(config, stamp)
            if model is None:
                config = msgspec.structs.replace(config, **old.model)
                self._stamp = before if other_file else stamp  # of the file that is looked at from now on
        try:
            await asyncio.to_thread(check_sources, config, model or self._model, self._anew(config))
            listen = config.metrics.listen
            server = self._http if listen == old.metrics.listen else await self._listening(listen)
            try:
                await self._outputs.change(list(config.outputs) or [LinesOutput()])
            except BaseException:
                if server is not None and server is not self._http:
                    await server.stop()
                raise
            await self._show_at(server)
        except Exception:
            if model is not None:  # it was loaded in vain; where it is this file's, it is again, by the next look
                self._stamp = before if other_file else None
            raise
        if model is not None:
            self._take_over(model)
        self._config = config
        if config.ports != old.ports:
            self._meter = SocketMeter(*config.ports)
        await self._change_lanes(config)

    async def _change_lanes(self, config: DaemonConfig) -> None:
        """Gives each source its settings; one that is captured or spooled in another way is begun anew.

        Raises:
            NarrowcastError, OSError: one of them cannot have them after all; that one goes on as it was.
        """
        wanted = {source.name: source for source in config.sources}
        failures: list[Exception] = []
        before: dict[str, SourceConfig] = {}
        for name, lane in list(self.lanes.items()):
            source = wanted.get(name)
            if source is None or source.kept != lane.source.kept:  # all of them before another one takes a camera
                await lane.stop(config.drain_seconds)
                before[name] = self.lanes.pop(name).source
                continue
            try:
                same = source == lane.source and self._model is lane.model and config.link == lane.config.link
                if not same or lane.client.client.failure is not None:
                    await lane.change(config, source, self._model)
            except (NarrowcastError, OSError) as error:  # the others have theirs
                failures.append(error)
        for source in self._anew(config):
            for tried in (source, before.get(source.name)):
                try:
                    if tried is not None:
                        self._start_lane(config, tried)
                    break
                except (NarrowcastError, OSError) as error:
                    failures.append(error)
        if failures:
            raise failures[0]

    def _anew(self, config: DaemonConfig) -> list[SourceConfig]:
        """Sources that do not run yet, or are captured or spooled in another way."""
        found = ((source, self.lanes.get(source.name)) for source in config.sources)
        return [source for source, lane in found if lane is None or lane.source.kept != source.kept]

    def _refuse(self, what: str, why: str) -> None:
        self._refused[what] = why
        log.error("the %s on disk is refused: %s" if what == "bundle" else "the %s on disk are refused: %s", what, why)

    # How it is.

    def status(self) -> Status:
        """Now."""
        return status_of(
            self._model.manifest, self.figures, self.lanes, ready=self._running and not self._stuck(),
            started_at=self.started_at, refused="; ".join(self._refused.values()) or None,
        )  # fmt: skip

    def socket_bytes(self) -> SocketBytes | None:
        """On all links since the start; what a connection carried in its last second may be missing."""
        return self._meter.read()

    def output_counts(self) -> dict[str, SinkCounts]:
        """By output."""
        return self._outputs.counts()

    def _line(self) -> str:
        return line_of(self.status())

    def _write(self) -> None:
        self._status_file.write(self.status())

    async def _stop(self) -> None:
        """Ends all that runs, within the bound."""
        seconds = self._config.drain_seconds
        await asyncio.gather(*(lane.stop(seconds) for lane in self.lanes.values()))
        await self._outputs.close(max(1.0, seconds))
        if self._http is not None:
            await self._http.stop()
        if self.figures:
            log.info("ended: %s", self._line())
