"""HTML and SVG by functions: whatever is not markup already is text, and is escaped.

A run record comes from another machine, so every name in it is somebody else's text. There is no template in which a
filter could be forgotten: the one way to make markup is :func:`tag`, and it escapes.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# C0 and C1 controls but tab and newline, and what turns the direction of text: neither belongs into a name.
_UNWANTED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_VOID = {"meta", "br", "col", "link"}


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | float | Iterable["Child"] | None


def clean(text: object) -> str:
    """Any text without what a page or a terminal would not show but do."""
    return _UNWANTED.sub("\ufffd", str(text))


def escape(text: object) -> Markup:
    """Any text as markup that shows it."""
    return Markup(html.escape(clean(text), quote=True))


def join(children: Child) -> Markup:
    """Markup, text, and lists of both, one after the other; None is nothing."""
    if children is None:
        return Markup()
    if isinstance(children, Markup):
        return children
    if isinstance(children, str):
        return escape(children)
    if isinstance(children, int | float):
        return escape(f"{children:g}")
    return Markup("".join(join(child) for child in children))


def tag(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """An element.

    Args:
        name: of the element; written by us.
        children: what is in it: text is escaped, markup is not.
        attributes: ``class_`` is ``class``, ``stroke_width`` is ``stroke-width``; None and False are left out, True stands
            alone; numbers are rounded to a hundredth, which is enough for a drawing.
    """
    words = [name]
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-") if key != "viewBox" else key
        if value is True:
            words.append(attribute)
        elif isinstance(value, int | float) and value is not False:
            words.append(f'{attribute}="{_number(value)}"')
        elif value is not None and value is not False:
            words.append(f'{attribute}="{escape(value)}"')
    if name in _VOID:
        return Markup(f"<{' '.join(words)}>")
    return Markup(f"<{' '.join(words)}>{join(children)}</{name}>")


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"
