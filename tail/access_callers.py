"""Who a caller is: three ways to tell, each with its errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import grpc

from narrowcast.tail.access import Context, host_of
from narrowcast.tail.access_files import Watched
from narrowcast.tail.errors import AccessError
from narrowcast.transport.errors import CertificateError
from narrowcast.transport.pki.revoked import Revoked
from narrowcast.transport.pki.tokens import TokenTable, digest_of

if TYPE_CHECKING:  # servers without TLS need no cryptography
    from narrowcast.transport.pki.certificates import Certificate

_UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
# Certificates that a caller shows, its own included: each may cost some signatures to be checked.
MAX_CHAIN = 8


class Caller(NamedTuple):
    """One that is known.

    Attributes:
        name: by which it is known.
        still: raises AccessError as soon as it is to be served no longer.
    """

    name: str
    still: Callable[[], None]


class Callers(Protocol):
    """Tells who calls."""

    def identify(self, context: Context) -> Caller:
        """Who calls.

        Raises:
            AccessError: nobody that is to be served.
        """

    def refresh(self) -> bool:
        """Looks at the files behind it; whether something changed."""


class ByAddress:
    """Everybody, under the address that they come from."""

    def identify(self, context: Context) -> Caller:
        """See :class:`Callers`."""
        return Caller(host_of(context.peer()), lambda: None)

    def refresh(self) -> bool:
        """See :class:`Callers`."""
        return False


class ByCertificate:
    """Those with a certificate. That it is of the right CA, and in its time, TLS has checked when they connected.

    A connection may outlive the CA that it was made under, so whether one that counts vouches for it is asked for each call.

    Args:
        revoked: the certificates that count no more.
        clock: seconds since 1970.
        authorities: the CAs that count; None: what TLS has accepted once stays accepted, whatever becomes of its CA.
    """

    def __init__(
        self,
        revoked: Watched[dict[int, Revoked]],
        clock: Callable[[], float] = time.time,
        authorities: Watched[Sequence[Certificate]] | None = None,
    ) -> None:
        self._revoked = revoked
        self._clock = clock
        self._authorities = authorities

    def identify(self, context: Context) -> Caller:
        """See :class:`Callers`."""
        from narrowcast.transport.pki import certificates as pki

        shown = list(context.auth_context().get("x509_pem_cert", ()))
        if len(shown) != 1:
            raise AccessError(_UNAUTHENTICATED, "no certificate was shown; narrowcast keys issue NAME makes one")
        try:
            certificate = pki.read_certificates(shown[0], "the certificate")[0]
            name = pki.client_name(certificate)
        except CertificateError as error:
            raise AccessError(_UNAUTHENTICATED, str(error)) from error
        serial, ends = certificate.serial_number, certificate.not_valid_after_utc
        check_issuer = self._issuer_check(name, certificate, _chain(context))

        def still() -> None:
            revoked = self._revoked.value.get(serial)
            if revoked is not None:
                raise AccessError(
                    _UNAUTHENTICATED,
                    f"the certificate of {name} was revoked on {revoked.since}; narrowcast keys issue {name} makes "
                    "a new one",
                )
            if self._clock() >= ends.timestamp():
                raise AccessError(
                    _UNAUTHENTICATED,
                    f"the certificate of {name} ended on {ends:%Y-%m-%d}; narrowcast keys issue {name} makes a new one",
                )
            check_issuer()

        still()
        return Caller(name, still)

    def _issuer_check(self, name: str, certificate: Certificate, chain: Sequence[Certificate]) -> Callable[[], None]:
        """Raises AccessError where none of the CAs that count vouches for a certificate; see :func:`is_vouched_for`."""
        watched = self._authorities
        if watched is None:
            return lambda: None
        known: Sequence[Certificate] | None = None

        def check() -> None:
            nonlocal known
            now = watched.value
            if now is known:
                return
            vouched = is_vouched_for(certificate, chain, now)
            if not vouched and watched.refresh():  # TLS takes up a new CA a moment earlier, perhaps
                now = watched.value
                vouched = is_vouched_for(certificate, chain, now)
            if not vouched:
                raise AccessError(
                    _UNAUTHENTICATED,
                    f"the CA of the certificate of {name} counts here no more; narrowcast keys issue {name} makes a new one",
                )
            known = now

        return check

    def refresh(self) -> bool:
        """See :class:`Callers`."""
        changed = self._authorities is not None and self._authorities.refresh()
        return self._revoked.refresh() or changed


def _chain(context: Context) -> Sequence[Certificate]:
    """The CAs' certificates among those that a caller has shown."""
    from narrowcast.transport.pki import certificates as pki

    shown = b"".join(context.auth_context().get("x509_pem_cert_chain", ()))
    try:
        found = pki.read_certificates(shown, "the chain")[:MAX_CHAIN] if shown else []
        return [one for one in found if pki.is_authority(one)]
    except CertificateError as error:
        raise AccessError(_UNAUTHENTICATED, str(error)) from error


def is_vouched_for(certificate: Certificate, chain: Sequence[Certificate], authorities: Sequence[Certificate]) -> bool:
    """Whether one of the CAs has issued a certificate, or a CA's certificate of the chain that leads to it.

    Args:
        certificate: a client's.
        chain: CAs' certificates that were shown with it, in any order.
        authorities: that count.
    """
    below, others = [certificate], list(chain)
    while below:
        one = below.pop()
        if any(_is_issued_by(one, authority) for authority in authorities):
            return True
        above = [other for other in others if _is_issued_by(one, other)]
        others = [other for other in others if other not in above]  # none twice: a ring ends
        below += above
    return False


def _is_issued_by(certificate: Certificate, authority: Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):  # another name, kind of key, or key
        return False
    return True


class ByToken:
    """Those with a token, over TLS.

    Args:
        tokens: the hashed tokens that count.
    """

    def __init__(self, tokens: Watched[TokenTable]) -> None:
        self._tokens = tokens

    def identify(self, context: Context) -> Caller:
        """See :class:`Callers`."""
        if list(context.auth_context().get("transport_security_type", ())) not in ([b"ssl"], [b"tls"]):
            raise AccessError(_UNAUTHENTICATED, "tokens count over TLS only")
        shown = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        if len(shown) != 1:
            raise AccessError(
                _UNAUTHENTICATED, "no token was shown; narrowcast keys token NAME makes one, --token-file shows it"
            )
        kind, _, token = str(shown[0]).partition(" ")
        if kind.lower() != "bearer" or not token:
            raise AccessError(_UNAUTHENTICATED, "the authorization is no 'Bearer TOKEN'")
        digest = digest_of(token.strip())
        name = self._find(digest)

        def still() -> None:
            self._find(digest)

        return Caller(name, still)

    def _find(self, digest: bytes) -> str:
        name = self._tokens.value.find(digest)
        if name is None:
            raise AccessError(
                _UNAUTHENTICATED,
                "the token is unknown here, or was revoked; narrowcast keys token NAME makes a new one",
            )
        return name

    def refresh(self) -> bool:
        """See :class:`Callers`."""
        return self._tokens.refresh()
