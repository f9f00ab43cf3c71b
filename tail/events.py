"""Log records that are events: a name and fields, which :mod:`narrowcast.tail.operations.logs` writes as such.

For parts that are used without that as well: their records have an ordinary message, too.
"""

from __future__ import annotations

from collections.abc import Mapping

Field = str | int | float | bool | None | list[str] | dict[str, int]


def event_fields(event: str, **fields: Field) -> Mapping[str, object]:
    """``extra`` for a logger's call."""
    return {"event": event, "fields": fields}
