"""The learned layers on either side of the wire, by preset."""

from __future__ import annotations

from typing import Any

from narrowcast.compiler.bottlenecks.base import (
    Batch,
    Bottleneck,
    Group,
    Loss,
    Optimizer,
    Preset,
    Problem,
    Stage,
    Targets,
)
from narrowcast.compiler.bottlenecks.bottlefit import BottleFitPreset, BottleFitSettings
from narrowcast.compiler.bottlenecks.codebook import CodebookPreset, CodebookSettings
from narrowcast.compiler.bottlenecks.entropic_student import EntropicStudentPreset, EntropicStudentSettings
from narrowcast.compiler.bottlenecks.plain import Plain, PlainSettings
from narrowcast.compiler.bottlenecks.shallow_residual import ShallowResidualPreset, ShallowResidualSettings

__all__ = [
    "PRESETS",
    "Batch",
    "Bottleneck",
    "BottleneckSettings",
    "Group",
    "Loss",
    "Optimizer",
    "Preset",
    "Problem",
    "Stage",
    "Targets",
]

PRESETS: dict[str, Preset[Any]] = {
    preset.name: preset
    for preset in (Plain(), BottleFitPreset(), EntropicStudentPreset(), ShallowResidualPreset(), CodebookPreset())
}
BottleneckSettings = (
    PlainSettings | BottleFitSettings | EntropicStudentSettings | ShallowResidualSettings | CodebookSettings
)
