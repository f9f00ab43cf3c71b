"""How a client shows who it is, and knows its server: TLS certificates and tokens, from files.

Needs no library but gRPC: the PEM files go to it as they are. What is wrong with them is found by the standard library's
``ssl``, whose messages are clearer than those of gRPC's core.
"""

from __future__ import annotations

import os
import re
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from narrowcast.transport.errors import CertificateError, ConfigError, KeyFileError, TokenError, TransportError
from narrowcast.transport.pki.names import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE
from narrowcast.transport.pki.private import MAX_BYTES, read_private
from narrowcast.transport.pki.tokens import check_token, read_token
from narrowcast.transport.rpc.channels import Address

TOKEN_VARIABLE = "NARROWCAST_TOKEN"  # noqa: S105  (its name, not its value)
# A clock before this has not been set: certificates and this file are younger.
_SANE_CLOCK = 1_700_000_000  # November 2023


@dataclass(frozen=True)
class ClientTls:
    """What a client knows its server by, and is known by.

    The files are read anew for every connection, so that renewed ones count without a restart.

    Attributes:
        authority: the file of CAs (PEM) of which one must have issued the server's certificate.
        certificate, key: the client's own (PEM), both or neither.
        token_file: its token, alternatively or as well.
        token: the token itself; goes before ``token_file``.
        server_name: the name in the server's certificate, where the server is reached under another one.
    """

    authority: Path
    certificate: Path | None = None
    key: Path | None = None
    token_file: Path | None = None
    token: str | None = None
    server_name: str | None = None

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        token_file: str | Path | None = None,
        token: str | None = None,
        server_name: str | None = None,
    ) -> ClientTls:
        """From a folder as ``narrowcast keys issue`` makes it: ``ca.crt``, and ``tls.crt`` with ``tls.key``.

        Without ``token`` and ``token_file``, the variable ``NARROWCAST_TOKEN`` counts.

        Raises:
            CertificateError, KeyFileError, TokenError: see :meth:`check`.
        """
        folder = Path(folder)
        own = (folder / CERTIFICATE_FILE, folder / KEY_FILE)
        has_own = any(path.exists() for path in own)
        if token is None and token_file is None:
            token = os.environ.get(TOKEN_VARIABLE) or None
        made = cls(
            folder / AUTHORITY_FILE, own[0] if has_own else None, own[1] if has_own else None,
            Path(token_file) if token_file else None, token, server_name,
        )  # fmt: skip
        made.check()
        return made

    def check(self) -> None:
        """Returns if the files are there, and fit each other.

        Raises:
            CertificateError: a certificate or CA that is missing, none, or another key's.
            KeyFileError: a key that is missing, none, or readable by others.
            TokenError: a token that is none.
        """
        self.credentials()

    def credentials(self) -> grpc.ChannelCredentials:
        """For gRPC. Raises what :meth:`check` does."""
        authority = _read(self.authority, "CA")
        _check_pem(authority, self.authority, "CA certificate")
        key = certificate = None
        if self.certificate is not None and self.key is not None:
            certificate, key = _read(self.certificate, "certificate"), read_private(self.key, "key")
            _check_pem(certificate, self.certificate, "certificate")
            self._context(self.certificate, self.key)
        elif self.certificate is not None or self.key is not None:
            raise ConfigError("a certificate goes with its key, and a key with its certificate")
        secured = grpc.ssl_channel_credentials(authority, key, certificate)
        token = self._token()
        if token is None:
            return secured
        return grpc.composite_channel_credentials(secured, grpc.access_token_call_credentials(token))

    @property
    def options(self) -> list[tuple[str, int | str]]:
        """Of the channel, beside the credentials."""
        return [] if self.server_name is None else [("grpc.ssl_target_name_override", self.server_name)]

    def explain(self, address: Address, name: str, details: str) -> str | None:
        """What is wrong and what to do, in a line, where a connection failed for its certificates.

        Args:
            address: of the server.
            name: its host, as the user gave it.
            details: gRPC's.

        Returns:
            None where it failed for something else.
        """
        if "CERTIFICATE_VERIFY_FAILED" in details:
            return self._not_verified(address, details.rpartition("CERTIFICATE_VERIFY_FAILED:")[2])
        if "Hostname Verification" in details:
            shown = self.server_name or name
            return (
                f"the server's certificate is not for {shown}; issue it with --host {shown}, or say --tls-name NAME "
                "if the server goes by another name"
            )
        if "create security handshaker" in details:
            return f"{self.certificate} and its key do not serve for TLS: is it a CA's? narrowcast keys issue makes one"
        if "WRONG_VERSION_NUMBER" in details:
            return f"{address} does not speak TLS; serve with --tls DIR"
        if "Socket closed" in details or "handshake" in details.lower():
            return self._not_admitted()
        return None

    def _not_verified(self, address: Address, reason: str) -> str:
        if "not yet valid" in reason or "expired" in reason:
            clock = _clock()
            if time.time() < _SANE_CLOCK:
                return f"the clock says {clock}, at which no certificate counts; set it (NTP), or wait until it is set"
            what = "is not valid yet" if "not yet valid" in reason else "has expired"
            return (
                f"the server's certificate {what} (the clock here says {clock}); if the clock is right, renew the "
                "certificate: narrowcast keys issue"
            )
        if "unable to get" in reason or "self" in reason:
            return (
                f"{address} shows a certificate of another CA than those in {self.authority}: it is another server, "
                "somebody in between, or a server with a new CA (then: narrowcast keys ca --out, and copy ca.crt)"
            )
        return f"the server's certificate is not accepted: {reason.removesuffix(': OK').strip()}"

    def _not_admitted(self) -> str | None:
        """Why a server may end a handshake that is fine from here: TLS 1.3 tells the client nothing."""
        if self.certificate is None:
            return (
                "the server ended the connection while it was being secured: it wants a certificate (narrowcast keys "
                f"issue NAME), and {self.authority.parent} has none"
            )
        return (
            "the server ended the connection while it was being secured, as it does with a certificate that it does "
            f"not accept: {self._own_trouble() or 'it is of a CA that the server does not trust, or the server is ending'}"
        )

    def _own_trouble(self) -> str | None:
        """What a server that trusts our CA finds wrong with our certificate: a handshake with ourselves, in memory."""
        assert self.certificate is not None
        assert self.key is not None
        try:
            server = self._context(self.certificate, self.key, ssl.PROTOCOL_TLS_SERVER)
            server.load_verify_locations(cadata=_pem(_read(self.authority, "CA")))
            server.verify_mode = ssl.CERT_REQUIRED
            reason = _handshake(server, self._context(self.certificate, self.key))
        except (TransportError, OSError, ValueError) as error:  # the files are being replaced just now
            return str(error)
        if reason is None:
            return None
        if "expired" in reason or "not yet valid" in reason:
            clock = _clock()
            what = "has expired" if "expired" in reason else "is not valid yet"
            return f"{self.certificate} {what} (by the clock here, {clock}); narrowcast keys issue makes another one"
        if "unable to get" in reason or "self" in reason:
            return (
                f"{self.certificate} is of another CA than those in {self.authority}; narrowcast keys issue makes one"
            )
        if "purpose" in reason:
            return f"{self.certificate} is a server's certificate; issue one without --host"
        return f"{self.certificate}: {reason}"

    @staticmethod
    def _context(certificate: Path, key: Path, protocol: ssl._SSLMethod = ssl.PROTOCOL_TLS_CLIENT) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        if protocol == ssl.PROTOCOL_TLS_CLIENT:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it verifies nothing: it is ourselves
        try:
            context.load_cert_chain(certificate, key, password=lambda: b"")  # none is asked for at a terminal
        except ssl.SSLError as error:
            if "key values mismatch" in str(error).lower():
                raise CertificateError(f"{key} is not the key of {certificate}; were both issued together?") from error
            raise KeyFileError(
                f"{key} holds no private key in PEM, or one with a passphrase ({error.reason})"
            ) from error
        except OSError as error:  # gone since it was read
            raise CertificateError(f"{certificate} or {key} cannot be read: {error.strerror or error}") from error
        return context

    def _token(self) -> str | None:
        if self.token is not None:
            return check_token(self.token.strip(), "the token given")
        return None if self.token_file is None else read_token(self.token_file)


