"""Numbers as people read them, and text of others as a terminal may show it."""

from __future__ import annotations


def escaped(text: str, *, keep: str = "\t") -> str:
    r"""Text without what a terminal would not show but do: ``\x1b`` for an escape.

    Args:
        text: anybody's.
        keep: unprintable characters that stay.
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


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


def human_rate(bits_per_second: float | None) -> str:
    """``800 kbit/s``, ``5 Mbit/s``; ``-`` for None."""
    if bits_per_second is None:
        return "-"
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bits_per_second >= size:
            return f"{bits_per_second / size:.3g} {unit}"
    return f"{bits_per_second:.3g} bit/s"


def human_ms(milliseconds: float | None) -> str:
    """``0.35 ms``, ``11.1 ms``, ``1.25 s``; ``-`` for None."""
    if milliseconds is None:
        return "-"
    if abs(milliseconds) >= 999.5:
        return f"{milliseconds / 1000:.3g} s"
    if abs(milliseconds) < 0.1:
        return f"{milliseconds:.2g} ms"
    return f"{milliseconds:.2f} ms" if abs(milliseconds) < 1 else f"{milliseconds:.3g} ms"


def human_joules(joules: float | None) -> str:
    """``850 µJ``, ``12.3 mJ``, ``1.4 J``; ``-`` for None."""
    if joules is None:
        return "-"
    for unit, size in (("kJ", 1e3), ("J", 1.0), ("mJ", 1e-3)):
        if abs(joules) >= size or (joules == 0 and unit == "J"):
            return f"{joules / size:.3g} {unit}"
    return f"{joules * 1e6:.3g} µJ"
