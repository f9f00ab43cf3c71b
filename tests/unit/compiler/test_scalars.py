"""Event files for TensorBoard, read back."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
import torch
from support.training import Bench, StopsAfter

from narrowcast.compiler import training
from narrowcast.compiler.job import Job
from narrowcast.compiler.progress import SILENT
from narrowcast.compiler.scalars import TensorBoard
from narrowcast.compiler.training import rate_at
from narrowcast.transport.errors import MissingDependencyError

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")


def events_in(folder: Path) -> list:
    """All events: records of a length (8 bytes), its checksum (4), the event, its checksum (4)."""
    found = []
    for file in sorted(folder.glob("events.out.tfevents.*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def series(folder: Path, tag: str) -> dict[int, float]:
    values = [(e.step, v.simple_value) for e in events_in(folder) for v in e.summary.value if v.tag == tag]
    assert len(dict(values)) == len(values)
    return dict(values)


def test_a_run_logs_every_steps_figures(recipe_for, tmp_path):
    job = Job(recipe_for(train={"images": 80, "tensorboard": True, "learning_rate": 2e-3}), tmp_path, SILENT)
    job.train()
    folder = job.folder / "tensorboard"
    rates = series(folder, "train/learning_rate")
    assert list(rates) == list(range(10))
    assert list(rates.values()) == pytest.approx([2e-3 * rate_at(step / 10) for step in range(10)], rel=1e-6)
    stages = list(series(folder, "train/stage").values())
    assert stages == sorted(stages)
    assert set(stages) == set(range(len(job.preset.stages(job.bottleneck, job.problem, job.recipe.bottleneck))))
    assert len(series(folder, "train/loss")) == 10
    assert next(iter(series(folder, "train/bytes"))) == next(iter(series(folder, "train/features"))) == 0
    assert next(iter(series(folder, "train/outputs"))) == next(iter(series(folder, "train/deep"))) == stages.index(1)
    assert all(value > 0 for value in series(folder, "train/images_per_second").values())
    assert len(series(folder, "train/images_per_second")) == 9
    job.train()  # finished: nothing is logged again
    assert len(series(folder, "train/loss")) == 10


def test_only_who_asks_for_them_gets_them(recipe_for, tmp_path):
    job = Job(recipe_for(train={"images": 16}), tmp_path, SILENT)
    job.train()
    assert not (job.folder / "tensorboard").exists()
    assert Job(recipe_for(train={"images": 16, "tensorboard": True}), tmp_path, SILENT).folder == job.folder


def test_a_resumed_run_takes_back_what_was_logged_behind_its_checkpoint(recipe_for, tmp_path, monkeypatch):
    def run(preset=None) -> None:
        bench = Bench(recipe_for(train={"images": 80}), tmp_path)
        scalars = TensorBoard(tmp_path / "events")
        try:
            training.train(
                bench.net, preset(bench.preset) if preset else bench.preset, bench.problem, bench.recipe.bottleneck,
                bench.data, bench.recipe.train, bench.checkpoint, scalars=scalars,
            )  # fmt: skip
        finally:
            scalars.close()

    with pytest.raises(InterruptedError):
        run(lambda preset: StopsAfter(preset, 6))
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["position"]["step"] == 2  # the first stage's end
    run()
    steps = [
        event.step for event in events_in(tmp_path / "events") for v in event.summary.value if v.tag == "train/loss"
    ]
    assert steps == [*range(6), *range(2, 10)]
    starts = [e.step for e in events_in(tmp_path / "events") if e.session_log.status == e.session_log.START]
    assert starts[-1] == 2  # TensorBoard forgets what has this step or a later one and came before


def test_without_the_library_it_says_what_to_install(recipe_for, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingDependencyError, match=r"tensorboard needs tensorboardX.*narrowcast\[tensorboard\]"):
        Job(recipe_for(train={"tensorboard": True}), tmp_path, SILENT)