def client_tls(
    tls: str | Path | ClientTls | None, *, token_file: str | Path | None = None, server_name: str | None = None
) -> ClientTls | None:
    """What the options of a client say.

    Raises:
        ConfigError: a token without TLS: whoever is on the link could take it.
        CertificateError, KeyFileError, TokenError: see :meth:`ClientTls.check`.
    """
    if isinstance(tls, ClientTls):
        tls.check()
        return tls
    if tls is not None:
        return ClientTls.from_folder(tls, token_file=token_file, server_name=server_name)
    if token_file is not None:
        raise TokenError("a token is sent over TLS only; name the folder with the server's ca.crt: --tls DIR")
    if server_name is not None:
        raise ConfigError("--tls-name is the name in a certificate; it goes with --tls DIR")
    return None


def open_channel(
    address: Address, tls: ClientTls | None = None, options: Sequence[tuple[str, int | str]] = ()
) -> grpc.aio.Channel:
    """A channel to a server, encrypted where there is ``tls``. Raises what :meth:`ClientTls.check` does."""
    if tls is None:
        return grpc.aio.insecure_channel(str(address), options=list(options))
    return grpc.aio.secure_channel(str(address), tls.credentials(), options=[*options, *tls.options])


def explain(address: Address, name: str, tls: ClientTls | None, details: str) -> str | None:
    """See :meth:`ClientTls.explain`; and what a client without TLS gets from a server that wants it."""
    if tls is not None:
        return tls.explain(address, name, details)
    if re.search(r"Socket closed|Connection reset|frame size|HTTP/2|http2", details):
        return f"{address} may be a server that wants TLS: --tls DIR"
    return None


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> str | None:
    """A TLS handshake in memory; why the server refuses the client, or None."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)]
    open_ends = list(ends)
    for _ in range(8):  # TLS 1.2 needs four turns, TLS 1.3 fewer
        for end in list(open_ends):
            try:
                end.do_handshake()
                open_ends.remove(end)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
            except ssl.SSLError as error:
                return error.reason or str(error)
    return None


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise CertificateError(f"no {what} {path}; narrowcast keys issue makes a folder with all of it") from error
    except OSError as error:
        raise CertificateError(f"{what} {path} cannot be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES or b"-----BEGIN" not in data:
        raise CertificateError(f"{path} holds no {what} in PEM")
    return data


def _pem(data: bytes) -> str:
    """As Python's TLS takes it: comments between certificates may be in any script, what counts is ASCII."""
    return data.decode("ascii", "ignore")


def _check_pem(data: bytes, path: Path, what: str) -> None:
    """Returns if there are certificates in PEM text.

    Raises:
        CertificateError: there are none, or a damaged one.
    """
    try:
        ssl.create_default_context(cadata=_pem(data))
    except (ssl.SSLError, ValueError) as error:
        reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else error
        raise CertificateError(f"{path} holds no {what} in PEM, or a damaged one ({reason})") from error


def _clock() -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(time.time()))
