"""A run of the profiler in a terminal: one line for each way, and what it means."""

from __future__ import annotations

from narrowcast.cli.show import print_table, stdout
from narrowcast.devices.profile.figures import Way
from narrowcast.devices.profile.schema import Run
from narrowcast.devices.report.entries import short_title
from narrowcast.devices.report.figures import BY_KEY, with_interval
from narrowcast.text import escaped

# What is shown, and as which column.
_NAMES = {
    "latency_p50_ms": "median",
    "latency_p95_ms": "95 %",
    "single_fps": "frames/s",
    "windowed_fps": "in flight",
    "packet_up_bytes": "packet",
    "gross_joules_per_frame": "energy",
    "net_joules_per_frame": "net of idle",
    "agreement": "agrees",
}


def print_run(run: Run) -> None:
    """The verdict, a table of the ways, and what weakens them, on stdout."""
    out = stdout()
    for line in run.verdict.text:
        out.print(escaped(line), soft_wrap=True)
    out.print()
    shown = [quantity for key in _NAMES if any((quantity := BY_KEY[key]).of(way) for way in run.ways)]
    rows = [
        [
            short_title(way), way.link or "-", f"{way.frames}", f"{sum(way.failed.values())}",
            *(_cell(way, q.key) for q in shown),
        ]
        for way in run.ways
    ]  # fmt: skip
    print_table("", ["way", "link", ">frames", ">failed", *(f">{_NAMES[q.key]}" for q in shown)], rows)
    measured = any(BY_KEY["gross_joules_per_frame"].of(way) for way in run.ways)
    if not measured and not any("nergy was not measured" in line for line in run.verdict.text):
        told = [way.energy.why_not for way in run.ways if way.energy.why_not]
        why = run.power.why_not or (told[0] if told else "no reason is given")
        out.print(escaped(f"energy was not measurable: {why}"), soft_wrap=True)
    for line in _warnings(run):
        out.print(escaped(f"warning: {line}"), soft_wrap=True)
    if not run.complete:
        out.print(escaped(f"not complete: {run.why_incomplete}"), soft_wrap=True)


def _cell(way: Way, key: str) -> str:
    quantity = BY_KEY[key]
    found = quantity.of(way)
    if key == "latency_p50_ms":
        return with_interval(quantity, found)
    return quantity.form(None if found is None else found.value)


def _warnings(run: Run) -> list[str]:
    """Those of the whole run, then those of ways, each once with the ways that it is of."""
    about: dict[str, list[str]] = {}
    for way in run.ways:
        for line in way.warnings:
            about.setdefault(line, []).append(way.id)
    of_ways = [f"{'all ways' if len(ids) == len(run.ways) else ', '.join(ids)}: {line}" for line, ids in about.items()]
    return [*run.warnings, *of_ways]
