"""The board's state over stretches of a run, and its course."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from narrowcast.devices.measure import conditions_within, throttled_by
from narrowcast.devices.power.trace import Trace
from narrowcast.devices.profile.figures import WindowConditions
from narrowcast.devices.windows import Span


def conditions_over(trace: Trace | None, spans: Sequence[Span]) -> WindowConditions:
    """All stretches together; empty where nothing was read."""
    seen = [] if trace is None else [conditions_within(trace, span) for span in spans]
    zones = sorted({zone for one in seen for zone in one.hottest_c})
    clocks = sorted({name for one in seen for name in one.clocks_mhz})
    told = [one.flags for one in seen if one.flags is not None]
    flags = list(dict.fromkeys(flag for flags in told for flag in flags)) if told else None
    events = Counter[str]()
    for one in seen:
        events.update(one.throttle_events)
    return WindowConditions(
        hottest_c={zone: max(one.hottest_c[zone] for one in seen if zone in one.hottest_c) for zone in zones},
        lowest_clocks_mhz={n: min(one.clocks_mhz[n][0] for one in seen if n in one.clocks_mhz) for n in clocks},
        highest_clocks_mhz={n: max(one.clocks_mhz[n][1] for one in seen if n in one.clocks_mhz) for n in clocks},
        throttled=throttled_by(flags, events),
        power_mode=next((one.power_mode for one in reversed(seen) if one.power_mode is not None), None),
    )
