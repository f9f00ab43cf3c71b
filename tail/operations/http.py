"""The operators' HTTP side: ``/metrics``, ``/healthz``, ``/readyz``, ``/api/status`` and a page.

It takes requests without a body, with small headers, over few connections, each for a short time. Nothing can be changed
through it, but for what operators change with a token (:mod:`narrowcast.tail.operations.control`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from narrowcast.tail.access import check_listen
from narrowcast.tail.errors import ListenError
from narrowcast.tail.operations.control import ACCEPT_PATH, Control
from narrowcast.tail.operations.history import STEP_SECONDS, History
from narrowcast.tail.operations.https import ServerTls
from narrowcast.tail.operations.prometheus import exposition
from narrowcast.tail.operations.status import status
from narrowcast.tail.operations.tally import Tally
from narrowcast.transport.rpc.channels import Address

MAX_CONNECTIONS = 128
IDLE_SECONDS = 10.0  # for a request's headers to arrive, and between requests
WRITE_SECONDS = 10.0  # for a client to take an answer
_FILES = Path(__file__).with_name("web")
_PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "narrowcast",
}
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpServer:
    """Serves one tally. Must be made and used on one event loop.

    Args:
        listen: the address; port 0 takes a free one.
        tally: the figures.
        state: the server's state: ``starting``, ``serving``, ``draining`` or ``ended``.
        ready: whether it would answer a frame now.
        insecure: listen beyond this machine although anyone who reaches the port can read the figures.
        tls: speaks HTTPS with it, to clients that show certificates.
        control: what operators may change; None: nothing.

    Raises:
        ListenError: beyond this machine, neither ``insecure`` nor with TLS.
    """

    def __init__(
        self,
        listen: Address,
        tally: Tally,
        *,
        state: Callable[[], str],
        ready: Callable[[], bool],
        insecure: bool = False,
        tls: ServerTls | None = None,
        control: Control | None = None,
    ) -> None:
        check_listen(
            listen, encrypted=tls is not None, authenticates=tls is not None, insecure=insecure, what="--http",
            tls="--http-tls",
        )  # fmt: skip
        if control is not None and tls is None and not listen.is_loopback:
            raise ListenError(
                f"operators' tokens would go to {listen} unencrypted; --http-tokens needs --http-tls, or --http on this "
                "machine only"
            )
        self._listen = listen
        self._control = control
        self._tls = tls
        self._tally = tally
        self._history = History(tally)
        self._state, self._ready, self._grpc_address = state, ready, ""
        self._scraping = asyncio.Lock()
        self._started = time.monotonic()
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._ticking: asyncio.Task[None] | None = None

    async def start(self, grpc_address: str) -> Address:
        """Starts serving.

        Args:
            grpc_address: told on the page.

        Returns:
            the address, with the real port.

        Raises:
            ListenError: the address cannot be listened on.
        """
        self._grpc_address = grpc_address
        app = web.Application(middlewares=[self._guard], client_max_size=1)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/api/status", self._status)
        if self._control is not None:
            app.router.add_post(ACCEPT_PATH, self._control.accept)
        for path in _PAGE:
            app.router.add_get(path, self._file)
        self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=IDLE_SECONDS, lingering_time=0, max_line_size=2048, max_headers=64,
            max_field_size=4096, handle_signals=False, logger=_logger(),
        )  # fmt: skip
        await self._runner.setup()
        self._ticking = asyncio.create_task(self._tick())
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                self._connection, self._listen.host, self._listen.port, ssl=self._tls.context if self._tls else None,
                ssl_handshake_timeout=IDLE_SECONDS if self._tls else None,
            )  # fmt: skip
        except OSError as error:
            await self.stop()
            raise ListenError(
                f"cannot listen for HTTP on {self._listen}: {error.strerror or error}; choose another with --http HOST:PORT"
            ) from error
        return Address(self._listen.host, self._listener.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Ends at once."""
        if self._listener is not None:
            self._listener.close()
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        if self._runner is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._runner.cleanup(), 1.0)

    def _connection(self) -> asyncio.BaseProtocol:
        assert self._runner is not None
        server = self._runner.server
        assert server is not None
        return _Turned() if len(server.connections) >= MAX_CONNECTIONS else server()

    async def _tick(self) -> None:
        while True:
            self._history.tick()
            if self._tls is not None:
                self._tls.follow()
            if self._control is not None:
                self._control.follow()
            await asyncio.sleep(STEP_SECONDS)

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Answers by the handler, with the headers, within the time that a client has to take it."""
        try:
            if request.body_exists:
                raise web.HTTPRequestEntityTooLarge(0, 1, text="requests have no body here\n")
            if self._listen.is_loopback and not _is_local(request.host):
                raise web.HTTPForbidden(text=f"ask for {self._listen.host} by its address, or as localhost\n")
            response = await handler(request)
        except web.HTTPException as error:
            response = web.Response(status=error.status, text=error.text, headers=_allow(error))
            if error.status == 413:
                response.force_close()
        response.headers.update(_HEADERS)
        try:
            await asyncio.wait_for(_send(request, response), WRITE_SECONDS)
        except asyncio.TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _healthz(self, request: web.Request) -> web.Response:
        """The process lives, and its event loop turns."""
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        """Whether frames are answered now."""
        ready = self._ready()
        return web.Response(text="ready\n" if ready else f"not ready: {self._state()}\n", status=200 if ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        accept = request.headers.get("Accept", "")
        async with self._scraping:  # one at a time: it takes milliseconds of a core
            body, content_type = await asyncio.to_thread(exposition, self._tally.figures(), accept)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _status(self, request: web.Request) -> web.Response:
        uptime = time.monotonic() - self._started
        found = status(self._tally, self._history, self._state(), self._grpc_address, uptime)
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")

    async def _file(self, request: web.Request) -> web.Response:
        name, content_type = _PAGE[request.path]
        return web.Response(text=(_FILES / name).read_text("utf-8"), content_type=content_type, charset="utf-8")


def _logger() -> logging.Logger:
    """For the library, which writes a traceback for each request that is none and each client that leaves early."""
    logger = logging.getLogger(f"{__name__}.requests")
    if not logger.filters:
        logger.addFilter(_is_ours)
    return logger


def _is_ours(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, (HttpProcessingError, ConnectionError))


class _Turned(asyncio.Protocol):
    """Ends a connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


async def _send(request: web.Request, response: web.StreamResponse) -> None:
    await response.prepare(request)
    await response.write_eof()


def _allow(error: web.HTTPException) -> dict[str, str]:
    if error.status == 401:
        return {"WWW-Authenticate": "Bearer"}
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}


def _is_local(host: str) -> bool:
    """Whether a ``Host`` header names an address or localhost.

    A page of another origin whose name was pointed at this machine (DNS rebinding) sends that name.
    """
    name = host.rpartition(":")[0] if ":" in host and not host.endswith("]") else host
    if name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
