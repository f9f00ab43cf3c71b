"""TLS for the operators' HTTP side: clients must show certificates."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from narrowcast.transport.errors import ConfigError

log = logging.getLogger(__name__)

CERTIFICATE, KEY, AUTHORITY = "tls.crt", "tls.key", "ca.crt"


class ServerTls:
    """A TLS context from a folder with ``tls.crt``, ``tls.key`` and ``ca.crt``, which follows its certificate.

    Args:
        folder: where the files are; clients' certificates must be of ``ca.crt``.

    Raises:
        ConfigError: a file is missing, or cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.verify_mode = ssl.CERT_REQUIRED
        for name in (CERTIFICATE, KEY, AUTHORITY):
            if not (folder / name).is_file():
                raise ConfigError(
                    f"no {folder / name}: --http-tls wants a folder with {CERTIFICATE}, {KEY} and {AUTHORITY}"
                )
        try:
            self.context.load_cert_chain(folder / CERTIFICATE, folder / KEY, password=_no_password)
            self.context.load_verify_locations(folder / AUTHORITY)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(f"the files in {folder} cannot be used for TLS: {error}") from error
        self._seen = self._stamps()

    def follow(self) -> None:
        """Takes up a changed certificate and key; what cannot be used is told, and those before stay."""
        stamps = self._stamps()
        if stamps == self._seen or None in stamps:
            return
        self._seen = stamps
        pair = self._folder / CERTIFICATE, self._folder / KEY
        try:
            # Tried elsewhere first: OpenSSL drops the key that it has before it finds that the new pair does not fit.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*pair, password=_no_password)
            self.context.load_cert_chain(*pair, password=_no_password)
        except (OSError, ValueError) as error:
            log.error("HTTP goes on with its certificate; that in %s cannot be used: %s", self._folder, error)

    def _stamps(self) -> tuple[int | None, ...]:
        found: list[int | None] = []
        for name in (CERTIFICATE, KEY):
            try:
                found.append((self._folder / name).stat().st_mtime_ns)
            except OSError:
                found.append(None)
        return tuple(found)


def _no_password() -> str:
    raise ValueError("the key is encrypted, and nobody is there to ask for its password")
