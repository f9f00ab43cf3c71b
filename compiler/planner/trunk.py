"""``trunk = "auto"``: whether an encoder keeps the teacher's layers before the cut, or has layers of its own in their place.

The rule. The teacher's layers stay where they leave the encoder room (at most nine tenths of ``encoder_macs``) and where
the head that keeps them takes at most twice as long, measured, as the one with layers of its own; else they are replaced.
They may be slower and still be chosen, since a kept trunk has nothing to learn again: on MobileNetV2 at the same 3 kB a new
trunk gave 30 % of the right answers after 31,000 images, the kept one 71 % after 38,000; after 6,000 images, where the kept
layers take 78 % of the budget, a new trunk agrees with the teacher in 9 %, the kept one in 57 to 85 %.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from narrowcast.compiler.bottlenecks import PRESETS, BottleneckSettings, Problem
from narrowcast.compiler.bottlenecks.encoder import MOST_OF_BUDGET, EncoderSettings
from narrowcast.compiler.errors import BottleneckError, ExportError
from narrowcast.compiler.planner.timing import Timing
from narrowcast.compiler.progress import Progress
from narrowcast.transport.files import replacing

MOST_TIMES_SLOWER = 2.0
# Layers that take no more of the budget are kept without measuring.
CHEAP_PART = 0.25


class TrunkChoice(NamedTuple):
    """Which trunk, why, and what was measured (milliseconds by trunk)."""

    trunk: str
    why: str
    head_ms: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For manifests."""
        return {"trunk": self.trunk, "why": self.why, "head_ms": dict(self.head_ms)}


def trunks_of(settings: BottleneckSettings) -> dict[str, BottleneckSettings]:
    """The settings for each trunk that the preset may have here; one entry, ``""``, where there is nothing to choose."""
    if not isinstance(settings, EncoderSettings):
        return {"": settings}
    if settings.trunk != "auto":
        return {settings.trunk: settings}
    return {name: msgspec.structs.replace(settings, trunk=name) for name in ("teacher", "new")}


def choose_trunk(trunk_macs: int, budget: int, head_ms: Mapping[str, float]) -> TrunkChoice:
    """The trunk by the rule above.

    Args:
        trunk_macs: of the teacher's layers before the cut.
        budget: ``encoder_macs``.
        head_ms: of the heads that can be built: ``teacher``, ``new``, or both.
    """
    part = f"the teacher's layers take {trunk_macs / 1e6:.3g} M of {budget / 1e6:.3g} M multiply-accumulates"
    if len(head_ms) == 1:
        (only,) = head_ms
        return TrunkChoice(only, f"no other can be built within encoder_macs ({part})", head_ms)
    if trunk_macs > MOST_OF_BUDGET * budget:
        return TrunkChoice("new", f"{part}: too little is left for an encoder behind them", head_ms)
    times = f"a head with them takes {head_ms['teacher']:.2f} ms, one without {head_ms['new']:.2f} ms"
    if head_ms["teacher"] <= MOST_TIMES_SLOWER * head_ms["new"]:
        return TrunkChoice("teacher", f"{part}, and {times}", head_ms)
    return TrunkChoice("new", f"{part}, but {times}", head_ms)


def resolve_trunk(
    problem: Problem, settings: BottleneckSettings, threads: int, cache: Path, progress: Progress
) -> tuple[BottleneckSettings, TrunkChoice | None]:
    """The settings with ``trunk = "auto"`` decided; as they are, and None, where there is nothing to decide.

    What was measured once is kept in ``cache``: the next run of the same recipe decides alike.
    """
    if not isinstance(settings, EncoderSettings) or settings.trunk != "auto":
        return settings, None
    trunk_macs = problem.cut.macs_before
    if trunk_macs <= CHEAP_PART * settings.budget:
        why = f"the teacher's layers take no more than a quarter of encoder_macs ({trunk_macs / 1e6:.3g} M)"
        choice = TrunkChoice("teacher", why, {})
    else:
        file = cache / f"trunk-{_digest(problem, settings, threads)}.json"
        if not file.exists():
            cache.mkdir(parents=True, exist_ok=True)
            progress.note("trunk: measuring the head with the teacher's layers and without")
            with torch.random.fork_rng(devices=[]):  # what is built after it starts as it would without it
                measured = _measured(problem, settings, threads)
            with replacing(file) as out:
                out.write(json.dumps(measured).encode())
        choice = choose_trunk(trunk_macs, settings.budget, json.loads(file.read_text()))
    progress.note(f"trunk: {choice.trunk}; {choice.why}")
    return trunks_of(settings)[choice.trunk], choice


def _digest(problem: Problem, settings: EncoderSettings, threads: int) -> str:
    """Names what the times depend on. A network's code is the same at every width, so its sizes go in as well."""
    shapes = {name: list(tensor.shape) for name, tensor in problem.before.state_dict().items()}
    parts = [
        problem.traced.module.code, str(problem.before), shapes, problem.cut.name, problem.cut.shape,
        problem.cut.macs_before, problem.contract, settings, threads,
    ]  # fmt: skip
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def _measured(problem: Problem, settings: BottleneckSettings, threads: int) -> dict[str, float]:
    """Milliseconds of each head that can be built.

    Raises:
        BottleneckError: none can; the last one's reason.
    """
    timing, found = Timing(problem.contract.size, threads), dict[str, float]()
    refused: Exception | None = None
    for name, fixed in trunks_of(settings).items():
        try:
            found[name] = timing.head_ms(
                problem, PRESETS[msgspec.to_builtins(settings)["preset"]].build(problem, fixed).eval()
            )
        except (BottleneckError, ExportError) as error:
            refused = error
    for part in (problem.normalize, problem.before, problem.after):
        part.to(problem.device)  # exporting moved them
    if refused is not None and not found:
        raise refused
    return found
