"""The server's end of TLS: certificate, key and CAs from files, taken up anew when they change."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from narrowcast.tail.access_files import Watched
from narrowcast.transport.errors import CertificateError, ConfigError
from narrowcast.transport.pki import certificates as pki
from narrowcast.transport.pki.names import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE
from narrowcast.transport.pki.private import MAX_BYTES, read_private

log = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 1.0
WARN_BEFORE = dt.timedelta(days=30)
_WARN_EVERY_SECONDS = 86_400.0


@dataclass(frozen=True)
class ServerFiles:
    """Where a server's TLS files are.

    Attributes:
        certificate: PEM, with its chain.
        key: PEM.
        client_authority: the CAs (PEM) of which one must have issued a client's certificate; None where clients need none.
    """

    certificate: Path
    key: Path
    client_authority: Path | None

    @classmethod
    def of_folder(cls, folder: Path, *, client_authority: Path | None, clients: bool) -> ServerFiles:
        """Those of a folder made by ``narrowcast keys issue --host``.

        Args:
            folder: with ``tls.crt``, ``tls.key``, and usually ``ca.crt``.
            client_authority: instead of the folder's ``ca.crt``.
            clients: whether clients must show certificates.

        Raises:
            ConfigError: they must, and there is no CA.
        """
        authority = (client_authority or folder / AUTHORITY_FILE) if clients else None
        if authority is not None and not authority.exists():
            raise ConfigError(
                f"no {authority}: it says whose clients may come. Put the fleet's CA there (narrowcast keys ca --out DIR), "
                "name it with --client-ca FILE, or let clients come with tokens: --tokens FILE"
            )
        return cls(folder / CERTIFICATE_FILE, folder / KEY_FILE, authority)


class ServerTls:
    """A server's TLS credentials. New connections get what the files say at that time.

    Raises:
        CertificateError: a certificate or CA that is missing, damaged, ended, for something else, or not the key's.
        KeyFileError: a key that is missing, damaged, or readable by others.
    """

    def __init__(self, files: ServerFiles) -> None:
        self._files = files
        paths = [path for path in (files.certificate, files.key, files.client_authority) if path is not None]
        self._ends: dt.datetime = pki.BEGINNING
        self._warned = float("-inf")
        self._watched = Watched(paths, self._read, f"certificate {files.certificate}")
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        self._given = self._watched.value
        self._warn()

    def credentials(self) -> grpc.ServerCredentials:
        """For gRPC."""
        return grpc.dynamic_ssl_server_credentials(
            self._watched.value, self._fetch, require_client_authentication=self._files.client_authority is not None
        )

    def _fetch(self) -> Any:
        """Called by gRPC on its own threads before each handshake: the new configuration, None where it is the old one."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked >= LOOK_EVERY_SECONDS:
                self._looked = now
                self._watched.refresh()
                self._warn()
            if self._given is self._watched.value:
                return None
            self._given = self._watched.value
            return self._given

    def _warn(self) -> None:
        """Tells of an end that is near, once a day."""
        if self._ends - pki.now() < WARN_BEFORE and time.monotonic() - self._warned > _WARN_EVERY_SECONDS:
            self._warned = time.monotonic()
            log.warning(
                "%s ends on %s; issue the next one: it is taken up without a restart",
                self._files.certificate, f"{self._ends:%Y-%m-%d}",
            )  # fmt: skip

    def _read(self) -> Any:
        files = self._files
        chain, key = _read(files.certificate, "certificate"), read_private(files.key, "key")
        certificate = pki.read_certificates(chain, str(files.certificate))[0]
        pki.check_fit(certificate, pki.read_key(key, str(files.key)), str(files.certificate))
        _check_server(certificate, files.certificate)
        self._ends = certificate.not_valid_after_utc
        authority = None
        if files.client_authority is not None:
            authority = _read(files.client_authority, "CA")
            _check_authorities(authority, files.client_authority)
        return grpc.ssl_server_certificate_configuration([(key, chain)], authority)


def _check_server(certificate: pki.Certificate, path: Path) -> None:
    """Whether clients can accept a certificate as a server's.

    Raises:
        CertificateError: they cannot.
    """
    end, now = certificate.not_valid_after_utc, pki.now()
    if end <= now:
        raise CertificateError(f"{path} ended on {end:%Y-%m-%d}; narrowcast keys issue makes a new one")
    if pki.is_authority(certificate):
        raise CertificateError(f"{path} is a CA's certificate, not a server's; narrowcast keys issue NAME --host HOST")
    usage = pki.find_extension(certificate, x509.ExtendedKeyUsage)
    if usage is not None and ExtendedKeyUsageOID.SERVER_AUTH not in usage:
        raise CertificateError(f"{path} is a client's certificate; a server's is issued with --host HOST")
    if not pki.host_names(certificate):
        raise CertificateError(f"{path} names no host, so no client can know it; issue it with --host HOST")


def read_authorities(path: Path) -> Sequence[pki.Certificate]:
    """The CAs of a file.

    Raises:
        CertificateError: it is missing or damaged, or holds something else.
    """
    data = _read(path, "CA")
    _check_authorities(data, path)
    return pki.read_certificates(data, str(path))


def _check_authorities(data: bytes, path: Path) -> None:
    for certificate in pki.read_certificates(data, str(path)):
        if not pki.is_authority(certificate):
            name = certificate.subject.rfc4514_string()[:80]
            raise CertificateError(f"{path} holds {name!a}, which is no CA's certificate")


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES)
    except FileNotFoundError as error:
        raise CertificateError(f"no {what} {path}; narrowcast keys issue NAME --host HOST makes a folder") from error
    except OSError as error:
        raise CertificateError(f"{what} {path} cannot be read: {error.strerror or error}") from error
