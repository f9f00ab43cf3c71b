"""Bearer tokens: 256 random bits, kept as SHA-256 where they are checked.

A file has one line per token, ``NAME sha256:HEX``. A plain hash is enough for what no human chose: there is nothing to
guess, so a slow one would only cost the server.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from narrowcast.transport.errors import TokenError
from narrowcast.transport.files import replacing
from narrowcast.transport.pki.names import NAME_RULE, is_name
from narrowcast.transport.pki.private import read_private

PREFIX = "nct_"  # so that scanners for leaked secrets know one
HEADER = "# narrowcast tokens 1: NAME sha256:HEX"
_TOKEN = re.compile(r"nct_[A-Za-z0-9_-]{43}", re.ASCII)
_LINE = re.compile(r"(\S+)\s+sha256:([0-9a-f]{64})", re.ASCII)


class TokenEntry(NamedTuple):
    """One token, hashed."""

    name: str
    digest: bytes


class TokenTable:
    """The tokens that count."""

    def __init__(self, entries: Iterable[TokenEntry] = ()) -> None:
        self.entries = list(entries)

    def find(self, digest: bytes) -> str | None:
        """The name that a token with this digest belongs to. Takes as long whether or not there is one."""
        found = None
        for entry in self.entries:
            if hmac.compare_digest(entry.digest, digest):
                found = entry.name
        return found

    def to_bytes(self) -> bytes:
        """The table as a file."""
        return "\n".join([HEADER, *(f"{e.name} sha256:{e.digest.hex()}" for e in self.entries), ""]).encode()


def new_token() -> str:
    """A fresh token from the system's randomness."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> bytes:
    """32 bytes: what is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()  # bytes of headers that are no text


def parse_tokens(data: bytes, name: str) -> TokenTable:
    """The table in a file.

    Args:
        data: the file.
        name: what to call it in errors.

    Raises:
        TokenError: a line that is no ``NAME sha256:HEX``, or no whole table: losing a part of one revokes nothing.
    """
    if not data.endswith(b"\n"):  # a table without tokens has its first line still
        seen = "its last line has no end" if data else "it is empty"
        raise TokenError(f"{name} is no whole file of tokens: {seen}; copy it again, or remove it and begin anew")
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise TokenError(f"{name} is no file of tokens: {error}; narrowcast keys token NAME writes them") from error
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:  # the line itself is not shown: it may be a token that somebody pasted
            raise TokenError(f"{name}, line {number} is no NAME sha256:HEX; narrowcast keys token NAME writes them")
        if not is_name(match[1]):
            raise TokenError(f"{name}, line {number}: {match[1][:80]!r} is no name ({NAME_RULE})")
        entries.append(TokenEntry(match[1], bytes.fromhex(match[2])))
    return TokenTable(entries)


def add_token(file: Path, name: str) -> str:
    """Makes a token for ``name``, and adds its hash to ``file``, which is made where there is none. Others stay.

    Raises:
        TokenError: ``name`` is no name, or the file is no file of tokens.
        KeyFileError: others can read the file.
    """
    if not is_name(name):
        raise TokenError(f"{name[:80]!r} is no name: {NAME_RULE}")
    token = new_token()
    with _locked(file):
        table = read_tokens(file) if file.exists() else TokenTable()
        _write(file, [*table.entries, TokenEntry(name, digest_of(token))])
    return token


def remove_tokens(file: Path, name: str) -> int:
    """Takes all of a name's tokens out of ``file``.

    Returns:
        how many.

    Raises:
        TokenError: it has none.
    """
    read_tokens(file)  # where there is none, nothing is made
    with _locked(file):
        entries = read_tokens(file).entries
        left = [entry for entry in entries if entry.name != name]
        if len(left) == len(entries):
            names = ", ".join(sorted({entry.name for entry in entries})[:20]) or "none"
            raise TokenError(f"no token of {name[:80]!r} in {file}; it has those of: {names}")
        _write(file, left)
    return len(entries) - len(left)


def read_tokens(file: Path) -> TokenTable:
    """The table in a file; see :func:`parse_tokens` and :func:`narrowcast.transport.pki.private.read_private`."""
    return parse_tokens(read_private(file, "token file"), str(file))


def read_token(file: Path) -> str:
    """The one token in a client's file.

    Raises:
        KeyFileError: missing, or open to others.
        TokenError: no token.
    """
    return check_token(read_private(file, "token file").decode("ascii", "replace").strip(), str(file))


def check_token(token: str, name: str) -> str:
    """``token`` where it is one.

    Raises:
        TokenError: it is none; it is not shown.
    """
    if _TOKEN.fullmatch(token) is None:
        raise TokenError(f"{name} holds no token: they begin with {PREFIX} (narrowcast keys token NAME makes one)")
    return token


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Two commands at once write one after the other: a token that one takes out must not come back by the other."""
    import fcntl  # not on every system; clients, which read tokens, do without

    file.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(file.with_name(f".{file.name}.lock"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write(file: Path, entries: Iterable[TokenEntry]) -> None:
    with replacing(file, mode=0o600) as out:
        out.write(TokenTable(entries).to_bytes())
