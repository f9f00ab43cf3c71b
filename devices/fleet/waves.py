"""In which order boards are flashed, and when to stop: plain arithmetic on names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from narrowcast.devices.fleet.errors import SelectionError
from narrowcast.transport.structs import nearest

_THRESHOLD = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<percent>%?)")


@dataclass(frozen=True)
class Threshold:
    """So many failed boards end a rollout: a count, or a part of all boards.

    Attributes:
        count: failures at which it stops; 0 never stops.
        percent: of all boards, in place of ``count``.
    """

    count: int = 1
    percent: float | None = None

    @classmethod
    def parse(cls, text: str) -> Threshold:
        """``3``, ``10%``, or ``never``.

        Raises:
            SelectionError: neither.
        """
        if text == "never":
            return cls(count=0)
        found = _THRESHOLD.fullmatch(text.strip())
        if found is None or (not found["percent"] and "." in found["number"]):
            raise SelectionError(f"{text!r} is no number of failures: 3, 10%, or never")
        number = float(found["number"])
        if number <= 0 or (found["percent"] and number > 100):
            raise SelectionError(f"a rollout stops after {text} failures? Take 1 or more, up to 100%, or never")
        return cls(percent=number) if found["percent"] else cls(count=int(number))

    def reached(self, failed: int, boards: int) -> bool:
        """Whether ``failed`` of ``boards`` are too many."""
        if self.percent is not None:
            return failed > 0 and failed >= math.ceil(boards * self.percent / 100)
        return 0 < self.count <= failed

    def __str__(self) -> str:
        if self.percent is not None:
            return f"{self.percent:g} % of the boards"
        return f"{self.count} board{'s' if self.count > 1 else ''}" if self.count else "never"


@dataclass(frozen=True)
class Wave:
    """Boards that are flashed together, ``parallel`` at a time; the next wave begins when all of them are done."""

    title: str
    names: tuple[str, ...]
    canary: bool = False


def plan_waves(names: Sequence[str], canary: Sequence[str] = (), canaries: int = 0, size: int = 0) -> list[Wave]:
    """Canaries first, then waves.

    Args:
        names: all boards, in order.
        canary: the canaries by name,
        canaries: or as many from the front.
        size: boards in a wave; 0 puts all others into one.

    Raises:
        SelectionError: a canary that is none of the boards, or named twice; more canaries than boards.
    """
    if canary and canaries:
        raise SelectionError("canaries are named or counted, not both")
    for name in canary:
        if name not in names:
            raise SelectionError(
                f"the canary {name!r} is none of the boards of this rollout{nearest(name, list(names))}"
            )
    if len(set(canary)) < len(canary):
        raise SelectionError(f"a canary is named twice: {', '.join(canary)}")
    if canaries > len(names):
        raise SelectionError(f"{canaries} canaries of {len(names)} boards; take fewer")
    if size < 0 or canaries < 0:
        raise SelectionError("canaries and boards in a wave are 0 or more")
    first = tuple(canary) or tuple(names[:canaries])
    others = [name for name in names if name not in first]
    waves = [Wave("canary" if len(first) == 1 else "canaries", first, canary=True)] if first else []
    step = size or max(len(others), 1)
    starts = range(0, len(others), step)
    waves += [Wave(f"wave {k} of {len(starts)}", tuple(others[at : at + step])) for k, at in enumerate(starts, start=1)]
    return waves
