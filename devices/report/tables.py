"""Tables of the page."""

from __future__ import annotations

from collections.abc import Sequence

from narrowcast.devices.report.markup import Child, Markup, tag


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Child]], *, words: Sequence[int] = (),
          left: Sequence[int] = ()) -> Markup:  # fmt: skip
    """A table that scrolls by itself where it is wider than the page, by keyboard too.

    Args:
        caption: what it shows.
        columns: their names; the first one names the rows.
        rows: cells.
        words: columns that hold sentences, which may wrap.
        left: further columns that hold words.
    """

    def kind(k: int) -> str | None:
        return "words" if k in words else "left" if k == 0 or k in left else None

    head = tag("tr", [tag("th", name, scope="col", class_=kind(k)) for k, name in enumerate(columns)])
    body = [
        tag("tr", [
            tag("th", cell, scope="row", class_=kind(0)) if k == 0 else tag("td", cell, class_=kind(k))
            for k, cell in enumerate(row)
        ])
        for row in rows
    ]  # fmt: skip
    inner = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", body))
    return tag("div", inner, class_="scroll", role="region", aria_label=caption, tabindex="0")


def facts(pairs: Sequence[tuple[str, Child]]) -> Markup:
    """Names and values."""
    return tag("dl", [(tag("dt", name), tag("dd", value)) for name, value in pairs])
