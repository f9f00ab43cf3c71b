"""From a model or a recipe to its plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from narrowcast.compiler.bottlenecks import PRESETS, BottleneckSettings
from narrowcast.compiler.bottlenecks.base import TablesKind
from narrowcast.compiler.cuts import CutTable, find_cuts
from narrowcast.compiler.cuts.trace import Traced, grows, trace
from narrowcast.compiler.data import choose, find_sources, prepare_images
from narrowcast.compiler.planner.boards import OtherBoard
from narrowcast.compiler.planner.link import Link, PlanSettings
from narrowcast.compiler.planner.plan import Plan, Planner
from narrowcast.compiler.progress import SILENT, Progress, note_skipped
from narrowcast.compiler.recipe import DEFAULT_PRESET, Recipe, load_recipe
from narrowcast.compiler.tasks import named_task
from narrowcast.compiler.teacher import load_teacher
from narrowcast.transport.contract import InputContract
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.structs import from_mapping, nearest


def plan(
    model: str | Path | Recipe,
    *,
    data: str | Path | None = None,
    link: Link | None = None,
    settings: PlanSettings | None = None,
    weights: str | None = None,
    contract: InputContract | None = None,
    bottleneck: BottleneckSettings | None = None,
    cache: str | Path = ".narrowcast/cache",
    progress: Progress = SILENT,
    board: OtherBoard | None = None,
) -> Plan:
    """Times every part of a network at its cuts, estimates bytes, and tells which way of getting answers is the fastest.

    Args:
        model: a network as in :func:`narrowcast.compiler.cuts.cuts`, or a recipe (its file): that brings teacher, weights,
            input contract, bottleneck, images and ``[plan]`` along; what is given here goes before it.
        data: a folder of images; without any, no bytes are estimated.
        link: between board and server; without any, ways are not compared.
        settings: what to reckon with.
        weights: a state file for the network.
        contract: how images become its input; 224 x 224, pixels 0..1, where neither it nor a recipe says.
        bottleneck: the preset's settings; ``shallow-residual``'s own where neither it nor a recipe says.
        cache: a folder that keeps prepared images.
        progress: told where it is.
        board: one that is not this machine, calibrated or asked over ssh; see :mod:`narrowcast.compiler.planner.boards`.

    Raises:
        ConfigError, CompilerError: the network, the images or the settings cannot be used; says why.
    """
    if isinstance(model, Recipe) or str(model).endswith(".toml"):
        recipe = model if isinstance(model, Recipe) else load_recipe(Path(model))
        folder: Path | None = Path(recipe.folder)
        teacher = recipe.teacher
        part = teacher.part
        name, options, weights = teacher.model, teacher.options, weights or teacher.weights
        images: str | None = str(Path(recipe.folder, recipe.data.train) if data is None else data)
        contract, bottleneck, seed = contract or recipe.input, bottleneck or recipe.bottleneck, recipe.train.seed
        settings = settings or recipe.plan
        tables: TablesKind | None = recipe.coding.tables if type(bottleneck) is type(recipe.bottleneck) else None
        task = recipe.task
    else:
        folder, name, options, part, seed, tables, task = None, str(model), {}, None, 0, None, None
        images = None if data is None else str(data)
        contract, bottleneck = contract or InputContract(size=(224, 224)), bottleneck or preset_settings(DEFAULT_PRESET)
    settings = settings or PlanSettings()
    progress.note(f"tracing {name}")
    network = load_teacher(name, weights=weights, options=options, folder=folder, part=part)
    table, traced = traced_table(name, network, contract)
    task = named_task(network, task, contract.size, "[task]")
    planner = Planner(table, traced, network, contract, bottleneck, settings, progress, board, tables=tables, task=task)
    frames, skipped = None, list[str]()
    if images is not None:
        frames, skipped = _frames(images, contract, settings.images, seed, Path(cache), progress)
    found = planner.plan(frames, link)
    return replace(found, skipped=skipped) if skipped else found


def traced_table(name: str, network: nn.Module, contract: InputContract) -> tuple[CutTable, Traced]:
    """A network's cuts, and its graph.

    Raises:
        TraceError, CutError: it cannot be traced or cut.
    """
    free = contract.free
    traced = trace(network, contract.size, None if free is None else free.multiple)
    cuts = [cut for cut in find_cuts(traced) if free is None or grows(traced, cut.node)]
    macs, params = sum(value.macs for value in traced.values.values()), sum(p.numel() for p in network.parameters())
    return CutTable(name, contract.size, traced.method, macs, params, cuts), traced


def preset_settings(preset: str, **options: Any) -> BottleneckSettings:
    """A preset's settings, its own defaults where nothing else is given.

    Raises:
        ConfigError: no such preset, or it does not take an option.
    """
    if preset not in PRESETS:
        raise ConfigError(f"no preset {preset!r}{nearest(preset, sorted(PRESETS))}")
    return from_mapping(Recipe, _minimal({"preset": preset, **options}), "bottleneck").bottleneck


def _minimal(bottleneck: dict[str, Any]) -> dict[str, Any]:
    """The least recipe around a ``[bottleneck]``: its settings are read as they would be in any recipe."""
    return {
        "teacher": {"model": ""}, "data": {"train": ""}, "cut": {"at": ""}, "input": {"size": [1, 1]},
        "bottleneck": bottleneck,
    }  # fmt: skip


def _frames(
    images: str, contract: InputContract, count: int, seed: int, cache: Path, progress: Progress
) -> tuple[npt.NDArray[np.uint8], list[str]]:
    """At most ``count`` images of a folder or of shards, drawn by the seed, as the network takes them; and those skipped."""
    sources, problems = find_sources(images, Path())
    prepared = prepare_images(choose(sources, count, seed), contract, cache, progress)
    skipped = [*problems, *prepared.skipped]
    if skipped:
        note_skipped(progress, f"{len(skipped)} images, or shards, cannot be read (--json has all)", skipped)
    return np.ascontiguousarray(prepared.images[np.arange(len(prepared))]), skipped
