"""``narrowcast profile`` and ``narrowcast.profile``: from a bundle and a server's address to the record of a run."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from narrowcast.devices.errors import ProfileError, SensorError, UnwrittenRunError
from narrowcast.devices.machine import Folder, open_machine
from narrowcast.devices.machine.recording import Recording
from narrowcast.devices.measure import reach
from narrowcast.devices.power.sampler import Sampler, SamplerInfo
from narrowcast.devices.probe import Board, preferred_backends, probe
from narrowcast.devices.profile.connections import Connection, connections
from narrowcast.devices.profile.engine import Engine, Measured, ReplayClock, Timing
from narrowcast.devices.profile.frames import FrameSet, load_frames
from narrowcast.devices.profile.observer import Observer, Outline, Silent
from narrowcast.devices.profile.power_now import PowerNow
from narrowcast.devices.profile.record import Sampled, Subject, run_record
from narrowcast.devices.profile.runners import RemoteRunner, Runner
from narrowcast.devices.profile.schema import Plan, Run, Server, write_run
from narrowcast.devices.profile.settings import ProfileSettings, command_of
from narrowcast.devices.profile.starting import kinds_to_run, make_runners
from narrowcast.devices.windows import Clock
from narrowcast.head.models import list_models
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.rpc.channels import parse_address
from narrowcast.transport.rpc.credentials import ClientTls

NO_TARGET = (
    "no target describes this board, so nobody can say what its power sensors are: --target, or --meter with one"
)


def profile(
    bundle: Bundle | str | Path,
    to: str | None = None,
    settings: ProfileSettings | None = None,
    *,
    output: str | Path | None = None,
    tls: ClientTls | None = None,
    observer: Observer | None = None,
    more_words: Sequence[str] = (),
    allow_unsigned: bool = False,
) -> Run:
    """Runs a bundle locally, by sending images and split, in turns, on the same frames; gives what was measured.

    Args:
        bundle: opened for the role ``device`` or ``any``, or its file.
        to: the tail server, ``HOST:PORT``; None for what runs on the board alone.
        settings: what, and for how long.
        output: where the record is written, also where the run breaks off.
        tls: for the server.
        observer: is told what happens.
        more_words: of the command line that reproduces it, which settings do not know.
        allow_unsigned: open an unsigned bundle file.

    Raises:
        KeyboardInterrupt: after the record of what there was is written.
        LinkError: likewise, where the server goes; before anything ran, without a record.
        ProfileError: nothing can be run as it is asked for.
        UnwrittenRunError: it was run, and ``output`` cannot be written; has what was measured.
        NarrowcastError: of the bundle, the backends, the target, the meter or the links.
    """
    settings = settings or ProfileSettings()
    if not isinstance(bundle, Bundle):
        bundle = Bundle.open(bundle, "device", allow_unsigned=allow_unsigned)
    observer = observer or Silent()
    words = [*command_of(bundle.path, to, settings), *more_words]
    run, error = _Profiling(bundle, to, settings, tls, observer, words).run()
    if output is not None and (run.blocks or error is None):
        try:
            write_run(run, Path(output))
        except OSError as disk:
            raise UnwrittenRunError(run, disk) from disk
    if error is not None:
        raise error
    return run


class _Power(NamedTuple):
    """What samples beside the work."""

    sampler: Sampler | None
    info: SamplerInfo | None
    why_not: str | None


class _Profiling:
    """One call of :func:`profile`."""

    def __init__(
        self,
        bundle: Bundle,
        to: str | None,
        settings: ProfileSettings,
        tls: ClientTls | None,
        observer: Observer,
        command: list[str],
    ) -> None:
        self.bundle, self.to, self.settings, self.tls = bundle, to, settings, tls
        self.observer, self.command = observer, command

    def run(self) -> tuple[Run, BaseException | None]:
        """The record, and what ended the run before its time."""
        settings, observer = self.settings, self.observer
        observer.phase("preparing", 0.0)
        probed = probe(
            settings.root, architecture=settings.architecture, meter=settings.meter, target=settings.target
        )  # fmt: skip
        data = Path(settings.data) if settings.data is not None else None
        frames = load_frames(data, self.bundle.manifest.input, limit=settings.limit, read_each=settings.read_each)
        server = self._ask_server()
        kinds = kinds_to_run(self.bundle, settings, server, observer.note)
        links = settings.links if {"image", "split"} & set(kinds) else []
        with ExitStack() as stack:
            found: list[Connection] = []
            if server is not None and self.to is not None and {"image", "split"} & set(kinds):
                there = connections(self.to, links, real=settings.real, tls=self.tls, seed=settings.seed)
                found = stack.enter_context(there)
            power = self._power(probed)
            if power.sampler is not None:
                stack.callback(power.sampler.stop)
            backends = [settings.backend] if settings.backend else preferred_backends(target=settings.target)
            runners = make_runners(self.bundle, kinds, found, settings, backends, observer.note)
            timing = settings.timing(power.info.sample_hz if power.info is not None else None)
            measured = self._measure(runners, frames, timing, power)
            streams = Counter[str]()
            for runner in runners:
                if isinstance(runner, RemoteRunner) and runner.info.link is not None:
                    streams[runner.info.link] += runner.streams()
            trace = None if power.sampler is None else power.sampler.stop()
        observer.phase("evaluating", 1.0)
        plan = self._plan(runners, found, timing, frames)
        tool = f"narrowcast {version('narrowcast')}"
        subject = Subject(self.bundle, probed, server, plan, self.command, tool, frames.warnings)
        sampled = Sampled(power.info, trace, power.why_not)
        run = run_record(subject, measured, found, streams, sampled, self.started)
        observer.ended(measured.complete)
        return run, measured.error

    def _measure(self, runners: Sequence[Runner], frames: FrameSet, timing: Timing, power: _Power) -> Measured:
        machine = open_machine(self.settings.root)
        recorded = isinstance(machine, Recording)
        sampler = power.sampler
        if sampler is not None and recorded:
            sampler.wait(_REPLAY_S)  # it replays at once, in a time of its own
        clock: Clock = ReplayClock(machine.now_ns()) if recorded else Folder(Path("/"))
        if sampler is not None and not recorded:
            reach(sampler, clock, clock.now_ns())
        power_now = PowerNow(power.info, clock.now_ns())

        def look() -> None:
            if sampler is not None:
                self.observer.sample(power_now.look(clock.now_ns(), *sampler.newest))

        engine = Engine(runners, frames, timing, clock, self.observer, look, self._is_there)
        self.observer.begun(_outline(runners, timing))
        self.started = time.time()
        hurried = True
        try:
            measured = engine.run()
            hurried = measured.error is not None
        finally:
            for runner in runners:
                runner.close(hurried=hurried)
        if sampler is not None and not recorded and measured.complete:
            reach(sampler, clock, clock.now_ns())
        if not measured.blocks and measured.error is not None:
            raise measured.error
        return measured

    def _is_there(self) -> None:
        """Whether the server is, where frame after frame is not answered.

        Raises:
            LinkError: it is not.
        """
        if self.to is not None:
            asyncio.run(list_models(parse_address(self.to), tls=self.tls))

    def _ask_server(self) -> Server | None:
        if self.to is None:
            return None
        address = parse_address(self.to)
        models = asyncio.run(list_models(address, tls=self.tls))
        manifest = self.bundle.manifest
        mine = [model for model in models if model.name == manifest.name]
        fitting = [model for model in mine if model.codec_fingerprint.hex() == manifest.fingerprint]
        if not fitting:
            has = ", ".join(f"{m.name} (codec {m.codec_fingerprint.hex()})" for m in mine or models) or "none"
            raise ProfileError(
                f"the server at {address} has no {manifest.name} of codec {manifest.fingerprint}; it has {has}: publish "
                "this bundle there (narrowcast serve --bundles)"
            )
        newest = max(fitting, key=lambda model: model.release)
        return Server(address=str(address), release=newest.release, images=newest.images, tls=self.tls is not None)

    def _power(self, probed: Board) -> _Power:
        """The board's power where it can be measured, else its conditions alone."""
        settings = self.settings
        target = settings.target or probed.target
        why = NO_TARGET
        if target is not None:
            sampler = Sampler(target, settings.root, meter=settings.meter, hz=settings.hz)
            try:
                return _Power(sampler, sampler.start(), None)
            except SensorError as error:
                why = next((one.why_not for one in probed.measures if one.what == "power" and one.why_not), str(error))
        if settings.meter is not None:
            raise SensorError(f"--meter {settings.meter}: {why}")
        self.observer.note(f"no energy: {why}")
        sampler = Sampler(None, settings.root, power=False)
        try:
            sampler.start()
        except SensorError:
            return _Power(None, None, why)
        return _Power(sampler, None, why)

    def _plan(self, runners: Sequence[Runner], links: Sequence[Connection], timing: Timing, frames: FrameSet) -> Plan:
        settings, infos = self.settings, [runner.info for runner in runners]
        return Plan(
            ways=list(dict.fromkeys(info.kind for info in infos)), links=[link.name for link in links],
            levels=sorted({info.level for info in infos if info.level is not None}),
            codecs=list(dict.fromkeys(info.codec for info in infos if info.codec is not None)),
            qualities=sorted({info.quality for info in infos if info.quality is not None}),
            loaded_s=timing.loaded_s, windowed_s=timing.windowed_s, idle_s=timing.idle_s, warm_up_s=timing.warm_up_s,
            settle_s=timing.settle_s, rounds=timing.rounds, lead_s=timing.lead_s, window=settings.window,
            seed=timing.seed, deadline_ms=settings.deadline_ms, frames=len(frames), frames_from=frames.source,
        )  # fmt: skip


_REPLAY_S = 60.0


def _outline(runners: Sequence[Runner], timing: Timing) -> Outline:
    infos = [runner.info for runner in runners]
    remote = sum(info.link is not None for info in infos)
    seconds = 2 * timing.idle_s + timing.warm_up_s + timing.settle_s
    seconds += len(infos) * (timing.loaded_s + timing.rounds * timing.lead_s)
    seconds += remote * (timing.windowed_s + timing.windowed_rounds * timing.lead_s)
    return Outline(
        [info.id for info in infos], {info.id: info.title for info in infos}, {info.id: info.link for info in infos},
        seconds, timing.rounds,
    )  # fmt: skip
