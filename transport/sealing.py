"""Sealed boxes: whoever has the public key can seal, only the holder of the secret key can open.

They are libsodium's ``crypto_box_seal``: X25519, XSalsa20-Poly1305, an ephemeral sender.

Key files are one line of text: ``narrowcast-x25519-secret BASE64 NAME`` (mode 0600) and ``narrowcast-x25519-public BASE64
NAME``.
"""

from __future__ import annotations

import base64
import stat
from dataclasses import dataclass
from pathlib import Path

from nacl.exceptions import CryptoError
from nacl.public import PrivateKey as SodiumPrivateKey
from nacl.public import PublicKey as SodiumPublicKey
from nacl.public import SealedBox

from narrowcast.transport.errors import KeyFileError, SealError
from narrowcast.transport.files import replacing
from narrowcast.transport.pki.private import write_private

_SECRET, _PUBLIC = "narrowcast-x25519-secret", "narrowcast-x25519-public"


@dataclass(frozen=True)
class SealingKey:
    """A key that seals: 32 bytes and a name for people."""

    raw: bytes
    name: str = ""

    @property
    def id(self) -> str:
        """The key's first 8 bytes in hex, for people."""
        return self.raw[:8].hex()

    def seal(self, data: bytes) -> bytes:
        """``data``, readable by the holder of the secret key alone; 48 bytes longer."""
        return SealedBox(SodiumPublicKey(self.raw)).encrypt(data)

    def write(self, path: Path) -> None:
        """Writes the key's file."""
        with replacing(path) as out:
            out.write(f"{_PUBLIC} {base64.b64encode(self.raw).decode()} {self.name}\n".encode())

    @classmethod
    def read(cls, path: Path) -> SealingKey:
        """Reads a key's file.

        Raises:
            KeyFileError: no file, or no public key for sealing.
        """
        return cls(*_read(path, _PUBLIC))


@dataclass(frozen=True, repr=False)
class OpeningKey:
    """A key that opens what its public half sealed: 32 bytes and a name for people."""

    raw: bytes
    name: str = ""

    @classmethod
    def new(cls, name: str = "") -> OpeningKey:
        """A fresh key from the system's randomness."""
        return cls(bytes(SodiumPrivateKey.generate()), name)

    @property
    def public(self) -> SealingKey:
        """The key that seals for this one."""
        return SealingKey(bytes(SodiumPrivateKey(self.raw).public_key), self.name)

    def open(self, sealed: bytes) -> bytes:
        """What was sealed.

        Raises:
            SealError: damaged, or sealed for another key.
        """
        try:
            return SealedBox(SodiumPrivateKey(self.raw)).decrypt(sealed)
        except (CryptoError, ValueError, TypeError) as error:
            raise SealError(f"{len(sealed)} sealed bytes do not open: damaged, or sealed for another key") from error

    def write(self, path: Path) -> None:
        """Writes the key's file, readable by its owner only; an existing file is left alone.

        Raises:
            KeyFileError: the file exists.
            OSError: it cannot be written; nothing is left behind.
        """
        line = f"{_SECRET} {base64.b64encode(self.raw).decode()} {self.name}\n"
        try:
            write_private(path, line.encode())
        except FileExistsError as error:
            raise KeyFileError(f"{path} exists; a secret key is not overwritten") from error

    @classmethod
    def read(cls, path: Path) -> OpeningKey:
        """Reads a key's file.

        Raises:
            KeyFileError: no file, no secret key, or a file that others can read.
        """
        key = cls(*_read(path, _SECRET))
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise KeyFileError(f"{path} can be read by others; chmod 600 {path}")
        return key


def _read(path: Path, kind: str) -> tuple[bytes, str]:
    try:
        words = path.read_text(encoding="utf-8").split(maxsplit=2)
        raw = base64.b64decode(words[1], validate=True)
    except FileNotFoundError as error:
        raise KeyFileError(f"no key file {path}") from error
    except (OSError, ValueError, IndexError) as error:  # binascii.Error and UnicodeDecodeError are ValueErrors
        raise KeyFileError(f"{path} is no key file: {error}") from error
    if words[0] != kind or len(raw) != 32:
        raise KeyFileError(f"{path} is no {kind} key; it starts with {words[0][:40]!r}")
    return raw, words[2].strip() if len(words) > 2 else ""
