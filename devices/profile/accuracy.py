"""What a bundle says of each way's accuracy, measured when it was compiled. Its figures are free-form: none is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from narrowcast.devices.profile.figures import Accuracy
from narrowcast.devices.profile.runners import WayInfo

_MISSING = "the bundle has no such figure"
_IMAGES = "image codecs are not in a bundle's figures: narrowcast evaluate measures them"


def accuracy_of(figures: Mapping[str, Any], way: WayInfo) -> Accuracy:
    """A way's figures; None where the bundle has none.

    Args:
        figures: of the manifest.
        way: which.
    """
    if way.kind == "image":
        return Accuracy(why_not=_IMAGES)
    metric = figures.get("metric")
    row = _row(figures, way)
    keys = ("agreement", "output_error", "mean_packet_bytes")
    known = {key: number for key in keys if (number := _number(row.get(key))) is not None}
    if way.kind == "local" and "agreement" not in known and way.precision == "fp32":
        known["agreement"] = 1.0  # it is the teacher itself
    return Accuracy(
        **known,
        metric=metric if isinstance(metric, str) and "agreement" in known else None,
        why_not=None if "agreement" in known else _MISSING,
    )


def _row(figures: Mapping[str, Any], way: WayInfo) -> Mapping[str, Any]:
    """The entry about a way; an empty one where there is none."""
    if way.kind == "local":
        return _at(figures, "whole", "precisions", way.precision)
    if way.kind == "exit":
        rows = _at(figures, "exit").get("levels")
        return rows[-1] if isinstance(rows, list) and rows and isinstance(rows[-1], dict) else {}
    precise = _at(figures, "precisions", way.precision).get("levels") if way.precision != "fp32" else None
    rows = precise or figures.get("levels")
    found = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return next((row for row in found if row.get("level") == way.level), {})


def _at(figures: Mapping[str, Any], *keys: str | None) -> Mapping[str, Any]:
    found: Any = figures
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
