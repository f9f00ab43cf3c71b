"""Numbers as people read them, and text of others as a terminal may show it."""

from __future__ import annotations

from collections.abc import Sequence


def escaped(text: str, *, keep: str = "\t") -> str:
    r"""Text without what a terminal would not show but do: ``\x1b`` for an escape.

    Args:
        text: anybody's.
        keep: unprintable characters that stay.
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def human_bytes(count: float | None) -> str:
    """``831 B``, ``4.2 kB``, ``17 MB`` (powers of ten); ``-`` for None."""
    return "-" if count is None else _with_unit(count, _whole(count), ("B", "kB", "MB", "GB"))


def human_count(count: float) -> str:
    """``1.81 G``, ``113 M``, ``12.7 k``."""
    return _with_unit(count, _whole(count), ("", "k", "M", "G")).rstrip()


def percent(part: float | None) -> str:
    """``77.3 %``; ``-`` for None."""
    return "-" if part is None else f"{100 * part:.1f} %"


def human_rate(bits_per_second: float | None) -> str:
    """``800 kbit/s``, ``5 Mbit/s``; ``-`` for None."""
    if bits_per_second is None:
        return "-"
    return _with_unit(bits_per_second, _three(bits_per_second), ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"))


def human_ms(milliseconds: float | None) -> str:
    """``0.35 ms``, ``11.1 ms``, ``1.25 s``; ``-`` for None."""
    if milliseconds is None:
        return "-"
    if abs(milliseconds) >= 999.5:
        return f"{_three(milliseconds / 1000)} s"
    if abs(milliseconds) < 0.1:
        return f"{milliseconds:.2g} ms"
    return f"{milliseconds:.2f} ms" if abs(milliseconds) < 1 else f"{milliseconds:.3g} ms"


def human_joules(joules: float | None) -> str:
    """``850 µJ``, ``12.3 mJ``, ``1.4 J``; ``-`` for None."""
    if joules is None:
        return "-"
    return "0 J" if joules == 0 else _with_unit(joules * 1e6, _three(joules * 1e6), ("µJ", "mJ", "J", "kJ"))


def _with_unit(value: float, text: str, units: Sequence[str]) -> str:
    """A value in the first of units, a thousand apart, in which it is not a thousand or more as it is rounded.

    Args:
        value: in the first unit.
        text: as the first unit shows it; the others show three digits.
        units: from the smallest.
    """
    for unit in units[:-1]:
        if not abs(float(text)) >= 1000:
            return f"{text} {unit}"
        value /= 1000
        text = _three(value)
    return f"{text} {units[-1]}"


def _whole(value: float) -> str:
    return f"{value:.0f}"


def _three(value: float) -> str:
    """Three digits, and all of those before the point; no powers."""
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
