"""The training loop: any preset's stages, on the CPU or a GPU, resumed after a kill where it was.

A step's images, levels and noise follow from the seed and the step's number alone, so a resumed run goes on exactly as
the uninterrupted one would have.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from narrowcast.compiler.bottlenecks import Batch, Bottleneck, Preset, Problem, Stage
from narrowcast.compiler.data import TrainingData
from narrowcast.compiler.errors import TrainingError
from narrowcast.compiler.progress import SILENT, Progress, Task
from narrowcast.compiler.recipe import TrainSettings
from narrowcast.transport.files import replacing

CHECKPOINT_SECONDS = 30.0
WARM_UP = 0.02
LAST_RATE = 0.02
MAX_GRADIENT_NORM = 1.0
SMOOTHING = 0.95


@dataclass
class Position:
    """Where a run is: ``step`` counts over all stages, ``in_stage`` within the current one."""

    stage: int = 0
    step: int = 0
    in_stage: int = 0


def train(
    bottleneck: Bottleneck,
    preset: Preset[Any],
    problem: Problem,
    settings: Any,
    data: TrainingData,
    schedule: TrainSettings,
    checkpoint: Path,
    progress: Progress = SILENT,
) -> None:
    """Calibrates and trains ``bottleneck`` in place, from ``checkpoint`` where that exists.

    Raises:
        TrainingError: the loss is no number, or the checkpoint belongs to another run.
    """
    bottleneck.to(problem.device)
    where = Position()
    saved = _load(checkpoint, problem.device) if checkpoint.exists() else None
    if saved is None:
        preset.calibrate(bottleneck, problem, settings, _endless(data, schedule.batch))
    else:
        where = Position(**saved["position"])
        _restore(bottleneck, saved["bottleneck"], checkpoint)
        progress.note(f"resuming at step {where.step} from {checkpoint}")
    stages = preset.stages(bottleneck, problem, settings)
    steps = [max(1, round(stage.share * schedule.images / schedule.batch)) for stage in stages]
    run = _Run(bottleneck, data, schedule, checkpoint, sum(steps))
    for number in range(where.stage, len(stages)):
        where.stage = number
        state = saved["optimizer"] if saved and where.in_stage else None
        with progress.task(f"training: {stages[number].name}", steps[number] * schedule.batch, "images") as task:
            run.stage(stages[number], steps[number], where, state, task)
        where.in_stage, saved = 0, None
        run.save(Position(number + 1, where.step, 0), None)
    bottleneck.eval()


class _Run:
    def __init__(
        self, bottleneck: Bottleneck, data: TrainingData, schedule: TrainSettings, checkpoint: Path, steps: int
    ) -> None:
        self.bottleneck = bottleneck
        self.data = data
        self.schedule = schedule
        self.checkpoint = checkpoint
        self.steps = max(1, steps)
        self.saved_at = time.monotonic()

    def stage(self, stage: Stage, steps: int, where: Position, state: Any, task: Task) -> None:
        optimizer = torch.optim.Adam([{"params": list(group.parameters)} for group in stage.groups])
        if state is not None:
            optimizer.load_state_dict(state)
        task.advance(where.in_stage * self.schedule.batch)
        smooth: dict[str, float] = {}
        while where.in_stage < steps:
            batch = self.data.batch(where.step, self.schedule.batch)
            figures = self._step(stage, optimizer, batch, where)
            for name, value in figures.items():
                smooth[name] = SMOOTHING * smooth.get(name, value) + (1 - SMOOTHING) * value
            where.step, where.in_stage = where.step + 1, where.in_stage + 1
            task.advance(self.schedule.batch, smooth)
            if time.monotonic() - self.saved_at > CHECKPOINT_SECONDS:
                self.save(where, optimizer)

    def _step(self, stage: Stage, optimizer: torch.optim.Adam, batch: Batch, where: Position) -> dict[str, float]:
        for trained, group in zip(optimizer.param_groups, stage.groups, strict=True):
            trained["lr"] = group.speed * self.schedule.learning_rate * rate_at(where.step / self.steps)
        self.bottleneck.train()
        loss = stage.loss(batch)
        if not torch.isfinite(loss.total):
            kept = f"; the last good state is in {self.checkpoint}" if self.checkpoint.exists() else ""
            raise TrainingError(
                f"the loss is {loss.total.item()} at step {where.step} (stage {stage.name!r}){kept}: "
                "try a smaller [train] learning_rate, and check [input] range, mean and std"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_([p for group in stage.groups for p in group.parameters], MAX_GRADIENT_NORM)
        optimizer.step()
        return {"loss": loss.total.item(), **loss.figures}

    def save(self, where: Position, optimizer: torch.optim.Adam | None) -> None:
        """Writes a checkpoint; the old one stays until the new one is whole on disk."""
        state = {
            "position": vars(where),
            "bottleneck": self.bottleneck.state_dict(),
            "optimizer": optimizer.state_dict() if optimizer is not None else None,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)  # to memory first: on a full disk it would give a RuntimeError about its own insides
        with replacing(self.checkpoint) as out:
            out.write(buffer.getbuffer())
        self.saved_at = time.monotonic()


def rate_at(done: float) -> float:
    """The learning rate, as a part of the first one, when ``done`` of the run is over: warm-up, then half a cosine."""
    if done < WARM_UP:
        return max(done, WARM_UP / 10) / WARM_UP
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def _endless(data: TrainingData, size: int) -> Iterator[Batch]:
    return (data.batch(step, size) for step in count())


def _load(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise TrainingError(f"the checkpoint {path} cannot be read ({error}); delete it to start anew") from error
    return state


def _restore(bottleneck: Bottleneck, state: dict[str, Any], path: Path) -> None:
    try:
        bottleneck.load_state_dict(state)
    except RuntimeError as error:
        raise TrainingError(f"the checkpoint {path} is of another run; delete it to start anew") from error
