"""The fleet's CA: a folder that issues, rotates and revokes.

::

    ca/authority.pem   0600: the CA's key and certificate; during a rotation also the old CA's certificate, and the new one's
                       signed by the old. One file, so that no power cut leaves a half of it.
    ca/issued.json     what was issued, to whom, until when, and what of it is revoked
    ca/lock            held while one of them is written

**Rotation.** A certificate of the new CA comes with the new CA's own, signed by the old one. Who trusts only the old CA
follows that chain; who has the new CA in its bundle needs it not. So servers and boards can be given new certificates one
by one, in any order, and nobody is cut off. :meth:`Authority.finish` drops the old CA when all have theirs.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from narrowcast.transport.errors import CertificateError
from narrowcast.transport.files import replacing
from narrowcast.transport.pki import certificates as pki
from narrowcast.transport.pki.names import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, REVOKED_FILE
from narrowcast.transport.pki.private import read_private
from narrowcast.transport.pki.revoked import Revoked, write_revoked
from narrowcast.transport.structs import Settings, from_json, nearest, to_json

AUTHORITY_DAYS = 15 * 365
SERVER_DAYS = 2 * 365
CLIENT_DAYS = 5 * 365  # boards are hard to reach; the server can revoke one at any time
_WHEN = "%Y-%m-%dT%H:%M:%SZ"


class Issued(Settings, frozen=True):
    """One certificate that was issued.

    Attributes:
        name: whom it names.
        hosts: what a server's is for; empty for a client's.
        serial: in hex.
        authority: the first 16 hex digits of the SHA-256 of the CA's certificate.
        issued, ends: UTC, ``2026-01-31T12:00:00Z``.
        revoked: when; None if it is not.
    """

    name: str
    hosts: list[str]
    serial: str
    authority: str
    issued: str
    ends: str
    revoked: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether its time is over."""
        return self.ends < pki.now().strftime(_WHEN)


class _Index(Settings, frozen=True):
    certificates: list[Issued] = []


