"""Packets on disk while no server answers: ``docs/spool-format.md``."""

from narrowcast.head.spool.counters import SpoolCounters
from narrowcast.head.spool.records import Record
from narrowcast.head.spool.spool import Overflow, Spool, Sync

__all__ = ["Overflow", "Record", "Spool", "SpoolCounters", "Sync"]
