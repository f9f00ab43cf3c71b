"""The revocation list: one line per certificate, ``SERIAL NAME DATE``.

A list of our own, and not an X.509 CRL: gRPC's Python API hands none to its TLS library, so the server compares serial
numbers itself; and a CRL speaks for one CA, while this list goes on over a rotation (serial numbers are random, 159 bits).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from narrowcast.transport.errors import RevocationError

HEADER = "# narrowcast revocation list 1: SERIAL NAME DATE"
MAX_BYTES = 16 * 1024 * 1024


class Revoked(NamedTuple):
    """One certificate that counts no more."""

    serial: int
    name: str
    since: str


def write_revoked(entries: Iterable[Revoked]) -> bytes:
    """The list as a file."""
    lines = [f"{entry.serial:040x} {entry.name} {entry.since}" for entry in entries]
    return "\n".join([HEADER, *lines, ""]).encode()


def parse_revoked(data: bytes, name: str) -> dict[int, Revoked]:
    """The list in a file, by serial number.

    Args:
        data: the file.
        name: what to call it in errors.

    Raises:
        RevocationError: it is no such list. Half of one is none: a line that cannot be read might be the one that counts.
    """
    try:
        lines = data.decode("utf-8").splitlines()
        if not lines or lines[0].strip() != HEADER or not data.endswith(b"\n"):
            raise ValueError(f"it begins with {lines[0][:40]!r}" if lines else "it is empty")
        found = {}
        for number, line in enumerate(lines[1:], 2):
            if not line.strip() or line.startswith("#"):
                continue
            words = line.split()
            if len(words) != 3:
                raise ValueError(f"line {number} is {line[:60]!r}")
            found[int(words[0], 16)] = Revoked(int(words[0], 16), words[1], words[2])
    except ValueError as error:  # UnicodeDecodeError is one
        raise RevocationError(
            f"{name} is no revocation list ({error}); narrowcast keys revoke writes them, empty ones too"
        ) from error
    return found
