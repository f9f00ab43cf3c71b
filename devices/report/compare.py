"""Two runs against each other: what got worse or better beyond noise, and what cannot be compared.

The rule is in :mod:`narrowcast.devices.report.noise`; what counts as a change worth telling is in
:data:`narrowcast.devices.report.figures.QUANTITIES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from narrowcast.devices.profile.figures import Way
from narrowcast.devices.profile.schema import Run
from narrowcast.devices.report.data import figure
from narrowcast.devices.report.entries import Entry, full_title
from narrowcast.devices.report.figures import BY_KEY, QUANTITIES, Quantity, up_bytes
from narrowcast.devices.report.noise import Figure, Outcome, Rule, outcomes
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.structs import nearest

# What `--least` calls a quantity: the names of `best per goal`, and the rest.
LEAST = {
    "latency": ("latency_p50_ms",),
    "energy": ("gross_joules_per_frame", "net_joules_per_frame"),
    "bytes": ("bytes_up",),
    "agreement": ("agreement",),
    "answered": ("answered",),
}


@dataclass(frozen=True)
class Difference:
    """One figure of one way in both runs.

    Attributes:
        way: its id.
        title: of the way, in words.
        quantity: which figure.
        old: in the first run; None where it was not measured.
        new: in the second one.
        outcome: ``worse`` and ``better`` are beyond noise, and large enough to matter; ``same``; ``cannot tell``.
        why: for ``cannot tell``, and for a figure that is gone.
    """

    way: str
    title: str
    quantity: Quantity
    old: Figure | None
    new: Figure | None
    outcome: Outcome
    why: str | None = None

    @property
    def change(self) -> float | None:
        """Relative to the old value."""
        if self.old is None or self.new is None or self.old.value == 0:
            return None
        return self.new.value / self.old.value - 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "way": self.way,
            "quantity": self.quantity.key,
            "old": figure(self.old),
            "new": figure(self.new),
            "change": self.change,
            "outcome": self.outcome,
            "why": self.why,
        }


@dataclass(frozen=True)
class Comparison:
    """The second run against the first.

    Attributes:
        old: the first run.
        new: the second one.
        differences: of every way that both have, figure by figure.
        gone: ways that only the first one has.
        added: ways that only the second one has.
        unlike: in what the runs differ that makes the comparison weaker.
    """

    old: Entry
    new: Entry
    differences: list[Difference]
    gone: list[str]
    added: list[str]
    unlike: list[str]

    @property
    def regressions(self) -> list[Difference]:
        """What got worse beyond noise."""
        return [one for one in self.differences if one.outcome == "worse"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: see docs/report.md."""
        return {
            "format": "narrowcast-comparison",
            "schema": 1,
            "old": {"name": self.old.name, "id": self.old.run.id, "started": self.old.run.started},
            "new": {"name": self.new.name, "id": self.new.run.id, "started": self.new.run.started},
            "regressions": len(self.regressions),
            "unlike": self.unlike,
            "gone": self.gone,
            "added": self.added,
            "differences": [one.as_dict() for one in self.differences],
        }


def least_from(text: str | None) -> dict[str, float]:
    """``latency=3,energy=5,agreement=0.5``: percent, of the old value or (agreement, answered) in points.

    Raises:
        ConfigError: an unknown name, or no number.
    """
    found: dict[str, float] = {}
    for part in filter(None, (text or "").split(",")):
        name, _, value = part.partition("=")
        if name.strip() not in LEAST:
            raise ConfigError(f"--least: no figure {name.strip()!r}{nearest(name.strip(), list(LEAST))}")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number < 1000:
            raise ConfigError(f"--least: {name.strip()}={value} is no number of percent, 0 or more")
        found |= dict.fromkeys(LEAST[name.strip()], number / 100)
    return found


def compare(old: Entry, new: Entry, least: Mapping[str, float] | None = None) -> Comparison:
    """Every figure of the second run against the first one's.

    Args:
        old: the one that was good.
        new: the one in question.
        least: by the quantity's key: the smallest change that matters, in place of the usual one.
    """
    quantities = [_with(quantity, least or {}) for quantity in (*QUANTITIES, _BYTES) if quantity.rule is not None]
    same = _same_frames(old.run, new.run)
    before = {way.id: way for way in old.run.ways}
    after = {way.id: way for way in new.run.ways}
    shared = [way_id for way_id in before if way_id in after]
    found: list[Difference] = []
    for way_id in shared:
        found += _way(before[way_id], after[way_id], quantities, same_frames=same)
    return Comparison(
        old,
        new,
        _judged(found),
        [full_title(before[way_id]) for way_id in before if way_id not in after],
        [full_title(after[way_id]) for way_id in after if way_id not in before],
        unlike(old.run, new.run),
    )


