"""The training loop: any preset's stages, on the CPU or a GPU, resumed after a kill where it was.

A step's images, levels and noise follow from the seed, the step's number and the process's alone, so a resumed run goes on
exactly as the uninterrupted one would have. Processes that train together (``workers.py``) divide each step's images.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric

from narrowcast.compiler.bottlenecks import Batch, Bottleneck, Optimizer, Preset, Problem, Stage
from narrowcast.compiler.data import TrainingData
from narrowcast.compiler.errors import TrainingError
from narrowcast.compiler.fabric import has_bf16, open_fabric, resolve_precision
from narrowcast.compiler.progress import SILENT, Progress, Task
from narrowcast.compiler.recipe import TrainSettings
from narrowcast.compiler.scalars import NoScalars, Scalars
from narrowcast.compiler.sharing import add_up, agree, take_first
from narrowcast.transport.files import replacing

CHECKPOINT_SECONDS = 30.0
WARM_UP = 0.02
LAST_RATE = 0.02
DECAY = 0.1
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
    fabric: Fabric | None = None,
    scalars: Scalars | None = None,
    start: Path | None = None,
) -> None:
    """Calibrates and trains ``bottleneck`` in place, from ``checkpoint`` where that exists.

    ``fabric`` tells of the processes that train together; None trains in this one alone. ``scalars`` gets every step's
    figures. ``start`` is another run's checkpoint, whose weights stand in for calibration.

    Raises:
        TrainingError: the loss or its gradient is no number, or the checkpoint belongs to another run.
    """
    bottleneck.to(problem.device)
    precision = resolve_precision(schedule.precision, problem.device)
    if precision == "bf16" and not has_bf16(problem.device):
        progress.note(f"{problem.device} has no bfloat16 instructions: bf16 will be slower than fp32")
    fabric = fabric or open_fabric(problem.device, precision)
    where = Position()
    saved = load_checkpoint(checkpoint, problem.device) if checkpoint.exists() else None
    if saved is None and start is not None:
        _start_from(bottleneck, load_checkpoint(start, problem.device)["bottleneck"], start)
    elif saved is None:
        preset.calibrate(bottleneck, problem, settings, _endless(data, schedule.batch))
    else:
        where = Position(**saved["position"])
        _restore(bottleneck, saved["bottleneck"], checkpoint)
    stages = preset.stages(bottleneck, problem, settings)
    if saved is not None and where.stage < len(stages):
        progress.note(f"resuming at step {where.step} from {checkpoint}")
    before = saved.get("processes", 1) if saved else fabric.world_size
    if before != fabric.world_size and where.stage < len(stages):
        progress.note(f"{before} processes trained it so far, now {fabric.world_size}: other noise, as good a result")
    steps = [max(1, round(stage.share * schedule.images / schedule.batch)) for stage in stages]
    kept = _kept_targets(saved, stages[where.stage :], data, progress)
    run = _Run(fabric, bottleneck, data, schedule, checkpoint, sum(steps), scalars or NoScalars(), kept)
    for number in range(where.stage, len(stages)):
        where.stage = number
        prepare = stages[number].prepare
        if prepare is not None and where.in_stage == 0:
            prepare(_endless(data, schedule.batch))
        agree(fabric, bottleneck)
        state = saved["optimizer"] if saved and where.in_stage else None
        with progress.task(f"training: {stages[number].name}", steps[number] * schedule.batch, "images") as task:
            run.stage(stages[number], steps[number], where, state, task)
        where.in_stage, saved = 0, None
        run.save(Position(number + 1, where.step, 0), None)
    if saved is None and not stages:  # what was calibrated is what was made: `--retune` and sweeps look for a run
        run.save(where, None)
    bottleneck.eval()


class _Run:
    def __init__(
        self,
        fabric: Fabric,
        bottleneck: Bottleneck,
        data: TrainingData,
        schedule: TrainSettings,
        checkpoint: Path,
        steps: int,
        scalars: Scalars,
        kept: dict[str, bool],
    ) -> None:
        self.fabric = fabric
        self.bottleneck = bottleneck
        self.data = data
        self.schedule = schedule
        self.checkpoint = checkpoint
        self.steps = max(1, steps)
        self.scalars = scalars
        self.kept = kept
        self.saved_at = time.monotonic()

    def stage(self, stage: Stage, steps: int, where: Position, state: Any, task: Task) -> None:
        optimizer = _optimizer(stage)
        if state is not None:
            optimizer.load_state_dict(state)
        task.advance(where.in_stage * self.schedule.batch)
        smooth: dict[str, float] = {}
        targets_of = stage.name if self.kept.get(stage.name) else ""
        while where.in_stage < steps:
            batch = self.data.batch(
                where.step, self.schedule.batch, self.fabric.global_rank, self.fabric.world_size, targets_of
            )
            rate = _rate(stage.optimizer, where.in_stage / steps, where.step / self.steps)
            figures = self._step(stage, optimizer, batch, where, rate)
            rates = {"learning_rate": rate * self.schedule.learning_rate, "stage": where.stage}
            self.scalars.write(where.step, {**figures, **rates}, self.schedule.batch)
            for name, value in figures.items():
                smooth[name] = SMOOTHING * smooth.get(name, value) + (1 - SMOOTHING) * value
            where.step, where.in_stage = where.step + 1, where.in_stage + 1
            task.advance(self.schedule.batch, smooth)
            if time.monotonic() - self.saved_at > CHECKPOINT_SECONDS:
                self.save(where, optimizer)

    def _step(
        self, stage: Stage, optimizer: torch.optim.Optimizer, batch: Batch, where: Position, rate: float
    ) -> dict[str, float]:
        for tuned, group in zip(optimizer.param_groups, stage.groups, strict=True):
            tuned["lr"] = group.speed * self.schedule.learning_rate * rate
        self.bottleneck.train()
        with self.fabric.autocast():
            loss = stage.loss(batch)
        self._must_be_finite("loss", loss.total.detach(), stage, where)
        part = len(batch.features) / self.schedule.batch
        optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss.total if stage.over_images == "sum" else loss.total * part)
        whole = loss.total.item() * (part if stage.over_images == "mean" else 1)
        trained = [p for group in stage.groups for p in group.parameters]
        shares = {"loss": whole, **{name: value * part for name, value in loss.figures.items()}}
        figures = add_up(self.fabric, trained, shares)
        norm = torch.nn.utils.get_total_norm(p.grad for p in trained if p.grad is not None)
        self._must_be_finite("gradient's norm", norm, stage, where)
        if stage.optimizer.max_gradient_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(trained, stage.optimizer.max_gradient_norm, norm)
        optimizer.step()
        take_first(self.fabric, self.bottleneck.moving())
        return figures

    def _must_be_finite(self, what: str, value: torch.Tensor, stage: Stage, where: Position) -> None:
        """Looked at before any weight is changed by it, so that no checkpoint ever holds what came of it."""
        kept = f"; the last good state is in {self.checkpoint}" if self.checkpoint.exists() else ""
        must_be_finite(
            what, value, f"step {where.step} (stage {stage.name!r}){kept}",
            "try a smaller [train] learning_rate, and check [input] range, mean and std",
        )  # fmt: skip

    def save(self, where: Position, optimizer: torch.optim.Optimizer | None) -> None:
        """Writes a checkpoint, in process 0; the old one stays until the new one is whole on disk."""
        self.saved_at = time.monotonic()
        if self.fabric.global_rank != 0:
            return
        state = {
            "processes": self.fabric.world_size,
            "position": vars(where),
            "kept_targets": self.kept,
            "bottleneck": self.bottleneck.state_dict(),
            "optimizer": optimizer.state_dict() if optimizer is not None else None,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)  # to memory first: on a full disk it would give a RuntimeError about its own insides
        with replacing(self.checkpoint) as out:
            out.write(buffer.getbuffer())


def must_be_finite(what: str, value: torch.Tensor, where: str, advice: str) -> None:
    """Ends training whose loss or gradient is no number.

    Args:
        what: it is.
        value: its one number.
        where: the run is.
        advice: what to do about it.

    Raises:
        TrainingError: it is no number.
    """
    if not torch.isfinite(value):
        raise TrainingError(f"the {what} is {value.item()} at {where}: {advice}")


def _kept_targets(
    saved: dict[str, Any] | None, stages: Sequence[Stage], data: TrainingData, progress: Progress
) -> dict[str, bool]:
    """By stage: whether its targets come from what is kept of them.

    Those that are kept were rounded to float16, those computed at a step were not: a run goes on as it began, though there
    may be more room by now, or less.
    """

    def there(stage: Stage) -> bool:
        return stage.targets is not None and data.rows(np.zeros(1, np.int64), stage=stage.name).targets is not None

    now = {stage.name: there(stage) for stage in stages}
    begun: dict[str, bool] = now if saved is None else saved.get("kept_targets", now)
    gone = [name for name, is_there in now.items() if begun.get(name) and not is_there]
    if gone:
        progress.note(
            f"the teacher's answers for {gone[0]!r} were kept, and now are not: other rounding, as good a result"
        )
    return begun


def is_finished(checkpoint: Path, stages: int) -> bool:
    """Whether ``checkpoint`` is of a run that has all its ``stages`` behind it.

    Raises:
        TrainingError: it cannot be read.
    """
    if not checkpoint.exists():
        return False
    return bool(load_checkpoint(checkpoint, torch.device("cpu"))["position"]["stage"] >= stages)


def rate_at(done: float) -> float:
    """The learning rate, as a part of the first one, when ``done`` of the run is over: warm-up, then half a cosine."""
    if done < WARM_UP:
        return max(done, WARM_UP / 10) / WARM_UP
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP)))


def _rate(optimizer: Optimizer, done_of_stage: float, done_of_run: float) -> float:
    """The learning rate as a part of the first one: by the stage's own steps down, or by the run's curve."""
    if optimizer.decays is None:
        return rate_at(done_of_run)
    return DECAY ** sum(done_of_stage >= decay for decay in optimizer.decays)


def _optimizer(stage: Stage) -> torch.optim.Optimizer:
    groups = [{"params": list(group.parameters)} for group in stage.groups]
    how = stage.optimizer
    if how.kind == "adam":
        return torch.optim.Adam(groups, weight_decay=how.weight_decay)
    return torch.optim.SGD(groups, momentum=how.momentum, weight_decay=how.weight_decay)


def _endless(data: TrainingData, size: int) -> Iterator[Batch]:
    return (data.batch(step, size) for step in count())


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """What :func:`train` wrote; ``bottleneck`` is the module's state.

    Raises:
        TrainingError: it cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise TrainingError(f"the checkpoint {path} cannot be read ({error}); delete it to start anew") from error
    return state


def _start_from(bottleneck: Bottleneck, state: dict[str, Any], path: Path) -> None:
    try:
        bottleneck.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise TrainingError(f"training cannot start from {path}, a bottleneck of another shape: {first}") from error
    bottleneck.start_over()


def _restore(bottleneck: Bottleneck, state: dict[str, Any], path: Path) -> None:
    try:
        bottleneck.load_state_dict(state)
    except RuntimeError as error:
        raise TrainingError(f"the checkpoint {path} is of another run; delete it to start anew") from error
