"""Numbers as people read them."""

from __future__ import annotations


def human_bytes(count: float | None) -> str:
    """``831 B``, ``4.2 kB``, ``17 MB`` (powers of ten); ``-`` for None."""
    if count is None:
        return "-"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def human_count(count: float) -> str:
    """``1.81 G``, ``113 M``, ``12.7 k``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def percent(part: float | None) -> str:
    """``77.3 %``; ``-`` for None."""
    return "-" if part is None else f"{100 * part:.1f} %"
