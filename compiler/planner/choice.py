"""``[cut] at = "auto"``: the planner's choice for a recipe, made once and kept beside the images."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from narrowcast.compiler.cuts import CutTable, find_cuts
from narrowcast.compiler.cuts.trace import Traced, grows
from narrowcast.compiler.errors import CutError
from narrowcast.compiler.planner.plan import Plan, Planner
from narrowcast.compiler.progress import Progress
from narrowcast.compiler.recipe import Recipe
from narrowcast.transport.files import replacing
from narrowcast.transport.structs import to_json
from narrowcast.transport.tasks import Task

AUTO = "auto"


def choose_cut(
    recipe: Recipe,
    network: nn.Module,
    traced: Traced,
    frames: npt.NDArray[np.uint8],
    digest: str,
    cache: Path,
    progress: Progress,
    task: Task | None = None,
) -> dict[str, Any]:
    """Where the planner splits a recipe's network: over the link of ``[plan]``, the cut with the fastest answer.

    A recipe is there to be compiled: the best split is taken even where not splitting would be faster, and that is said.

    Args:
        recipe: with its bottleneck and ``[plan]``.
        network: the teacher.
        traced: its graph.
        frames: uint8 ``[N, H, W, 3]`` to estimate bytes on.
        digest: of the teacher and the images: a choice made for the same is taken again.
        cache: where choices are kept.
        progress: told where it is, and what was chosen.
        task: what the outputs are, every output named.

    Returns:
        ``cut``, and for the manifest what it was chosen by.

    Raises:
        CutError: no cut could be measured; says what was against the first one.
    """
    tables = recipe.coding.tables
    described = b"\n".join([digest.encode(), *map(to_json, (recipe.input, recipe.bottleneck, recipe.plan))])
    if tables == "none":  # all packets have one size; what has learned tables is estimated in one way
        described += b"\nnone"
    if task is not None:
        described += b"\n" + to_json(task)
    file = cache / f"plan-{hashlib.sha256(described).hexdigest()[:16]}.json"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        macs = sum(value.macs for value in traced.values.values())
        cuts = [cut for cut in find_cuts(traced) if traced.larger_size is None or grows(traced, cut.node)]
        table = CutTable(recipe.teacher.model, recipe.input.size, traced.method, macs, 0, cuts)
        with torch.random.fork_rng(devices=[]):  # what is built after it starts as it would without it
            planner = Planner(
                table,
                traced,
                network,
                recipe.input,
                recipe.bottleneck,
                recipe.plan,
                progress,
                tables=tables,
                task=task,
            )
            found = _summary(planner.plan(frames, recipe.plan.link))
        with replacing(file) as out:
            out.write(json.dumps(found).encode())
    chosen: dict[str, Any] = json.loads(file.read_text())
    progress.note(f"cut: {chosen['cut']}, chosen for {chosen['link']}; {chosen['answer']}")
    return chosen


def _summary(plan: Plan) -> dict[str, Any]:
    best = plan.best_cut
    if best is None or best.way is None or best.estimate is None or plan.decision is None:
        reasons = [f"{row.cut.name}: {row.why_not}" for row in plan.cuts if row.why_not]
        raise CutError(f'[cut] at = "auto": no cut could be measured; {reasons[0] if reasons else "name one"}')
    return {
        "cut": best.cut.name,
        "answer": plan.decision.why,
        "pays": plan.decision.split,
        "link": str(plan.link),
        "machine": plan.machine,
        "slowdown": plan.settings.slowdown,
        "images": plan.images,
        "estimate": best.estimate.as_dict(),
        "ways": [way.as_dict() for way in plan.decision.ways],
        "left_out": {row.cut.name: row.why_not for row in plan.cuts if row.why_not},
    }


def with_cut(recipe: Recipe, name: str) -> Recipe:
    """The recipe, cut at ``name``."""
    return msgspec.structs.replace(recipe, cut=msgspec.structs.replace(recipe.cut, at=name))


def as_decided(recipe: Recipe, decided: dict[str, Any]) -> Recipe:
    """The recipe with what an earlier run's recipe (of its manifest) has in place of ``auto``."""
    if recipe.cut.at == AUTO:
        recipe = with_cut(recipe, decided["cut"]["at"])
    trunk = decided["bottleneck"].get("trunk")
    if getattr(recipe.bottleneck, "trunk", None) != AUTO or trunk is None:
        return recipe
    return msgspec.structs.replace(recipe, bottleneck=msgspec.structs.replace(recipe.bottleneck, trunk=trunk))
