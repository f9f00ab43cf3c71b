"""Whether a camera still sees what it used to see, told from what arrives anyway (``docs/drift.md``)."""

from __future__ import annotations

from narrowcast.tail.drift.detector import Detector, DriftSettings, Verdict
from narrowcast.tail.drift.watch import DriftEvent, DriftWatch

__all__ = ["Detector", "DriftEvent", "DriftSettings", "DriftWatch", "Verdict"]
