"""Images seen mirrored too: which, when, and with what the teacher says of them then."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.training import Bench

from narrowcast.compiler.data import TrainingData, find_images, prepare_images
from narrowcast.compiler.errors import TeacherError
from narrowcast.compiler.job import Job
from narrowcast.compiler.progress import SILENT


def flipping(bench: Bench, **keys) -> TrainingData:
    return TrainingData(bench.prepared, bench.data.indices, bench.problem, 0, flips=True, **keys)


def test_two_passes_show_every_image_both_ways(recipe_for, tmp_path):
    bench = Bench(recipe_for(), tmp_path)
    data, count, images = flipping(bench), len(bench.data.indices), len(bench.prepared)
    passes = [data._drawn(number, count, 0, 1) for number in range(4)]
    for number, rows in enumerate(passes):  # the same images in the same order as without flips
        assert (rows % images).tolist() == bench.data._drawn(number, count, 0, 1).tolist()
    for pair in (passes[:2], passes[1:3], passes[2:]):
        wanted = [*data.indices.tolist(), *(data.indices + images).tolist()]
        assert sorted(np.concatenate(pair).tolist()) == sorted(wanted)
    assert 0 < int((passes[0] >= images).sum()) < count
    again = flipping(bench)
    assert again._drawn(3, count, 0, 1).tolist() == passes[3].tolist()  # wherever it goes on


@pytest.mark.parametrize("cached", [False, True])
def test_a_mirrored_view_has_the_teachers_features_of_the_mirrored_image(recipe_for, tmp_path, cached):
    bench = Bench(recipe_for(), tmp_path)
    images = len(bench.prepared)
    data = flipping(bench, labels=np.arange(images))
    if cached:
        assert data.cache_features(tmp_path, "digest", 1e9, SILENT)
    seen = data.rows(np.array([5, images + 5, images + 9]))
    assert torch.equal(seen.images[0].flip(1), seen.images[1])
    assert seen.labels.tolist() == [5, 5, 9]
    wanted = bench.problem.before(bench.problem.normalize(seen.images))
    assert torch.allclose(seen.features, wanted, atol=1e-2)
    assert not torch.allclose(seen.features[0], seen.features[1], atol=1e-2)


def test_features_of_both_ways_are_a_cache_of_their_own(recipe_for, tmp_path):
    bench = Bench(recipe_for(), tmp_path)
    plain, both = bench.data, flipping(bench)
    for data in (plain, both):
        assert data.cache_features(tmp_path, "digest", 1e9, SILENT)
    small, large = sorted(file.stat().st_size for file in tmp_path.glob("features-*.f16"))
    assert large == 2 * small
    assert not flipping(bench).cache_features(tmp_path, "digest", small + 1, SILENT)


def test_kept_targets_are_those_of_the_view(recipe_for, tmp_path):
    bench = Bench(recipe_for(), tmp_path)
    data = flipping(bench)
    data.cache_features(tmp_path, "digest", 1e9, SILENT)
    (*_, stage) = bench.preset.stages(bench.net, bench.problem, bench.recipe.bottleneck)
    assert data.cache_targets(stage.name, stage.targets, tmp_path, "digest", 1e9, SILENT)
    batch = data.rows(np.array([3, len(bench.prepared) + 3]), stage=stage.name)
    assert torch.allclose(batch.targets[1], bench.problem.after(batch.features), atol=0.02)


def test_streamed_images_are_mirrored_too(photo_folder, recipe_for, tmp_path):
    bench = Bench(recipe_for(), tmp_path)
    streamed = prepare_images(find_images(photo_folder), bench.recipe.input, tmp_path / "none", limit_bytes=0)
    data = TrainingData(streamed, bench.data.indices, bench.problem, 0, flips=True)
    for step in range(9):  # passes are of 5.6 steps
        assert torch.equal(data.batch(step, 8).images, flipping(bench).batch(step, 8).images)


def test_features_that_are_no_numbers_name_the_image_of_the_view(recipe_for, tmp_path):
    bench = Bench(recipe_for(), tmp_path)
    bench.problem.before = lambda images: torch.full((len(images), 1), float("nan"))
    rows = np.array([len(bench.prepared) + 7])
    with pytest.raises(TeacherError, match=str(bench.prepared.sources[7])):
        flipping(bench).rows(rows)


def test_a_run_with_flips_is_another_run_and_resumes_as_one(recipe_for, tmp_path):
    train = {"images": 120, "device": "cpu"}
    plain = Job(recipe_for(train=train), tmp_path, SILENT)
    flips = Job(recipe_for(train={**train, "flips": True}), tmp_path, SILENT)
    assert flips.folder != plain.folder
    for job in (plain, flips):
        job.train()
    first, second = (job.bottleneck.state_dict() for job in (plain, flips))
    assert any(not torch.equal(value, second[name]) for name, value in first.items())
    again = Job(recipe_for(train={**train, "flips": True}), tmp_path, SILENT)
    again.train()
    assert all(torch.equal(value, second[name]) for name, value in again.bottleneck.state_dict().items())
