"""Training runs of a few steps, for tests of the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from narrowcast.compiler.bottlenecks import PRESETS, Problem
from narrowcast.compiler.cuts import find_cut
from narrowcast.compiler.cuts.trace import trace
from narrowcast.compiler.data import TrainingData, find_images, prepare_images, split_holdout
from narrowcast.compiler.progress import SILENT
from narrowcast.compiler.teacher import load_teacher
from narrowcast.compiler.training import train


class Notes:
    """Progress that keeps what it is told."""

    def __init__(self, lines: list[str]) -> None:
        self.note = lines.append
        self.task = SILENT.task


class Bench:
    """Everything that a training run needs, small."""

    def __init__(self, recipe, work: Path) -> None:
        torch.manual_seed(0)
        self.recipe = recipe
        network = load_teacher(recipe.teacher.model)
        traced = trace(network, recipe.input.size)
        self.problem = Problem(traced, find_cut(traced, recipe.cut.at), recipe.input, torch.device("cpu"))
        self.prepared = prepare_images(find_images(Path(recipe.data.train)), recipe.input, work / "cache")
        seen, _ = split_holdout(len(self.prepared), recipe.data.holdout, 0)
        self.data = TrainingData(self.prepared, seen, self.problem, 0)
        self.preset = PRESETS[recipe.bottleneck.__struct_config__.tag]
        self.net = self.preset.build(self.problem, recipe.bottleneck)
        self.checkpoint = work / "checkpoint.pt"

    def train(self, preset=None, notes: list[str] | None = None) -> dict[str, torch.Tensor]:
        chosen, recipe = preset or self.preset, self.recipe
        progress = SILENT if notes is None else Notes(notes)
        train(self.net, chosen, self.problem, recipe.bottleneck, self.data, recipe.train, self.checkpoint, progress)
        return {name: value.clone() for name, value in self.net.state_dict().items()}


class StopsAfter:
    """A preset that is killed after so many steps."""

    def __init__(self, preset, steps: int) -> None:
        self.preset, self.left = preset, steps

    def __getattr__(self, name):
        return getattr(self.preset, name)

    def stages(self, *args):
        def counted(loss):
            def step(batch):
                if self.left == 0:
                    raise InterruptedError
                self.left -= 1
                return loss(batch)

            return step

        stages = self.preset.stages(*args)
        return [replace(stage, loss=counted(stage.loss)) for stage in stages]


PAPERS = {
    "bottlefit": {"preset": "bottlefit", "channels": 6, "decoder_width": 8, "calibration_images": 16},
    "entropic-student": {"preset": "entropic-student", "channels": 6, "decoder_width": 8, "beta": 1e-3},
}