class Authority:
    """A fleet's CA. Use :meth:`create` or :meth:`open`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._load()

    @classmethod
    def create(cls, folder: Path, days: int = AUTHORITY_DAYS) -> Authority:
        """Makes a CA in a folder that has none.

        Raises:
            CertificateError: there is one already.
        """
        with _locked(folder):
            if (folder / "authority.pem").exists():
                raise CertificateError(f"{folder} has a CA already; narrowcast keys rotate makes the next one")
            root = pki.make_root(_title(), days)
            _write_authority(folder, root, [])
        return cls(folder)

    @classmethod
    def ensure(cls, folder: Path, days: int = AUTHORITY_DAYS) -> tuple[Authority, bool]:
        """The CA in a folder, made where there is none; and whether it was made now."""
        with _locked(folder):
            made = not (folder / "authority.pem").exists()
            if made:
                _write_authority(folder, pki.make_root(_title(), days), [])
        return cls(folder), made

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """The CA in a folder.

        Raises:
            CertificateError: there is none, or it is damaged.
            KeyFileError: others can read its key.
        """
        if not (folder / "authority.pem").exists():
            raise CertificateError(f"no CA in {folder}; narrowcast keys ca makes one")
        return cls(folder)

    def _load(self) -> None:
        path = self.folder / "authority.pem"
        data = read_private(path, "CA")
        key, certificates = pki.read_key(data, str(path)), pki.read_certificates(data, str(path))
        if not isinstance(key, ec.EllipticCurvePrivateKey) or len(certificates) not in (1, 3):
            raise CertificateError(f"{path} was not made by narrowcast keys ca")
        pki.check_fit(certificates[0], key, str(path))
        self.root = pki.Pair(certificates[0], key)
        self._older = certificates[1:]  # during a rotation: the old root, and the new one signed by it

    @property
    def id(self) -> str:
        """The first 16 hex digits of the SHA-256 of the CA's certificate, for people."""
        return _id(self.root.certificate)

    @property
    def previous(self) -> pki.Certificate | None:
        """The CA that is being replaced; None unless a rotation is under way."""
        return self._older[0] if self._older else None

    @property
    def bundle(self) -> bytes:
        """What servers and boards trust, PEM: the CA, and during a rotation the one before it as well."""
        return pki.certificate_pem(self.root.certificate, *self._older[:1])

    def issued(self) -> list[Issued]:
        """Everything that was issued, oldest first.

        Raises:
            ConfigError: the list is damaged.
        """
        path = self.folder / "issued.json"
        return from_json(_Index, path.read_bytes(), str(path)).certificates if path.exists() else []

    def issue(self, name: str, out: Path, *, hosts: Sequence[str] = (), days: int | None = None) -> Issued:
        """Makes a key and a certificate, and writes the TLS folder ``out``: ``tls.crt``, ``tls.key`` (0600), ``ca.crt``.

        Args:
            name: of the server or client.
            out: the folder. Files that are there are replaced, key before certificate: a server that looks in between
                finds a pair that does not fit, and goes on with the one it has.
            hosts: DNS names and IP addresses under which clients know it: then it is a server's certificate, and the
                folder gets the revocation list too. Without, it is a client's.
            days: it is valid; the default is two years for servers and five for clients, and never beyond the CA's end.

        Raises:
            CertificateError: a name or host that cannot be, or the CA has ended.
        """
        days = days or (SERVER_DAYS if hosts else CLIENT_DAYS)
        with _locked(self.folder):
            self._load()
            leaf = pki.make_leaf(name, self.root, days, hosts=hosts)
            entry = Issued(
                name=name, hosts=list(hosts), serial=f"{leaf.certificate.serial_number:040x}", authority=self.id,
                issued=pki.now().strftime(_WHEN), ends=leaf.certificate.not_valid_after_utc.strftime(_WHEN),
            )  # fmt: skip
            # Listed first: a certificate that nobody can revoke must not exist.
            self._write_index([*self.issued(), entry])
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(out / KEY_FILE, mode=0o600) as file:
            file.write(pki.key_pem(leaf.key))
        with replacing(out / CERTIFICATE_FILE) as file:
            file.write(pki.certificate_pem(leaf.certificate, *self._older[1:]))
        self.export(out, revoked=bool(hosts))
        return entry

    def export(self, out: Path, *, revoked: bool = True) -> None:
        """Writes what is public, ``ca.crt`` and ``revoked.txt``, into a TLS folder."""
        with replacing(out / AUTHORITY_FILE) as file:
            file.write(self.bundle)
        if revoked:
            with replacing(out / REVOKED_FILE) as file:
                file.write(self.revocation_list())

    def revoke(self, name: str, serial: str | None = None) -> list[Issued]:
        """Revokes everything that was issued to ``name`` and has not ended.

        Args:
            name: whose.
            serial: of one certificate, in hexadecimal: that one alone, as where it has a successor already.

        Returns:
            what was revoked now; empty where all of it was already.

        Raises:
            CertificateError: nothing that counts was issued to that name.
        """
        with _locked(self.folder):
            entries = self.issued()
            live = [entry for entry in entries if entry.name == name and not entry.has_ended]
            if not live:
                names = sorted({entry.name for entry in entries if not entry.has_ended})
                known = nearest(name, names) if names else "; nothing was issued yet"
                raise CertificateError(f"no certificate that counts was issued to {name[:80]!r}{known}")
            if serial is not None:
                live = [entry for entry in live if entry.serial.lstrip("0") == serial.strip().lower().lstrip("0")]
                if not live:
                    raise CertificateError(
                        f"{name} has no certificate with the serial {serial[:80]!r} that counts; see narrowcast keys show"
                    )
            when = pki.now().strftime(_WHEN)
            marked = {e.serial: msgspec.structs.replace(e, revoked=when) for e in live if e.revoked is None}
            self._write_index([marked.get(entry.serial, entry) for entry in entries])
        return list(marked.values())

    def revocation_list(self) -> bytes:
        """The revoked certificates that have not ended, as servers read them."""
        return write_revoked(
            Revoked(int(entry.serial, 16), entry.name, entry.revoked)
            for entry in self.issued()
            if entry.revoked is not None and not entry.has_ended
        )

    def rotate(self, days: int = AUTHORITY_DAYS) -> None:
        """Makes the next CA; the old one's certificates go on counting until :meth:`finish`. The old key is gone then.

        Raises:
            CertificateError: a rotation is under way.
        """
        with _locked(self.folder):
            self._load()
            if self._older:
                raise CertificateError(
                    "a rotation is under way; issue anew what is left of the old CA (narrowcast keys show), then "
                    "narrowcast keys rotate --finish"
                )
            new = pki.make_root(_title(), days)
            cross = pki.cross_sign(new.certificate, self.root)
            _write_authority(self.folder, new, [self.root.certificate, cross])
            self._load()

    def finish(self) -> list[Issued]:
        """Drops the old CA.

        Returns:
            what it had issued and still counted: refused as soon as servers and boards have the new ``ca.crt``.

        Raises:
            CertificateError: no rotation is under way.
        """
        with _locked(self.folder):
            self._load()
            if not self._older:
                raise CertificateError("no rotation is under way; narrowcast keys rotate begins one")
            left = self.left_behind()
            _write_authority(self.folder, self.root, [])
            self._load()
        return left

    def left_behind(self) -> list[Issued]:
        """What still counts, is of another CA than the present one, and has no successor."""
        counting = [entry for entry in self.issued() if not entry.has_ended and entry.revoked is None]
        renewed = {(entry.name, bool(entry.hosts)) for entry in counting if entry.authority == self.id}
        return [e for e in counting if e.authority != self.id and (e.name, bool(e.hosts)) not in renewed]

    def _write_index(self, entries: list[Issued]) -> None:
        with replacing(self.folder / "issued.json", mode=0o600) as file:
            file.write(to_json(_Index(certificates=entries), indent=1))


def _write_authority(folder: Path, root: pki.Pair, older: Sequence[pki.Certificate]) -> None:
    with replacing(folder / "authority.pem", mode=0o600) as file:
        file.write(pki.key_pem(root.key) + pki.certificate_pem(root.certificate, *older))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two commands at once write one after the other."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = os.open(folder / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _title() -> str:
    """Tells CAs of a fleet apart: verifiers find an issuer by its name first."""
    return f"narrowcast fleet CA {dt.datetime.now(dt.timezone.utc):%Y-%m-%d} {os.urandom(4).hex()}"


def _id(certificate: pki.Certificate) -> str:
    from cryptography.hazmat.primitives import hashes

    return certificate.fingerprint(hashes.SHA256()).hex()[:16]
