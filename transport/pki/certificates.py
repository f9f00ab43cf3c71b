"""X.509 certificates as narrowcast makes and reads them: ECDSA on P-256, which every TLS library takes (RFC 5280, 8446).

Boards often have no battery for their clock, and wake up in the past. What a board checks (CAs, servers) is therefore valid
from 1970 on; only its end counts. What servers check (clients) begins a day before it was made.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from narrowcast.transport.errors import CertificateError, KeyFileError, MissingDependencyError
from narrowcast.transport.pki.names import NAME_RULE, is_name

try:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as problem:
    raise MissingDependencyError(
        "TLS on a server, and making certificates,", "cryptography", "pip install 'narrowcast[tls]'", problem
    ) from problem

BEGINNING = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
CLIENT_BACKDATE = dt.timedelta(days=1)
MAX_CERTIFICATES = 64

Extension = TypeVar("Extension", bound=x509.ExtensionType)
Key = ec.EllipticCurvePrivateKey
Certificate = x509.Certificate


class Pair(NamedTuple):
    """A certificate and its key."""

    certificate: Certificate
    key: Key


def now() -> dt.datetime:
    """The time, in UTC, without fractions of a second: certificates have none."""
    return dt.datetime.now(dt.timezone.utc).replace(microsecond=0)


def make_root(name: str, days: int) -> Pair:
    """A CA that signs itself. It may have one CA below it, which is how the next one is introduced (:func:`cross_sign`)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    builder = _builder(subject, subject, key, BEGINNING, now() + dt.timedelta(days=days))
    return Pair(_as_authority(builder, key, key, path_length=1).sign(key, hashes.SHA256()), key)


def cross_sign(new: Certificate, old: Pair) -> Certificate:
    """The new CA once more, signed by the old one: who trusts only the old one then accepts what the new one issues."""
    key = new.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise CertificateError("a CA of another kind than narrowcast's cannot be cross-signed; its key is not on P-256")
    end = min(new.not_valid_after_utc, old.certificate.not_valid_after_utc)
    builder = _builder(new.subject, old.certificate.subject, key, BEGINNING, end)
    return _as_authority(builder, key, old.key, path_length=0).sign(old.key, hashes.SHA256())


