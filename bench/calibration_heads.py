"""Heads to predict: timm networks, cut, behind the presets' encoders, as they are exported for bundles."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from timm_import import import_timm

from narrowcast.compiler.bottlenecks import PRESETS, Problem
from narrowcast.compiler.errors import CompilerError
from narrowcast.compiler.export import export_head
from narrowcast.compiler.modules import Head
from narrowcast.compiler.planner.entry import preset_settings, traced_table
from narrowcast.compiler.planner.plan import planned_cuts
from narrowcast.compiler.planner.trunk import trunks_of
from narrowcast.compiler.precision import to_int8
from narrowcast.compiler.teacher import load_teacher
from narrowcast.transport.contract import InputContract
from narrowcast.transport.selfcheck import reference_frames

# A network, the sides of its input, and the parts of its cuts (0 the first, 1 the last) that are looked at.
NETWORKS = (
    ("resnet18", 224, (0.1, 0.5)),
    ("mobilenetv2_100", 224, (0.3, 0.6)),
    ("mobilenetv3_small_100", 160, (0.4, 0.7)),
    ("efficientnet_b0", 224, (0.25, 0.5)),
    ("regnetx_002", 224, (0.5,)),
    ("convnext_atto", 224, (0.3,)),
    ("resnet50", 288, (0.2,)),
    ("vit_tiny_patch16_224", 224, (0.2,)),
)
PRESET_NAMES = ("shallow-residual", "bottlefit", "entropic-student")


def heads(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and ONNX of every head, in fp32 and in INT8; made once and kept in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "complete").exists():
        import_timm()
        for network, side, parts in NETWORKS:
            _make(folder, network, side, parts)
        (folder / "complete").touch()
    for path in sorted(folder.glob("*.onnx")):
        yield path.stem, path.read_bytes()


def _make(folder: Path, name: str, side: int, parts: tuple[float, ...]) -> None:
    contract = InputContract(size=(side, side))
    torch.manual_seed(0)
    table, traced = traced_table(name, load_teacher(f"timm:{name}"), contract)
    cuts = planned_cuts(table)
    known: set[tuple[object, ...]] = set()
    for number, part in enumerate(parts):
        cut = cuts[round(part * (len(cuts) - 1))]
        problem = Problem(traced, cut, contract, torch.device("cpu"))
        for preset in PRESET_NAMES if number == 0 else PRESET_NAMES[:1]:
            for trunk, settings in trunks_of(preset_settings(preset)).items():
                try:
                    bottleneck = PRESETS[preset].build(problem, settings).eval()
                    head = export_head(Head(problem.normalize, bottleneck).eval(), contract.size, bottleneck.levels)
                except CompilerError as error:
                    print(f"left out: {name}, {cut.name}, {preset} {trunk}: {error}")
                    continue
                key = (preset, trunk, len(head), tuple(bottleneck.shape))
                if key in known:
                    continue
                known.add(key)
                stem = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{name}-{cut.name}-{preset}-{trunk or 'own'}")
                (folder / f"{stem}-fp32.onnx").write_bytes(head)
                if trunk != "teacher" and number == 0:
                    frames = np.asarray(reference_frames(contract.size, 4))
                    try:
                        (folder / f"{stem}-int8.onnx").write_bytes(to_int8(head, frames, symmetric=False))
                    except CompilerError as error:
                        print(f"left out: {stem} in INT8: {error}")
