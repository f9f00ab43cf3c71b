"""Records to a URL: HTTPS POST of JSON, signed.

The body is ``{"records": [...]}``. ``Narrowcast-Signature: t=SECONDS,v1=HEX`` is the HMAC-SHA256 (RFC 2104), with the shared
secret, of ``SECONDS`` (since 1970 UTC), a full stop and the body, so that a receiver can refuse what is forged or old.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import re
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from narrowcast.transport.errors import ConfigError
from narrowcast.transport.sinks.errors import SinkRejectedError, SinkUnavailableError
from narrowcast.transport.sinks.records import Record

TIMEOUT_S = 10.0
SIGNATURE = "Narrowcast-Signature"
_AGAIN = {408, 425, 429}


class Webhook:
    """A :class:`~narrowcast.transport.sinks.outbox.Sink`.

    Args:
        url: ``https://...``; ``http://`` on this machine only.
        secret: shared with the receiver; empty: bodies are not signed.
        ca: a file of certificates that the receiver's must be signed by, in place of the system's.
        timeout_s: for connecting, and for each read.

    Raises:
        ConfigError: no such URL, or a CA file that cannot be used.
    """

    def __init__(self, url: str, *, secret: bytes = b"", ca: Path | None = None, timeout_s: float = TIMEOUT_S) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{url[:200]!r} is no URL: {error}") from error
        host = parts.hostname
        if parts.scheme not in ("http", "https") or not host or parts.username or parts.password:
            raise ConfigError(f"{_redacted(url)!r} is no webhook: give https://HOST/PATH, without a password in it")
        if parts.scheme == "http" and not _is_loopback(host):
            raise ConfigError(f"results for {host} would not be encrypted; give an https:// URL")
        if re.fullmatch(r"[!-~]*", parts.path + parts.query) is None:
            raise ConfigError(f"{url[:200]!r} has a space or a letter beyond ASCII; write it with %, as %20")
        self.name = f"webhook {parts.scheme}://{host}"
        self._host = _encoded(host)
        # Never None: http.client would look for a port in the host, and finds one in every IPv6 address.
        self._port = port if port is not None else {"http": 80, "https": 443}[parts.scheme]
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._secret, self._timeout_s = secret, timeout_s
        self._tls = _tls(ca) if parts.scheme == "https" else None
        self._connection: http.client.HTTPConnection | None = None

    def deliver(self, records: Sequence[Record]) -> None:
        """See :class:`~narrowcast.transport.sinks.outbox.Sink`."""
        body = msgspec.json.encode({"records": [record.plain() for record in records]})
        headers = {"Content-Type": "application/json", "User-Agent": "narrowcast"}
        if self._secret:
            headers[SIGNATURE] = signature(self._secret, body, int(time.time()))
        try:
            status, retry_after = self._posted(body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise SinkUnavailableError(f"{type(error).__name__}: {error}") from error
        if 200 <= status < 300:
            return
        if status in _AGAIN or status >= 500:
            raise SinkUnavailableError(f"answered {status}", retry_after)
        raise SinkRejectedError(f"answered {status}" + (", and redirects are not followed" if status < 400 else ""))

    def _posted(self, body: bytes, headers: dict[str, str]) -> tuple[int, float | None]:
        """:meth:`_post`, over a connection of its own where the one of before was closed while there was nothing to tell."""
        if self._connection is not None:
            try:
                return self._post(body, headers)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                self.close()
        return self._post(body, headers)

    def _post(self, body: bytes, headers: dict[str, str]) -> tuple[int, float | None]:
        connection = self._connection
        if connection is None:
            if self._tls is not None:
                connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=self._timeout_s, context=self._tls
                )
            else:
                connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
            self._connection = connection
        connection.request("POST", self._path, body, headers)
        response = connection.getresponse()
        rest = response.read(65_536)  # of no interest, but the connection is used again only behind it
        if len(rest) == 65_536 or response.will_close:
            self.close()
        return response.status, _seconds(response.getheader("Retry-After"))

    def close(self) -> None:
        """See :class:`~narrowcast.transport.sinks.outbox.Sink`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def signature(secret: bytes, body: bytes, at_seconds: int) -> str:
    """The header's value."""
    code = hmac.new(secret, b"%d." % at_seconds + body, hashlib.sha256).hexdigest()
    return f"t={at_seconds},v1={code}"


def verify(secret: bytes, body: bytes, header: str, now: float, tolerance_s: float = 300.0) -> bool:
    """Whether ``header`` is ``secret``'s signature of ``body``, made at most ``tolerance_s`` from ``now``: for receivers."""
    fields = dict(field.split("=", 1) for field in header.split(",") if "=" in field)
    at = fields.get("t", "")
    if not (at.isascii() and at.isdigit() and len(at) <= 12) or abs(now - int(at)) > tolerance_s:
        return False
    return hmac.compare_digest(signature(secret, body, int(at)).encode(), header.encode("utf-8", "replace"))


def _seconds(text: str | None) -> float | None:
    """``Retry-After`` in seconds; its other form, a date, is taken for none."""
    return float(text) if text and text.isascii() and text.isdigit() and len(text) < 9 else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _encoded(host: str) -> str:
    """The host as it is looked up: in ASCII. What cannot be is a mistake in the settings, not in the records."""
    try:
        return host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ConfigError(f"{host[:80]!r} is no host's name: {error}") from error


def _redacted(url: str) -> str:
    scheme, _, rest = url[:200].partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}" if rest else url[:200]


def _tls(ca: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca) if ca else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{ca} is no file of CA certificates: {error}") from error
