"""Samples of what arrives, sealed so that the server cannot read them again, for audit (``docs/drift.md``)."""

from __future__ import annotations

from narrowcast.tail.audit.recorder import AuditRecorder
from narrowcast.tail.audit.sampler import Sampler
from narrowcast.tail.audit.samples import Sample, Stored, open_sample, samples_in
from narrowcast.tail.audit.store import AuditStore, Retention

__all__ = ["AuditRecorder", "AuditStore", "Retention", "Sample", "Sampler", "Stored", "open_sample", "samples_in"]
