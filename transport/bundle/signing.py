"""Ed25519 keys and signatures (RFC 8032), by libsodium.

Key files are one line of text: ``narrowcast-ed25519-secret BASE64 NAME`` (mode 0600, never leaves the developer's machine)
and ``narrowcast-ed25519-public BASE64 NAME``.
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nacl.exceptions import BadSignatureError as SodiumBadSignature
from nacl.signing import SigningKey as SodiumSigningKey
from nacl.signing import VerifyKey as SodiumVerifyKey

from narrowcast.transport.errors import BadSignatureError, KeyFileError
from narrowcast.transport.files import replacing
from narrowcast.transport.pki.private import write_private

_SECRET, _PUBLIC = "narrowcast-ed25519-secret", "narrowcast-ed25519-public"
# Signatures of bundles are good for bundles only.
_CONTEXT = b"narrowcast-bundle-v1\n\0\0\0"


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are checked with: 32 bytes and a name for people."""

    raw: bytes
    name: str = ""

    def verify(self, message: bytes, signature: bytes) -> None:
        """Returns if ``signature`` (64 bytes) is this key's signature of the manifest ``message``.

        Raises:
            BadSignatureError: it is not.
        """
        try:
            SodiumVerifyKey(self.raw).verify(_CONTEXT + message, signature)
        except (SodiumBadSignature, ValueError, TypeError) as error:
            raise BadSignatureError(
                "the signature is not one of this manifest: it was changed after signing"
            ) from error

    def write(self, path: str | Path) -> None:
        """Writes the key's file."""
        with replacing(Path(path)) as out:
            out.write(f"{self.line}\n".encode())

    @classmethod
    def read(cls, path: str | Path) -> PublicKey:
        """Reads a file of one key; :func:`read_keys` reads those of several.

        Raises:
            KeyFileError: no file, no public key, or more than one: the others would be dropped without a word.
        """
        keys = read_keys(Path(path))
        if len(keys) > 1:
            raise KeyFileError(f"{path} holds {len(keys)} keys; read_keys reads them all")
        return keys[0]

    @property
    def line(self) -> str:
        """The key as one line of a key file."""
        return f"{_PUBLIC} {base64.b64encode(self.raw).decode()} {self.name}"

    @property
    def id(self) -> str:
        """The key's first 8 bytes in hex, for people."""
        return self.raw[:8].hex()


@dataclass(frozen=True, repr=False)
class SecretKey:
    """A key that signs: its 32-byte seed and a name for people."""

    seed: bytes
    name: str = ""

    @classmethod
    def new(cls, name: str = "") -> SecretKey:
        """A fresh key from the system's randomness."""
        return cls(bytes(SodiumSigningKey.generate()), name)

    @property
    def public(self) -> PublicKey:
        """The key that checks this one's signatures."""
        return PublicKey(bytes(SodiumSigningKey(self.seed).verify_key), self.name)

    def sign(self, message: bytes) -> bytes:
        """64 bytes: the signature of the manifest ``message``."""
        return SodiumSigningKey(self.seed).sign(_CONTEXT + message).signature

    def write(self, path: str | Path) -> None:
        """Writes the key's file, readable by its owner only; an existing file is left alone.

        Raises:
            KeyFileError: the file exists.
            OSError: it cannot be written; nothing is left behind.
        """
        line = f"{_SECRET} {base64.b64encode(self.seed).decode()} {self.name}\n"
        try:
            write_private(Path(path), line.encode())
        except FileExistsError as error:
            raise KeyFileError(f"{path} exists; a signing key is not overwritten") from error

    @classmethod
    def read(cls, path: str | Path) -> SecretKey:
        """Reads a key's file.

        Raises:
            KeyFileError: no file, no secret key, or a file that others can read.
        """
        path = Path(path)
        raw, name = _parse(_lines(path)[0], path, _SECRET)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise KeyFileError(f"{path} can be read by others; chmod 600 {path}")
        return cls(raw, name)


def read_keys(path: str | Path) -> list[PublicKey]:
    """The public keys in a file, a line each: while a signing key is exchanged for the next, both count.

    Raises:
        KeyFileError: no file, no key in it, or a line that is none.
    """
    path = Path(path)
    return [PublicKey(*_parse(line, path, _PUBLIC)) for line in _lines(path)]


def _lines(path: Path) -> list[str]:
    """The file's lines that are not blank; one that says nothing where there is none."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()] or [""]
    except FileNotFoundError as error:
        raise KeyFileError(f"no key file {path}") from error
    except (OSError, ValueError) as error:  # UnicodeDecodeError is one
        raise KeyFileError(f"{path} is no key file: {error}") from error


def _parse(line: str, path: Path, kind: str) -> tuple[bytes, str]:
    words = line.split(maxsplit=2)
    try:
        raw = base64.b64decode(words[1], validate=True)
    except (ValueError, IndexError) as error:  # binascii.Error is a ValueError
        raise KeyFileError(f"{path} is no key file: {error}") from error
    if words[0] != kind or len(raw) != 32:
        raise KeyFileError(f"{path} is no {kind} key; it starts with {words[0][:40]!r}")
    return raw, words[2].strip() if len(words) > 2 else ""


def keys_folder() -> Path:
    """Where keys live: ``$NARROWCAST_KEYS``, else ``narrowcast/keys`` in the user's configuration folder."""
    if folder := os.environ.get("NARROWCAST_KEYS"):
        return Path(folder)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "narrowcast" / "keys"


def trusted_keys(folder: Path | None = None) -> list[PublicKey]:
    """The public keys in ``trusted/`` of the keys' folder.

    Raises:
        KeyFileError: a file there is no key.
    """
    files = sorted(((folder or keys_folder()) / "trusted").glob("*.pub"))
    return [key for path in files for key in read_keys(path)]


def find_key(raw: bytes, trusted: Iterable[PublicKey]) -> PublicKey | None:
    """The trusted key with these bytes."""
    return next((key for key in trusted if key.raw == raw), None)
