"""A daemon's settings: one TOML file, frozen and typed (``docs/daemon.md`` has all keys, in a file to copy)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from narrowcast.head.affinity import parse_cpus
from narrowcast.head.daemon.output_config import Output
from narrowcast.head.encoder import ImageCodec
from narrowcast.head.endpoints import parse_endpoints
from narrowcast.head.link import Priority
from narrowcast.head.offload import Offload, Way, check_offload
from narrowcast.head.outage import OnOutage
from narrowcast.head.rate.budget import parse_cap, parse_rate
from narrowcast.head.rate.offload import WayName
from narrowcast.head.sources.raw import RawForm
from narrowcast.head.spool.spool import Overflow, Sync
from narrowcast.head.video.wanted import VideoChoice
from narrowcast.transport.bundle.manifest import Precision
from narrowcast.transport.errors import ConfigError, NarrowcastError
from narrowcast.transport.files import at_home
from narrowcast.transport.packet import STREAM_HEADER_BYTES
from narrowcast.transport.structs import Settings, from_mapping, read_toml

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Positive = Annotated[float, Meta(gt=0, le=1e9)]
Rate = Annotated[float, Meta(gt=0, lt=10_000)]  # as Feed takes it
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Backend = Literal["auto", "onnxruntime", "tensorrt"]


class SpoolConfig(Settings, frozen=True):
    """Where frames wait on disk, in ``STATE/spool/SOURCE``; see :class:`narrowcast.head.spool.Spool`."""

    mib: Count = 256
    hours: Positive | None = None
    overflow: Overflow = "oldest"
    sync: Sync = "interval"


class SourceConfig(Settings, frozen=True):
    """One source of frames, and what becomes of them.

    Attributes:
        name: in results, figures and logs, and of its folder for the spool: letters, digits, ``.``, ``_`` and ``-``.
        uri: what ``narrowcast stream`` takes as SOURCE.
        watch, raw, camera_size, fps, watchdog_seconds: see ``docs/sources.md``.
        queue: captured frames that may wait.
        level, deadline_ms, budget, data_cap, max_packet_bytes, offload, way_joules: see ``docs/rate-control.md``.
        window, priority, way, image_codec, image_quality, tails, on_outage, exit_after_seconds: see ``docs/client.md``.
        video: see ``docs/video.md``.
        spool: with ``on_outage = "spool"``, which has one also where this is left out.
    """

    name: str
    uri: str
    watch: bool = False
    raw: str | None = None
    camera_size: str | None = None
    fps: Rate | None = None
    watchdog_seconds: Positive = 20.0
    queue: Annotated[int, Meta(ge=1, le=64)] = 2
    level: int | Literal["auto"] | None = None
    deadline_ms: Positive | None = None
    budget: str | None = None
    data_cap: str | None = None
    max_packet_bytes: Annotated[int, Meta(gt=STREAM_HEADER_BYTES, le=1_000_000)] | None = None
    window: Annotated[int, Meta(ge=1, le=256)] = 8
    priority: Priority = "normal"
    way: Way = "symbols"
    image_codec: ImageCodec = "jpeg"
    image_quality: Annotated[int, Meta(ge=1, le=100)] = 75
    video: VideoChoice = "auto"
    offload: Offload | None = None
    way_joules: dict[WayName, Positive] | None = None
    tails: list[str] | None = None
    on_outage: OnOutage | None = None
    exit_after_seconds: Positive = 2.0
    spool: SpoolConfig | None = None

    def __post_init__(self) -> None:
        """What single fields cannot say."""
        if _NAME.fullmatch(self.name) is None:
            raise ValueError(f"a source with the name {self.name!r}: up to 64 letters, digits, '.', '_' and '-'")
        if self.spool is not None and self.on_outage != "spool":
            raise ValueError(f'source {self.name!r} has a spool, which wants on_outage = "spool"')
        if self.level != "auto" and self.level is not None and self.level < 0:
            raise ValueError(f'source {self.name!r}: level = {self.level}; it is 0 or more, or "auto"')
        try:
            for parse, text in ((parse_rate, self.budget), (parse_cap, self.data_cap), (RawForm.parse, self.raw)):
                if text is not None:
                    parse(text)
            sent = check_offload(self.offload, self.way, self.way_joules)
        except ConfigError as error:
            raise ValueError(f"source {self.name!r}: {error}") from error
        if sent == "image" and (self.video == "on" or self.level == "auto"):
            what = 'video = "on"' if self.video == "on" else 'level = "auto"'
            raise ValueError(f"source {self.name!r}: {what} is for symbols, and it sends images")

    @property
    def kept(self) -> tuple[Any, ...]:
        """What a running source cannot change: how it is captured, and where its frames wait."""
        captured = (self.uri, self.watch, self.raw, self.camera_size, self.fps, self.watchdog_seconds, self.queue)
        return (*captured, self.on_outage == "spool", self.spool, self.window)


class TlsConfig(Settings, frozen=True):
    """``dir``: of ``narrowcast keys issue``. ``name``: in the server's certificate. ``token_file``: a token to show."""

    dir: str
    name: str | None = None
    token_file: str | None = None


class RuntimeConfig(Settings, frozen=True):
    """What runs the head, and on which processors.

    Attributes:
        backend: ``auto`` takes the best for this board that loads.
        precision: of the head; ``auto`` takes the fastest here, measured once.
        threads: for the head; 0 for the library's choice, or, with ``cpus``, as many as those.
        cpus: processors that the whole daemon may run on, ``2-3`` or ``0,2``; None for all.
    """

    backend: Backend = "auto"
    precision: Precision | Literal["auto"] = "auto"
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    cpus: str | None = None

    def __post_init__(self) -> None:
        """What single fields cannot say."""
        if self.cpus is not None:
            try:
                parse_cpus(self.cpus)
            except ConfigError as error:
                raise ValueError(str(error)) from error


