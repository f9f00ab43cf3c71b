"""A very small HTTP server for figures: GET of a few pages, on loopback or a Unix socket, and nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from narrowcast.head.daemon.unix import listen_unix
from narrowcast.head.errors import ListenError
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.rpc.channels import parse_address

log = logging.getLogger(__name__)
DEFAULT_PORT = 9464
MAX_REQUEST_BYTES = 8192
MAX_CONNECTIONS = 16
SECONDS = 5.0


class Page(NamedTuple):
    """An answer."""

    status: str
    content_type: str
    body: bytes


Pages = Mapping[str, Callable[[], Page]]
_PLAIN = "text/plain; charset=utf-8"


def check_listen(where: str) -> None:
    """Returns if figures may be listened for there.

    Raises:
        ConfigError: it is beyond this machine: there is no encryption here.
        AddressError: it is none.
    """
    if where.startswith("unix:"):
        return
    if not parse_address(where, default_port=DEFAULT_PORT).is_loopback:
        raise ConfigError(
            f"metrics.listen = {where!r} can be reached from other machines: give 127.0.0.1:{DEFAULT_PORT} or unix:PATH"
        )


class HttpServer:
    """Serves pages; each connection is one request.

    Args:
        where: ``HOST:PORT`` of this machine, or ``unix:PATH``.
        pages: by path; made on the loop when they are asked for.

    Raises:
        ConfigError, AddressError: see :func:`check_listen`.
    """

    def __init__(self, where: str, pages: Pages) -> None:
        check_listen(where)
        self.where = where
        self._pages = pages
        self._open = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens.

        Raises:
            ListenError: it cannot.
        """
        limit = MAX_REQUEST_BYTES
        if self.where.startswith("unix:"):
            listening = listen_unix(Path(self.where.removeprefix("unix:")), 0o660)
            self._server = await asyncio.start_unix_server(self._serve, sock=listening, limit=limit)
            return
        address = parse_address(self.where, default_port=DEFAULT_PORT)
        try:
            self._server = await asyncio.start_server(self._serve, address.host, address.port, limit=limit)
        except OSError as error:
            raise ListenError(f"cannot listen on {address} for metrics: {error.strerror or error}") from error
        self.where = f"{address.host}:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS:
                await asyncio.wait_for(self._answer(reader, writer), SECONDS)
        except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()  # whoever asks like this, or does not read, gets nothing
        finally:
            self._open -= 1
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            page = Page("400 Bad Request", _PLAIN, b"not HTTP/1\n")
        elif words[0] not in ("GET", "HEAD"):
            page = Page("405 Method Not Allowed", _PLAIN, b"GET only\n")
        elif (make := self._pages.get(words[1].partition("?")[0])) is None:
            page = Page("404 Not Found", _PLAIN, "".join(f"{path}\n" for path in self._pages).encode())
        else:
            page = self._made(make)
        fields = f"HTTP/1.1 {page.status}\r\nContent-Type: {page.content_type}\r\nContent-Length: {len(page.body)}\r\n"
        writer.write(f"{fields}Connection: close\r\n\r\n".encode() + (b"" if words[0] == "HEAD" else page.body))
        await writer.drain()

    def _made(self, make: Callable[[], Page]) -> Page:
        try:
            return make()
        except Exception:
            log.exception("a page of %s cannot be made", self.where)
            return Page("500 Internal Server Error", _PLAIN, b"see the log\n")

    async def stop(self) -> None:
        """Ends it."""
        if self._server is not None:
            self._server.close()
            if self.where.startswith("unix:"):
                Path(self.where.removeprefix("unix:")).unlink(missing_ok=True)
