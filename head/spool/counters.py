"""What became of a spool's packets."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class SpoolCounters:
    """What became of the packets of this spool since it was opened: ``found + spooled = acknowledged + dropped + waiting``.

    Attributes:
        found: that were there when it was opened.
        spooled: that were taken since.
        acknowledged: that need not be kept any more.
        dropped: of those found or spooled, by reason: ``full``, ``disk full``, ``too old``, ``damaged``.
        refused: that were not taken, by reason: ``full``, ``disk full``, ``disk error``, ``too large``, ``closed``.
        cut_bytes: at the end of the last segment that were no whole record: what a power loss leaves.
        errors: of the disk, other than being full.
    """

    found: int = 0
    spooled: int = 0
    acknowledged: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    cut_bytes: int = 0
    errors: int = 0
