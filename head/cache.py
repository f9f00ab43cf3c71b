"""Where the device keeps what it has measured or built, for its next start."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """``$NARROWCAST_CACHE``, else ``narrowcast`` in the user's caches; None for ``off``."""
    folder = os.environ.get("NARROWCAST_CACHE")
    if folder == "off":
        return None
    return Path(folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "narrowcast")
