"""Passwords and shared secrets: in files, so that they stand in no list of processes."""

from __future__ import annotations

from pathlib import Path

from narrowcast.transport.errors import ConfigError


def read_secret(path: Path) -> str:
    """A file's text, without the space around it.

    Raises:
        ConfigError: it cannot be read, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the secret in {path} cannot be read: {error}") from error
    if not text:
        raise ConfigError(f"{path} is empty; it holds a secret")
    return text