class MetricsConfig(Settings, frozen=True):
    """``listen``: ``127.0.0.1:9464`` or ``unix:PATH``. ``textfile``: for node_exporter, every ``textfile_seconds``."""

    listen: str | None = None
    textfile: str | None = None
    textfile_seconds: Annotated[float, Meta(ge=1, le=3600)] = 15.0


class DaemonConfig(Settings, frozen=True):
    """All of it. Paths are absolute once it is read.

    Attributes:
        bundle: the model. Replaced on disk, it is loaded beside the running one.
        to: the tail servers, ``HOST:PORT``; a list, or with commas between.
        trust: files of public keys; those of the keys folder where none is named.
        state: a folder of its own for spools, undelivered results and used data; ``$STATE_DIRECTORY`` where it is left out.
        sources: at least one.
        outputs: where results go; to stdout where none is named.
        drain_seconds: after SIGTERM, for what is under way.
        check_bundle_seconds: how often the bundle is looked at on disk.
    """

    bundle: str
    to: str | list[str]
    sources: Annotated[list[SourceConfig], Meta(min_length=1, max_length=64)]
    outputs: Annotated[list[Output], Meta(max_length=64)] = []
    trust: list[str] = []
    allow_unsigned: bool = False
    state: str | None = None
    tls: TlsConfig | None = None
    runtime: RuntimeConfig = RuntimeConfig()
    metrics: MetricsConfig = MetricsConfig()
    drain_seconds: Annotated[float, Meta(ge=0, le=600)] = 5.0
    check_bundle_seconds: Annotated[float, Meta(ge=0.1, le=3600)] = 2.0

    def __post_init__(self) -> None:
        """What single fields cannot say."""
        for what, names in (
            ("sources with the name", [source.name for source in self.sources]),
            ("outputs", [output.key for output in self.outputs]),
        ):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"there are two {what} {twice[0]!r}")
        try:
            parse_endpoints(self.to)
        except NarrowcastError as error:
            raise ValueError(f"to: {error}") from error

    @property
    def state_folder(self) -> Path:
        """Where the daemon keeps what is to outlive it.

        Raises:
            ConfigError: nobody says where.
        """
        found = self.state or os.environ.get("STATE_DIRECTORY", "").split(":")[0]
        if not found:
            raise ConfigError(
                "no folder for the daemon's state: state = \"/var/lib/narrowcast\" (systemd's StateDirectory= says it)"
            )
        return Path(found)

    @property
    def run_folder(self) -> Path:
        """For ``status.json``: ``$RUNTIME_DIRECTORY``, which is memory, else the state's."""
        found = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
        return Path(found) if found else self.state_folder

    @property
    def model(self) -> dict[str, Any]:
        """What a model is loaded by."""
        return {name: getattr(self, name) for name in ("bundle", "trust", "allow_unsigned", "runtime")}

    @property
    def ports(self) -> list[int]:
        """Of all servers."""
        return sorted({address.port for address in parse_endpoints(self.to)})

    @property
    def link(self) -> tuple[Any, ...]:
        """What a running client was made with, beside its source's settings."""
        return (self.to, self.tls)


def load_config(path: Path, overrides: Mapping[str, Any] | None = None) -> DaemonConfig:
    """Reads a file.

    Args:
        path: of the file. Relative paths in it are relative to its folder.
        overrides: what flags say, by key: ``to``, ``bundle``, ``runtime.threads``, or ``sources.fps`` for every source.

    Raises:
        ConfigError: it cannot be read, is not TOML, or says what cannot be; names the place.
    """
    mapping = read_toml(path, f"--config {path}")
    for key, value in (overrides or {}).items():
        _override(mapping, key, value)
    return _placed(from_mapping(DaemonConfig, mapping, str(path)), path.absolute().parent)


def _override(mapping: dict[str, Any], key: str, value: Any) -> None:
    table, _, name = key.rpartition(".")
    if not table:
        mapping[name] = value
    elif table == "sources":
        for source in mapping.get("sources", []) if isinstance(mapping.get("sources"), list) else []:
            if isinstance(source, dict):
                source[name] = value
    elif isinstance(mapping.setdefault(table, {}), dict):
        mapping[table][name] = value


def _placed(config: DaemonConfig, folder: Path) -> DaemonConfig:
    """With absolute paths."""

    def at(text: str) -> str:
        return str(folder / at_home(text))

    tls = config.tls and msgspec.structs.replace(
        config.tls, dir=at(config.tls.dir), token_file=config.tls.token_file and at(config.tls.token_file)
    )
    metrics, listen = config.metrics, config.metrics.listen
    if listen is not None and listen.startswith("unix:"):
        listen = f"unix:{at(listen.removeprefix('unix:'))}"
    return msgspec.structs.replace(
        config, bundle=at(config.bundle), trust=[at(one) for one in config.trust],
        state=config.state and at(config.state), tls=tls,
        metrics=msgspec.structs.replace(metrics, listen=listen, textfile=metrics.textfile and at(metrics.textfile)),
        sources=[msgspec.structs.replace(one, uri=_uri_at(one.uri, at)) for one in config.sources],
        outputs=[one.placed(at) for one in config.outputs],
    )  # fmt: skip


def _uri_at(uri: str, at: Any) -> str:
    if uri == "-" or "://" in uri:
        return uri
    if uri.startswith("unix:"):
        return f"unix:{at(uri.removeprefix('unix:'))}"
    return str(at(uri))
