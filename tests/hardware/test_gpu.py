"""Training on a GPU: the same recipe gives a bundle that works, made there."""

from __future__ import annotations

import pytest
import torch
from support import bundles

from narrowcast.compiler.compile import compile as compile_recipe
from narrowcast.compiler.evaluate import evaluate
from narrowcast.transport.bundle import Bundle

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU on this machine")


@needs_gpu
def test_a_bundle_is_trained_on_the_gpu_and_verified_on_the_cpu(recipe_for, photo_folder, tmp_path):
    recipe = recipe_for(train={"device": "cuda"})
    torch.cuda.reset_peak_memory_stats()
    compiled = compile_recipe(recipe, tmp_path / "gpu.ncb", key=bundles.KEY, work=tmp_path / "work")
    assert torch.cuda.max_memory_allocated() > 0
    assert compiled.verified.moved_symbols <= 1e-4
    bundle = Bundle.open(tmp_path / "gpu.ncb", trusted=[bundles.KEY.public])
    split = evaluate(bundle, photo_folder).of("split")
    assert len(split) == 3
    assert all(score.output_error < 1 for score in split)


@needs_gpu
def test_auto_takes_the_gpu(recipe_for, tmp_path):
    torch.cuda.reset_peak_memory_stats()
    compile_recipe(recipe_for(), tmp_path / "auto.ncb", key=bundles.KEY, work=tmp_path / "work")
    assert torch.cuda.max_memory_allocated() > 0


@needs_gpu
def test_further_tails_behind_the_teachers_own_trunk(recipe_for, tmp_path):
    """The trunk is the teacher's: training a tail on the GPU must leave it where the next step looks for it."""
    tail = {"name": "other", "model": recipe_for().teacher.model, "images": 80}
    recipe = recipe_for(bottleneck={"trunk": "teacher"}, train={"device": "cuda"}, tails=[tail])
    compile_recipe(recipe, tmp_path / "two.ncb", key=bundles.KEY, work=tmp_path / "work")
    assert [one.name for one in Bundle.open(tmp_path / "two.ncb", trusted=[bundles.KEY.public]).manifest.tails] == [
        "other"
    ]
