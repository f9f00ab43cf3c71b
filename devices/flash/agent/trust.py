"""The keys whose bundles a board takes: ``trusted.pub``, a line each, as ``narrowcast keys`` writes them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from narrowcast.devices.flash.agent.errors import AgentError
from narrowcast.devices.flash.agent.files import read_json, write_atomic
from narrowcast.devices.flash.agent.layout import Layout

_PUBLIC = "narrowcast-ed25519-public"


def trusted_here(layout: Layout) -> list[dict[str, str]]:
    """``id`` and ``name`` of each key."""
    return [{"id": identity(line), "name": [*line.split(maxsplit=2), "", ""][2]} for line in _lines(layout.trusted)]


def identity(line: str) -> str:
    """A key's first 8 bytes in hex.

    Raises:
        AgentError: it is no line of a public key.
    """
    words = line.split(maxsplit=2)
    try:
        raw = base64.b64decode(words[1], validate=True)
    except (IndexError, ValueError) as error:
        raise AgentError("BoardVerifyError", f"{line[:60]!r} is no public key of narrowcast") from error
    if words[0] != _PUBLIC or len(raw) != 32:
        raise AgentError("BoardVerifyError", f"{line[:60]!r} is no public key of narrowcast")
    return raw[:8].hex()


def enrol(layout: Layout, line: str) -> None:
    """The first key of a board, or one more."""
    known = _lines(layout.trusted)
    if identity(line) not in map(identity, known):
        write_atomic(layout.trusted, "".join(f"{one}\n" for one in [*known, line.strip()]).encode())


def change_trust(layout: Layout, add: str, remove: str) -> list[dict[str, str]]:
    """Adds a key, or takes one away; returns what is trusted then.

    Raises:
        AgentError: ``BoardVerifyError``: no such key; the last one; or the one that signed what runs, which the next start
            of the daemon would refuse.
    """
    if add:
        identity(add)
        enrol(layout, add)
    if remove:
        known = _lines(layout.trusted)
        left = [line for line in known if identity(line) != remove]
        if len(left) == len(known):
            raise AgentError("BoardVerifyError", f"the board trusts no key {remove[:40]!r}; it has {_ids(known)}")
        if not left:
            raise AgentError("BoardVerifyError", f"{remove} is the only key that the board trusts; add another first")
        running = layout.running()
        release: Any = read_json(layout.release(running) / "release.json") if running else None
        if isinstance(release, dict) and str(release.get("signed_by", "")).startswith(remove):
            raise AgentError(
                "BoardVerifyError", f"{running}, which runs, is signed with {remove}: flash one of the new key first"
            )
        write_atomic(layout.trusted, "".join(f"{line}\n" for line in left).encode())
    return trusted_here(layout)


def _ids(lines: list[str]) -> str:
    return ", ".join(map(identity, lines)) or "none"


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError:
        return []
