"""Figures, a page, traces and log lines of ``narrowcast serve``."""

from __future__ import annotations

import argparse
import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from narrowcast.cli.options import at_least
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.rpc.channels import Address, parse_address

if TYPE_CHECKING:
    from narrowcast.tail.drift import DriftWatch
    from narrowcast.tail.observe import Observers
    from narrowcast.tail.operations.http import HttpServer
    from narrowcast.tail.operations.tally import Tally
    from narrowcast.tail.operations.traces import Traces
    from narrowcast.tail.server import TailServer

HTTP_PORT = 7480


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    group = parser.add_argument_group("operations")
    group.add_argument(
        "--http", metavar="HOST:PORT",
        help="a page with live figures, /metrics (Prometheus), /healthz, /readyz and /api/status; "
        f"for instance 127.0.0.1:{HTTP_PORT}",
    )  # fmt: skip
    group.add_argument(
        "--http-tls", type=Path, metavar="DIR",
        help="HTTPS, with tls.crt and tls.key of this folder, for clients that show a certificate of its ca.crt",
    )  # fmt: skip
    group.add_argument(
        "--http-tokens", type=Path, metavar="FILE",
        help="operators with a token of this file (narrowcast keys token) may accept drift over HTTP; see docs/drift.md",
    )  # fmt: skip
    group.add_argument("--log", choices=("text", "json"), default="text", help="form of log lines (default: text)")
    group.add_argument(
        "--otlp", metavar="URL", help="send OpenTelemetry traces there, for instance http://127.0.0.1:4317"
    )
    group.add_argument(
        "--trace-every", type=at_least(1), default=100, metavar="N", help="trace one frame of N (default: 100)"
    )


class Operations:
    """What watches one server.

    Args:
        args: the verb's options.
        observers: those that the server was made with.
        server: not started yet.
        drift: watches cameras; None where nobody does.

    Attributes:
        tally: counts, for ``/metrics`` and the page; nobody tells it anything without ``--http``.

    Raises:
        ConfigError: a URL that is none, files that are no good for TLS, or traces without their libraries.
        ListenError: HTTP must not be reached from other machines.
    """

    def __init__(
        self, args: argparse.Namespace, observers: Observers, server: TailServer, drift: DriftWatch | None = None
    ) -> None:
        from narrowcast.tail.operations.logs import EventLog
        from narrowcast.tail.operations.tally import Tally

        for option in ("http_tls", "http_tokens"):
            if getattr(args, option) is not None and args.http is None:
                raise ConfigError(f"--{option.replace('_', '-')} goes with --http HOST:PORT, which is not given")
        if args.http_tokens is not None and drift is None:
            raise ConfigError("--http-tokens is for accepting drift, and --no-drift watches none")
        self._table = server.table
        self._insecure = insecure_warnings(args)
        self.tally = Tally(server.table, None if server.store is None else server.store.status)
        self._http = None if args.http is None else _http(args, self.tally, server, drift)
        self._traces: Traces | None = None
        observers.add(EventLog())
        if self._http is not None:
            observers.add(self.tally)
        if args.otlp is not None:
            self._traces = _traces(args.otlp, args.trace_every, observers, server)

    async def start(self, grpc_address: Address) -> Address | None:
        """Starts HTTP where it is wanted.

        Returns:
            its address, with the real port.

        Raises:
            ListenError: the address cannot be listened on.
        """
        self._table.on_change.append(self._tell_models)
        return None if self._http is None else await self._http.start(str(grpc_address))

    def warn(self) -> None:
        """Says aloud what ``--insecure`` leaves open."""
        from narrowcast.tail.operations.logs import tell

        for warning in self._insecure:
            tell("insecure", logging.WARNING, warning=warning)

    async def stop(self) -> None:
        """Ends; hands over the traces that are left."""
        if self._http is not None:
            await self._http.stop()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)

    def _tell_models(self) -> None:
        """A line whenever other models are served."""
        from narrowcast.tail.operations.logs import tell

        releases = sorted((slot.batcher.model.manifest.release, slot.name) for slot in self._table)
        tell("models", models={name: release for release, name in releases})


def insecure_warnings(args: argparse.Namespace) -> list[str]:
    """What ``--insecure`` leaves open, in words; or that it does nothing."""
    if not args.insecure:
        return []
    found = []
    if args.tls is None:
        found.append("anyone who can reach this port can use it, and the traffic is not encrypted")
    http = None if args.http is None else parse_address(args.http, default_port=HTTP_PORT)
    if http is not None and not http.is_loopback and args.http_tls is None:
        found.append(f"anyone who can reach {http} over HTTP can read names of models and clients")
    return found or ["--insecure changes nothing here, since --tls protects the port; leave it out"]


def _http(args: argparse.Namespace, tally: Tally, server: TailServer, drift: DriftWatch | None) -> HttpServer:
    from narrowcast.tail.operations.http import HttpServer
    from narrowcast.tail.operations.https import ServerTls

    control = None
    if args.http_tokens is not None:
        from narrowcast.tail.access_files import Watched
        from narrowcast.tail.operations.control import Control
        from narrowcast.transport.pki.tokens import read_tokens

        tokens = Watched([args.http_tokens], lambda: read_tokens(args.http_tokens), f"tokens {args.http_tokens}")
        control = Control(tokens, drift)
    return HttpServer(
        parse_address(args.http, default_port=HTTP_PORT), tally, state=lambda: server.state, ready=lambda: server.ready,
        insecure=args.insecure, tls=None if args.http_tls is None else ServerTls(args.http_tls), control=control,
    )  # fmt: skip


def _traces(url: str, every: int, observers: Observers, server: TailServer) -> Traces:
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--otlp {url}: a URL, for instance http://127.0.0.1:4317 (OTLP over gRPC)")
    try:
        from narrowcast.tail.operations.traces import CallerTrace, Traces, otlp_exporter
    except ImportError as error:
        raise ConfigError(f"traces need more libraries ({error}): pip install 'narrowcast[otel]'") from error
    traces = Traces(otlp_exporter(url), every)
    observers.add(traces)
    server.intercept(CallerTrace())
    return traces
