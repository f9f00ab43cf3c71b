"""What goes to a board, as one description: files by hash, the release's id, the job for the board's worker."""

from __future__ import annotations

import getpass
import hashlib
import socket
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from narrowcast.devices.flash.wheelhouse import Wheel
from narrowcast.transport.bundle import Bundle, write_subset
from narrowcast.transport.errors import MissingPartError
from narrowcast.transport.pki.names import AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE
from narrowcast.transport.pki.private import read_private


@dataclass(frozen=True)
class Sent:
    """A file that goes to the board.

    Attributes:
        name: for people.
        data: its bytes.
        path: in the release's folder; empty for wheels.
        secret: nobody but the daemon may read it.
    """

    name: str
    data: bytes
    path: str = ""
    secret: bool = False

    @cached_property
    def sha256(self) -> str:
        """Of its bytes."""
        return hashlib.sha256(self.data).hexdigest()


def head_part(bundle: Bundle, *, whole: bool = False) -> bytes:
    """What a board needs of a bundle, under the same signature; with the uncut network where it is wanted.

    Raises:
        MissingPartError: it is wanted, and not there.
    """
    if whole and not bundle.has("whole"):
        raise MissingPartError(
            f"{bundle.path.name} has no uncut network to bring along: compile it with [export] whole = true"
        )
    with tempfile.TemporaryDirectory(prefix="narrowcast-") as folder:
        path = Path(folder) / "model.ncb"
        write_subset(bundle, "device", path, optional=whole)
        return path.read_bytes()


def tls_files(folder: Path) -> list[Sent]:
    """A board's certificate, key and CA.

    Raises:
        KeyFileError, CertificateError: they are not there, or do not fit.
    """
    from narrowcast.transport.rpc.credentials import ClientTls

    ClientTls.from_folder(folder)
    found = [Sent(f"tls/{AUTHORITY_FILE}", (folder / AUTHORITY_FILE).read_bytes(), f"tls/{AUTHORITY_FILE}", True)]
    if (folder / KEY_FILE).exists():
        found += [
            Sent(f"tls/{CERTIFICATE_FILE}", (folder / CERTIFICATE_FILE).read_bytes(), f"tls/{CERTIFICATE_FILE}", True),
            Sent(f"tls/{KEY_FILE}", read_private(folder / KEY_FILE, "key"), f"tls/{KEY_FILE}", True),
        ]
    return found


def wheel_files(wheels: Sequence[Wheel]) -> list[Sent]:
    """The same for wheels."""
    return [Sent(wheel.path.name, wheel.path.read_bytes()) for wheel in wheels]


def environment_id(wheels: Sequence[Wheel], python: str, *, system_site: bool) -> str:
    """The same for the same wheels on the same Python."""
    words = [python, str(system_site), *sorted(f"{wheel.path.name} {wheel.sha256}" for wheel in wheels)]
    return f"py{python}-{_digest(words)[:12]}"


def release_id(bundle: Bundle, files: Sequence[Sent], environment: str, kept: Mapping[str, str] | None = None) -> str:
    """Model, number and what else is in the release: the same content has the same id.

    Args:
        bundle: that goes out.
        files: of the release's folder.
        environment: its id.
        kept: SHA-256 by path of what is taken over from the release that runs.
    """
    found = dict(kept or {}) | {file.path: file.sha256 for file in files}
    words = [environment, *sorted(f"{path} {sha256}" for path, sha256 in found.items())]
    return f"{bundle.manifest.name}-{bundle.manifest.release}-{_digest(words)[:8]}"


def _digest(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def describe(bundle: Bundle, name: str, environment: str, target: str, user: str) -> dict[str, Any]:
    """``release.json``; the board adds what it found itself."""
    manifest = bundle.manifest
    signer = f"{bundle.signed_by.id} {bundle.signed_by.name}".strip() if bundle.signed_by else ""
    return {
        "id": name, "model": manifest.name, "number": manifest.release, "fingerprint": manifest.fingerprint,
        "created": manifest.created, "signed_by": signer, "env": environment, "target": target,
        "user": user,
    }  # fmt: skip


def flashed_by() -> str:
    """Who flashes, for whoever else wants to."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "somebody"
    return f"{user}@{socket.gethostname()}"
