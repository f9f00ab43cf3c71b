"""What is counted of one source, over all clients and models that it has had."""

from __future__ import annotations

import time
from bisect import bisect_left
from dataclasses import fields

from narrowcast.head.accounting import Ledger
from narrowcast.head.rate.budget import DailyCap
from narrowcast.head.unanswered import LinkCounters

# Upper bounds in seconds, as Prometheus has them; what is slower goes into the last one, which has none.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Histogram:
    """How often what took how long."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds


class Figures:
    """Of one source.

    Attributes:
        ledger: what became of its frames.
        latency: from a frame's capture to its result, of those that were answered, here or there.
        cap: what may be spent of a day, once a client had one.
        link: what clients did that have ended; those that run are not in it.
        level: of the last frame; None before.
        captured_at: when the last frame was taken from the source, ``time.monotonic()``; None before.
        answered_at: when a server last answered one; None before.
        opened: how often the source was opened by feeds that have ended.
        hangs: how many of those openings were given up.
    """

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.latency = Histogram()
        self.cap: DailyCap | None = None
        self.link = LinkCounters()
        self.level: int | None = None
        self.captured_at: float | None = None
        self.answered_at: float | None = None
        self.opened = self.hangs = 0

    def end_client(self, counters: LinkCounters) -> None:
        """A client has ended."""
        self.link = added(self.link, counters)


def added(one: LinkCounters, other: LinkCounters) -> LinkCounters:
    """Both, counter by counter."""
    return LinkCounters(
        **{field.name: getattr(one, field.name) + getattr(other, field.name) for field in fields(LinkCounters)}
    )


def age(since: float | None) -> float | None:
    """Seconds since a moment of ``time.monotonic()``; None for never."""
    return None if since is None else round(max(0.0, time.monotonic() - since), 3)
