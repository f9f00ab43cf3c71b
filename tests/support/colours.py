"""Contrast of a style sheet's colours, by WCAG 2.2."""

from __future__ import annotations

import re


def variables(css: str, scheme: str) -> dict[str, str]:
    """The custom properties of ``:root`` for ``light``, or for ``dark``, which lie over those."""
    light, dark = (
        re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block) for block in re.findall(r":root \{(.*?)\}", css, re.S)[:2]
    )
    return dict(light) if scheme == "light" else dict(light) | dict(dark)


def ratio(one: str, other: str) -> float:
    """The contrast ratio, 1 to 21."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
