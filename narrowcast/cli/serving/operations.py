"""Figures, a page, traces and log lines of ``narrowcast serve``."""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING

from narrowcast.cli.options import at_least
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.rpc.channels import Address, parse_address

if TYPE_CHECKING:
    from narrowcast.tail.observe import Observers
    from narrowcast.tail.operations.http import HttpServer
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

    Raises:
        ConfigError: a URL that is none, or traces without their libraries.
    """

    def __init__(self, args: argparse.Namespace, observers: Observers, server: TailServer) -> None:
        from narrowcast.tail.operations.logs import EventLog
        from narrowcast.tail.operations.tally import Tally

        self._http_address = None if args.http is None else parse_address(args.http, default_port=HTTP_PORT)
        self._insecure: bool = args.insecure
        self._server = server
        self._http: HttpServer | None = None
        self._traces: Traces | None = None
        self._tally = Tally(server.table)
        observers.add(EventLog())
        if self._http_address is not None:
            observers.add(self._tally)
        if args.otlp is not None:
            self._traces = _traces(args.otlp, args.trace_every, observers, server)

    async def start(self, grpc_address: Address) -> Address | None:
        """Starts HTTP where it is wanted.

        Returns:
            its address, with the real port.

        Raises:
            ListenError: the address cannot, or must not, be listened on.
        """
        if self._http_address is None:
            return None
        from narrowcast.tail.operations.http import HttpServer

        server = self._server
        self._http = HttpServer(
            self._http_address, self._tally, state=lambda: server.state, ready=lambda: server.ready,
            grpc_address=str(grpc_address), insecure=self._insecure,
        )  # fmt: skip
        return await self._http.start()

    async def stop(self) -> None:
        """Ends; hands over the traces that are left."""
        if self._http is not None:
            await self._http.stop()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)


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