def make_leaf(name: str, issuer: Pair, days: int, *, hosts: Sequence[str] = ()) -> Pair:
    """A server's certificate where ``hosts`` (DNS names, IP addresses) are given, else a client's.

    The one serves for nothing but servers and the other for nothing but clients (extended key usage). A client's name is
    in the subject's common name, and as a DNS name in the alternative names.

    Raises:
        CertificateError: a name or host that cannot be, or an issuer that has ended.
    """
    if not is_name(name):
        raise CertificateError(f"{name[:80]!r} is no name: {NAME_RULE}")
    start, end = now(), min(now() + dt.timedelta(days=days), issuer.certificate.not_valid_after_utc)
    if end <= start:
        raise CertificateError(f"the CA has ended ({issuer.certificate.not_valid_after_utc:%Y-%m-%d}); make a new one")
    key = ec.generate_private_key(ec.SECP256R1())
    begin = BEGINNING if hosts else start - CLIENT_BACKDATE
    usage = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    names = [_general_name(host) for host in hosts] or [x509.DNSName(name)]
    certificate = (
        _builder(_subject(name), issuer.certificate.subject, key, begin, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
        .sign(issuer.key, hashes.SHA256())
    )
    return Pair(certificate, key)


def read_certificates(data: bytes, what: str) -> list[Certificate]:
    """The certificates in PEM text, one at least.

    Args:
        data: the text; what is not a certificate between them is skipped, as TLS libraries do.
        what: what to call it in errors.

    Raises:
        CertificateError: none, too many, or one that is damaged.
    """
    if not data.strip():
        raise CertificateError(f"{what} is empty; it should hold certificates in PEM")
    if data.count(b"-----BEGIN CERTIFICATE-----") > MAX_CERTIFICATES:
        raise CertificateError(f"{what} holds more than {MAX_CERTIFICATES} certificates")
    try:
        return x509.load_pem_x509_certificates(data)
    except (ValueError, x509.InvalidVersion) as error:
        raise CertificateError(f"{what} holds no certificate in PEM: {error}") from error


def read_key(data: bytes, what: str) -> CertificateIssuerPrivateKeyTypes:
    """The private key in PEM text, without a passphrase.

    Raises:
        KeyFileError: it is none, or has a passphrase.
    """
    try:
        return serialization.load_pem_private_key(data, None)  # type: ignore[return-value]
    except TypeError as error:
        raise KeyFileError(
            f"{what} has a passphrase, which a daemon cannot be asked for: openssl pkey removes it"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{what} holds no private key in PEM: {error}") from error


def check_fit(certificate: Certificate, key: CertificateIssuerPrivateKeyTypes, where: str) -> None:
    """Returns if the key is the certificate's.

    Raises:
        CertificateError: it is another one's.
    """
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    try:
        own = certificate.public_key().public_bytes(*form)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateError(f"{where}: the certificate's public key cannot be read: {error}") from error
    if own != key.public_key().public_bytes(*form):
        raise CertificateError(f"{where}: the key is not the certificate's; were both issued together?")


def client_name(certificate: Certificate) -> str:
    """Who a client's certificate says it is: the common name, else the first DNS name among the alternative names.

    Raises:
        CertificateError: it says nothing, several things, or something that is no name.
    """
    try:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError as error:
        raise CertificateError(f"the certificate's subject cannot be read: {error}") from error
    found = [str(name.value) for name in names if name.value]
    if len(found) > 1:
        raise CertificateError(f"the certificate has {len(found)} common names; one is needed")
    others = None if found else find_extension(certificate, x509.SubjectAlternativeName)
    if others is not None:
        found = others.get_values_for_type(x509.DNSName)[:1]  # an IP address is where somebody is, not who
    if not found:
        raise CertificateError("the certificate carries no name (common name, or DNS name); issue one that does")
    if not is_name(found[0]):
        raise CertificateError(f"the certificate's name {found[0][:80]!a} is no name here: {NAME_RULE}")
    return found[0]


def host_names(certificate: Certificate) -> list[str]:
    """The DNS names and IP addresses that a certificate is for.

    Raises:
        CertificateError: its extensions are damaged.
    """
    names = find_extension(certificate, x509.SubjectAlternativeName)
    return (
        []
        if names is None
        else [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    )


def is_authority(certificate: Certificate) -> bool:
    """Whether a certificate is a CA's.

    Raises:
        CertificateError: its extensions are damaged.
    """
    constraints = find_extension(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def find_extension(certificate: Certificate, kind: type[Extension]) -> Extension | None:
    """An extension of a certificate; None where it has none of that kind.

    Raises:
        CertificateError: its extensions are damaged.
    """
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise CertificateError(f"the certificate's extensions cannot be read: {error}") from error


def certificate_pem(*certificates: Certificate) -> bytes:
    """PEM text."""
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def key_pem(key: Key) -> bytes:
    """PEM text, PKCS #8, without a passphrase."""
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(*form)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    labels = host.removeprefix("*.").split(".")
    sound = all(0 < len(label) < 64 and label.replace("-", "").replace("_", "").isalnum() for label in labels)
    if not sound or not host.isascii() or len(host) > 253:
        raise CertificateError(
            f"--host {host[:80]!r} is neither an IP address nor a host name; leave out port and scheme"
        )
    return x509.DNSName(host)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: Key | ec.EllipticCurvePublicKey,
    start: dt.datetime,
    end: dt.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(_public(key))
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _as_authority(
    builder: x509.CertificateBuilder, key: Key | ec.EllipticCurvePublicKey, issuer_key: Key, *, path_length: int
) -> x509.CertificateBuilder:
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(_public(key)), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )


def _public(key: Key | ec.EllipticCurvePublicKey) -> ec.EllipticCurvePublicKey:
    return key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
