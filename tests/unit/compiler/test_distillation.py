"""Distillation targets are computed once, kept, and are what the teacher would have said at the step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from narrowcast.compiler import distillation
from narrowcast.compiler.bottlenecks import Targets
from narrowcast.compiler.distillation import TARGET_BATCH, keep_targets
from narrowcast.compiler.progress import SILENT

CPU = torch.device("cpu")
COUNT = TARGET_BATCH + 9
FEATURES = np.random.default_rng(0).normal(size=(COUNT, 4, 3, 2)).astype(np.float16)


class Counting:
    """Deep features and outputs of an image, and how many images have been asked for."""

    def __init__(self, factor: float = 1.0) -> None:
        self.images = 0
        self.factor = factor

    def __call__(self, features):
        self.images += len(features)
        return [self.factor * features, features.mean(1)], {"scores": features.flatten(1)[:, :5]}


def kept(folder, compute, limit_bytes=1e9):
    return keep_targets(Targets("all", compute), FEATURES, folder / "targets", limit_bytes, CPU, SILENT)


def test_they_come_back_nested_by_image(tmp_path):
    rows = np.array([COUNT - 1, 0, 3, 0])
    deep, outputs = kept(tmp_path, Counting()).of(rows)
    wanted_deep, wanted_outputs = Counting()(torch.from_numpy(FEATURES[rows].astype(np.float32)))
    assert torch.equal(deep[0], wanted_deep[0])
    assert torch.allclose(deep[1], wanted_deep[1], rtol=1e-3, atol=1e-5)
    assert torch.equal(outputs["scores"], wanted_outputs["scores"])


def test_a_disk_that_they_would_fill_gets_none_of_them(tmp_path, monkeypatch):
    needed = COUNT * 2 * (24 + 6 + 5)
    for free, there in ((needed * 2 - 1, False), (needed * 2, True), (0, True)):  # what is there takes nothing more
        monkeypatch.setattr(distillation.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert (kept(tmp_path, Counting()) is not None) is there


def test_they_are_computed_once(tmp_path):
    first, again = Counting(), Counting()
    kept(tmp_path, first)
    kept(tmp_path, again)
    assert (first.images, again.images) == (COUNT + 1, 1)  # one image tells their shapes
    path = tmp_path / "targets.f16"
    path.write_bytes(path.read_bytes()[:-2])  # cut short
    kept(tmp_path, again)
    assert again.images == COUNT + 2


@pytest.mark.parametrize(
    ("compute", "limit_bytes"),
    [
        (Counting(), COUNT * 2 * (24 + 6 + 5) - 1),
        (Counting(1e5), 1e9),
        (Counting(float("nan")), 1e9),
        (lambda features: features.argmax(1), 1e9),
        (lambda features: features.mean(), 1e9),
    ],
    ids=["no room", "too large for float16", "no numbers", "not floating", "not by image"],
)
def test_what_cannot_be_kept_is_computed_at_every_step(tmp_path, compute, limit_bytes):
    assert kept(tmp_path, compute, limit_bytes) is None
    assert kept(tmp_path, compute, limit_bytes) is None  # and the second time
    assert not (tmp_path / "targets.f16").exists()
