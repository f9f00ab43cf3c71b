"""Rates and times as people write them: ``5mbit``, ``800kbit``, ``20ms``."""

from __future__ import annotations

import math
import re

from narrowcast.transport.errors import ConfigError
from narrowcast.transport.structs import nearest

RATES = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
TIMES_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
SLOWEST, FASTEST = 1.0, 1e15  # bits per second: sums of times stay finite, and tables readable
LONGEST_MS = 86_400e3
_NUMBER = re.compile(r"\s*(?P<number>[0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(?P<unit>[a-z/µ]*)\s*", re.IGNORECASE)


def parse_rate(text: str) -> float:
    """``5mbit`` (or ``5 Mbit/s``) as bits per second.

    Raises:
        ConfigError: no such rate; says what one looks like.
    """
    number, unit = _parts(text, "a rate", "5mbit, 800kbit or 1gbit (per second)")
    unit = unit.removesuffix("/s")
    if unit.endswith(("bps", "b", "byte", "bytes")):
        raise ConfigError(f"{text!r} can be read as bits or as bytes; rates are written 5mbit, 800kbit or 1gbit")
    if unit not in RATES:
        raise ConfigError(f"{text!r} has {_unit(unit)}; rates are written 5mbit, 800kbit or 1gbit{_near(unit, RATES)}")
    rate = number * RATES[unit]
    if not SLOWEST <= rate <= FASTEST:
        raise ConfigError(f"{text!r} is no rate of a link: those are from 1bit to 1000000gbit")
    return rate


def parse_time_ms(text: str) -> float:
    """``20ms``, ``0.1s`` or ``300us`` as milliseconds.

    Raises:
        ConfigError: no such time; says what one looks like.
    """
    number, unit = _parts(text, "a time", "20ms, 0.1s or 300us")
    unit = "us" if unit == "µs" else unit
    if unit not in TIMES_MS:
        raise ConfigError(f"{text!r} has {_unit(unit)}; times are written 20ms, 0.1s or 300us{_near(unit, TIMES_MS)}")
    if number * TIMES_MS[unit] > LONGEST_MS:
        raise ConfigError(f"{text!r} is more than a day: no time of a link")
    return number * TIMES_MS[unit]


def human_rate(bits_per_second: float) -> str:
    """``5 Mbit/s``."""
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if bits_per_second >= size:
            return f"{bits_per_second / size:g} {unit}"
    return f"{bits_per_second:g} bit/s"


def _parts(text: str, what: str, form: str) -> tuple[float, str]:
    found = _NUMBER.fullmatch(text)
    number = float(found["number"]) if found else math.nan
    if found is None or not math.isfinite(number):
        raise ConfigError(f"{text!r} is not {what}; it is written like {form}")
    return number, found["unit"].lower()


def _unit(unit: str) -> str:
    return f"the unit {unit!r}" if unit else "no unit"


def _near(unit: str, known: dict[str, float]) -> str:
    return nearest(unit, list(known)) if unit else ""
