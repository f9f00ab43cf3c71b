"""Results on their way to where they are used: a webhook or an MQTT broker (``docs/results-schema.md``).

Both ends have results, so this is here: small, without torch, and without anything that a board has not got (MQTT wants the
extra ``mqtt``).
"""

from __future__ import annotations

from narrowcast.transport.sinks.errors import SinkError, SinkRejectedError, SinkUnavailableError
from narrowcast.transport.sinks.outbox import Outbox, Sink, SinkCounts
from narrowcast.transport.sinks.records import Record, summarize

__all__ = [
    "Outbox",
    "Record",
    "Sink",
    "SinkCounts",
    "SinkError",
    "SinkRejectedError",
    "SinkUnavailableError",
    "summarize",
]
