"""Whether a daemon would start: everything is tried that can be without disturbing one that runs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from narrowcast.head.affinity import check_cpus
from narrowcast.head.daemon.clients import check_capture, check_source, policy_of, sends_by_reference, tls_of
from narrowcast.head.daemon.config import DaemonConfig, SourceConfig
from narrowcast.head.daemon.http import check_listen
from narrowcast.head.daemon.model import Backends, Model, load_model
from narrowcast.head.daemon.output_config import LinesOutput, Output, SocketOutput
from narrowcast.head.daemon.outputs import make_sink
from narrowcast.transport.errors import ConfigError, NarrowcastError


class Findings:
    """What was found.

    Attributes:
        facts: what the daemon will do, a line each.
        problems: why it would not start.
    """

    def __init__(self) -> None:
        self.facts: list[str] = []
        self.problems: list[str] = []

    def attempt(self, what: str, work: Callable[[], str]) -> None:
        """Adds what ``work`` says, or why it does not."""
        try:
            self.facts.append(f"{what}: {work()}")
        except (NarrowcastError, OSError) as error:
            said = str(error)
            self.problems.append(said if said.startswith(f"{what}: ") else f"{what}: {said}")


def check(config: DaemonConfig, preferred: Backends) -> Findings:
    """Tries everything.

    Args:
        config: the settings.
        preferred: the board's backends, best first.
    """
    found = Findings()
    models: list[Model] = []

    def loaded() -> str:
        models.append(load_model(config, preferred))
        session, manifest = models[0].session, models[0].manifest
        signed = "unsigned" if session.bundle.signed_by is None else f"signed by {session.bundle.signed_by.id}"
        return f"{manifest.name} release {manifest.release}, {signed}, {session.choice}, checked"

    if config.runtime.cpus is not None:
        found.attempt("processors", lambda: f"{sorted(check_cpus(config.runtime.cpus or ''))}")
    found.attempt("model", loaded)
    found.attempt("servers", lambda: _servers(config))
    for source in config.sources:
        found.attempt(f"source {source.name!r}", lambda source=source: _source(config, source, models))  # type: ignore[misc]
    for output in config.outputs:
        found.attempt("output", lambda output=output: _output(output))  # type: ignore[misc]
    if not config.outputs:
        found.facts.append("output: stdout, since none is named")
    if config.metrics.listen is not None or config.metrics.textfile is not None:
        found.attempt("figures", lambda: _metrics(config))
    found.attempt("state", lambda: _state(config))
    found.facts += _unit()
    return found


def _servers(config: DaemonConfig) -> str:
    tls = tls_of(config)
    names = config.to if isinstance(config.to, str) else ", ".join(config.to)
    return f"{names}, {'not encrypted' if tls is None else f'TLS by {tls.authority.parent}'}"


def _source(config: DaemonConfig, source: SourceConfig, models: list[Model]) -> str:
    note, name = "", check_capture(source)
    if source.uri.startswith("/dev/") and not Path(source.uri).exists():
        note = " (not there now: it is waited for)"
    policy, how = source.on_outage or "as the bundle says", ""
    if models:
        check_source(config, source, models[0])
        policy = policy_of(source, models[0].session)
        how = "; frames by reference to earlier ones" if sends_by_reference(source, models[0].session) else ""
    if source.offload is not None:
        how += f"; offload {source.offload}"
    return f"{name}{note}{how}; while no server answers: {policy}"


def _output(output: Output) -> str:
    sink = make_sink(output)
    if isinstance(output, LinesOutput) and output.path != "-":
        path = Path(output.path)
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ConfigError(f"{path} cannot be written by this user, or its folder is not there")
    if isinstance(output, SocketOutput):
        _folder_for(Path(output.path).parent)
    return sink.name + (", kept on disk until it is delivered" if getattr(output, "durable", False) else "")


def _folder_for(folder: Path) -> None:
    """Returns if a folder is there, or can be made, and files in it.

    Raises:
        ConfigError: they cannot.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder} cannot be written by this user")


def _metrics(config: DaemonConfig) -> str:
    if importlib.util.find_spec("prometheus_client") is None:
        raise ConfigError("metrics want prometheus-client: pip install 'narrowcast[head]'")
    places = []
    if config.metrics.listen is not None:
        check_listen(config.metrics.listen)
        places.append(config.metrics.listen)
    if config.metrics.textfile is not None:
        folder = Path(config.metrics.textfile).parent
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"{folder} is not there, or cannot be written")
        places.append(config.metrics.textfile)
    return ", ".join(places)


def _state(config: DaemonConfig) -> str:
    folder = config.state_folder
    _folder_for(folder)
    return f"{folder}; status.json in {config.run_folder}"


def _unit() -> Iterator[str]:
    notify, usec = os.environ.get("NOTIFY_SOCKET"), os.environ.get("WATCHDOG_USEC", "")
    watchdog = f", watchdog every {int(usec) / 1e6:g} s" if usec.isdigit() else ", no watchdog"
    yield f"systemd: {f'told at {notify}{watchdog}' if notify else 'not there; nothing is told'}"
