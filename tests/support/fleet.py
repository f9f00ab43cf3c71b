"""A fleet for tests: a CA, a server's folder, boards' folders; and certificates that narrowcast itself would not make."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from narrowcast.transport.pki import certificates as pki
from narrowcast.transport.pki.authority import Authority

HOSTS = ["localhost", "127.0.0.1"]


class Fleet:
    """A CA in a folder, and what it issues beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.create(folder / "ca")

    def server(self, name: str = "tail", hosts: list[str] = HOSTS, out: Path | None = None) -> Path:
        """A server's TLS folder."""
        out = out or self.folder / name
        self.authority.issue(name, out, hosts=hosts)
        return out

    def board(self, name: str = "board-7", out: Path | None = None) -> Path:
        """A board's TLS folder."""
        out = out or self.folder / name
        self.authority.issue(name, out)
        return out

    def odd(self, out: Path, *, issuer: pki.Pair | None = None, **changes) -> Path:
        """A TLS folder with a certificate as :func:`odd_certificate` makes it."""
        out.mkdir()
        pair = odd_certificate(issuer or self.authority.root, **changes)
        write(out, pair, self.authority.bundle)
        return out


def write(folder: Path, pair: pki.Pair, authority: bytes) -> None:
    """The three files."""
    (folder / "tls.crt").write_bytes(pki.certificate_pem(pair.certificate))
    (folder / "tls.key").write_bytes(pki.key_pem(pair.key))
    (folder / "tls.key").chmod(0o600)
    (folder / "ca.crt").write_bytes(authority)


def odd_certificate(
    issuer: pki.Pair,
    *,
    common_names: tuple[str, ...] = ("board-7",),
    dns: tuple[str, ...] = (),
    start: dt.timedelta = dt.timedelta(days=-1),
    end: dt.timedelta = dt.timedelta(days=1),
) -> pki.Pair:
    """Any names, any times; no usage."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in common_names])
    builder = (
        x509.CertificateBuilder()
        .subject_name(names)
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(pki.now() + start)
        .not_valid_after(pki.now() + end)
    )
    if dns:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(name) for name in dns]), critical=False
        )
    return pki.Pair(builder.sign(issuer.key, hashes.SHA256()), key)