def _same_frames(old: Run, new: Run) -> bool:
    """Whether frames of one number are the same, and go through the same codec."""
    return (old.plan.frames_from, old.plan.frames, old.model.fingerprint) == (
        new.plan.frames_from, new.plan.frames, new.model.fingerprint)  # fmt: skip


def _mean_bytes(way: Way) -> Figure | None:
    """Over the frames that there was time for: others from run to run, so that nobody knows the noise in it."""
    size = up_bytes(way.bytes)
    return None if size is None else Figure(size)


def _packets(old: Way, new: Way) -> tuple[Figure, Figure] | None:
    """The mean packet of the frames that both runs sent, each counted once: of one frame and one codec that is certain."""
    if old.bytes is None or new.bytes is None:
        return None
    pairs = [
        (first, second)
        for first, second in zip(old.bytes.packet_up_by_frame, new.bytes.packet_up_by_frame, strict=False)
        if first is not None and second is not None
    ]
    if not pairs:
        return None
    first, second = (sum(sizes) / len(pairs) for sizes in zip(*pairs, strict=True))
    return Figure(first, first, first), Figure(second, second, second)


_BYTES = Quantity("bytes_up", "bytes up", BY_KEY["packet_up_bytes"].form, _mean_bytes, Rule(0.01))
_NO_FRAMES = "the runs do not tell of the same frames"


def _with(quantity: Quantity, least: Mapping[str, float]) -> Quantity:
    if quantity.rule is None or quantity.key not in least:
        return quantity
    return dataclasses.replace(quantity, rule=dataclasses.replace(quantity.rule, least=least[quantity.key]))


def _way(old: Way, new: Way, quantities: Sequence[Quantity], *, same_frames: bool) -> list[Difference]:
    """Outcomes of figures that both have are judged later, all together."""
    found = []
    for quantity in quantities:
        first, second = quantity.of(old), quantity.of(new)
        if quantity.key == _BYTES.key and same_frames:
            first, second = _packets(old, new) or (first, second)
        if first is None and second is None:
            continue
        outcome: Outcome = "same" if first and second else "cannot tell"
        why = None if first and second else f"only in the {'second' if first is None else 'first'} run"
        if second is None and quantity.key == "latency_p50_ms" and new.failed:  # it was asked, and gave no answers
            outcome, why = "worse", f"no figure any more: {sum(new.failed.values())} of {new.frames} frames failed"
        found.append(Difference(old.id, full_title(old), quantity, first, second, outcome, why))
    return found


def _judged(differences: Sequence[Difference]) -> list[Difference]:
    pairs = [
        (one.old, one.new, one.quantity.rule)
        for one in differences
        if one.old is not None and one.new is not None and one.quantity.rule is not None
    ]
    judged = iter(outcomes(pairs))
    found = []
    for one in differences:
        if one.old is None or one.new is None:
            found.append(one)
            continue
        outcome = next(judged)
        why = _NO_FRAMES if one.quantity.key == _BYTES.key else "no interval in one of the runs"
        found.append(dataclasses.replace(one, outcome=outcome, why=why if outcome == "cannot tell" else None))
    return found


def _runs_on(way: Way) -> str:
    return " on ".join(word for word in (way.precision, way.backend) if word) or "none"


def unlike(old: Run, new: Run) -> list[str]:
    """What is not the same in both runs."""
    facts: dict[str, list[str | None]] = {
        "model": [f"{run.model.name}, release {run.model.release}" for run in (old, new)],
        "board": [f"{run.board.model or run.board.cpu or run.board.architecture}" for run in (old, new)],
        "target": [run.board.target for run in (old, new)],
        "kernel": [run.board.kernel for run in (old, new)],
        "libraries": [", ".join(f"{k} {v}" for k, v in sorted(run.board.libraries.items()) if v) for run in (old, new)],
        "power mode": [run.conditions.power_mode for run in (old, new)],
        "frames from": [f"{run.plan.frames} of {run.plan.frames_from}" for run in (old, new)],
        "power sensor": [run.power.sensor for run in (old, new)],
        "rails of the total": [", ".join(run.power.total) or None for run in (old, new)],
    }
    found = [f"{name}: {a or 'none'}, then {b or 'none'}" for name, (a, b) in facts.items() if a != b]
    for name, run in (("first", old), ("second", new)):
        if not run.complete:
            found.append(f"the {name} run is not complete: {run.why_incomplete or 'it does not say why'}")
        if run.conditions.throttled:
            found.append(f"the board was slowed down in the {name} run: {', '.join(run.conditions.throttled)}")
    ran = {way.id: _runs_on(way) for way in old.ways}
    found += [f"{way.id}: {ran[way.id]}, then {_runs_on(way)}" for way in new.ways
              if way.id in ran and ran[way.id] != _runs_on(way)]  # fmt: skip
    before = {link.name: link.settings for link in old.links}
    found += [f"link {link.name} was set otherwise" for link in new.links
              if link.name in before and before[link.name] != link.settings]  # fmt: skip
    return found
