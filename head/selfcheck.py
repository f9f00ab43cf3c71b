"""Whether this board's symbols are those that the bundle was measured with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrowcast.transport.bundle import Bundle
from narrowcast.transport.bundle.manifest import Precision
from narrowcast.transport.codec import Codec
from narrowcast.transport.errors import ManifestError
from narrowcast.transport.selfcheck import SymbolBound, read_self_check, reference_frames


@dataclass(frozen=True)
class LevelCheck:
    """One level of a self-check.

    Attributes:
        level: the rate point.
        moved_symbols: part of the symbols that differ from the bundle's.
        largest_step: by how much at most.
        bound: what the bundle allows.
    """

    level: int
    moved_symbols: float
    largest_step: int
    bound: SymbolBound

    @property
    def passed(self) -> bool:
        """Whether it is within the bound."""
        return self.moved_symbols <= self.bound.moved and self.largest_step <= self.bound.step


@dataclass(frozen=True)
class SelfCheckReport:
    """What :meth:`narrowcast.head.session.HeadSession.self_check` found.

    Attributes:
        precision: of the head that ran.
        backend: that ran it, with its version.
        levels: one entry each.
    """

    precision: Precision
    backend: str
    levels: list[LevelCheck]

    @property
    def passed(self) -> bool:
        """Whether every level is within its bound."""
        return all(level.passed for level in self.levels)

    def __str__(self) -> str:
        """One line: the first level that failed, or the one that came closest to it."""
        worst = max(self.levels, key=lambda level: (not level.passed, level.moved_symbols))
        return (
            f"{self.precision} on {self.backend}: {100 * worst.moved_symbols:.3g} % of level {worst.level}'s symbols "
            f"differ, by {worst.largest_step} at most; {100 * worst.bound.moved:.3g} % and {worst.bound.step} are allowed"
        )


def run_self_check(
    bundle: Bundle, codec: Codec, precision: Precision, backend: str, symbols: Callable[..., npt.NDArray[np.uint8]]
) -> SelfCheckReport:
    """Runs a head on the reference frames at every level.

    Args:
        bundle: with a ``selfcheck`` part.
        codec: the bundle's.
        precision: of the head.
        backend: the name that the report gives it.
        symbols: ``(image, level)`` to symbols.

    Raises:
        MissingPartError: the bundle has no ``selfcheck`` part.
        ManifestError: that part is damaged, or has no bound for the precision.
        BackendError: the head failed.
    """
    check = read_self_check(bundle)
    if precision not in check.bounds:
        raise ManifestError(f"{bundle.path.name}: its selfcheck part has no bound for {precision}")
    frames = reference_frames(bundle.manifest.input.size, len(check.payloads[0]))
    found = []
    for level, payloads in enumerate(check.payloads):
        wanted, errors = codec.decode_batch(payloads, [level] * len(payloads))
        if broken := next((error for error in errors if error is not None), None):
            raise ManifestError(f"{bundle.path.name}: its selfcheck part does not decode: {broken}")
        steps = np.abs(np.stack([symbols(frame, level) for frame in frames]).astype(int) - wanted)
        bound = check.bounds[precision][level]
        found.append(LevelCheck(level, float((steps > 0).mean()), int(steps.max()), bound))
    return SelfCheckReport(precision, backend, found)
