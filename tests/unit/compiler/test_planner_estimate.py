"""The quantizer's bisection, entropies and information, answers that are kept, and images that are sent."""

from __future__ import annotations

import errno
import math
import os

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from narrowcast.compiler.errors import CutError
from narrowcast.compiler.layout import layout_of
from narrowcast.compiler.planner.answers import Answers
from narrowcast.compiler.planner.capture import _on_disk
from narrowcast.compiler.planner.images import raw_image, sent_images
from narrowcast.compiler.planner.quantize import RESOLUTION, PatchTransform, coarsest, entropy_bits
from narrowcast.compiler.progress import SILENT


def test_the_entropy_of_known_symbols():
    assert entropy_bits(torch.tensor([0, 1, 2, 3] * 5000)) == pytest.approx(2, abs=1e-3)
    assert entropy_bits(torch.full((100,), -7)) == 0
    assert entropy_bits(torch.tensor([-3] * 3000 + [900] * 1000)) == pytest.approx(0.8113, abs=1e-3)
    assert entropy_bits([]) == 0


def test_few_samples_do_not_make_the_entropy_small():
    """Of 64 symbols with 5 bits each, 100 samples alone would show about 4.75 bits."""
    generator = torch.Generator().manual_seed(0)
    drawn = [entropy_bits(torch.randint(32, (100,), generator=generator)) for _ in range(50)]
    assert np.mean(drawn) == pytest.approx(5, abs=0.1)


def transform_of(features, stride=4, rows=32):
    layout = layout_of(tuple(features.shape[1:]), (rows, rows))
    return PatchTransform(lambda: iter([(0, features)]), layout, rows, stride)


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 15, 13), (16, 16, 5), (50, 12), (24,)])
def test_the_transform_goes_there_and_back(shape):
    features = torch.randn(8, *shape, generator=torch.Generator().manual_seed(1))
    transform = transform_of(features)
    assert torch.allclose(transform.back(transform.forward(features)), features, atol=1e-4)


def test_the_transform_takes_patches_of_the_latents_grid():
    assert transform_of(torch.randn(40, 3, 16, 16), stride=8).patch == 4
    assert transform_of(torch.randn(40, 3, 16, 16), stride=2).patch == 1
    assert transform_of(torch.randn(4, 300, 16, 16), stride=16).patch == 1  # 2 x 2 would be 1,200 numbers


def test_principal_components_need_enough_patches():
    """Components of 6 vectors would describe those vectors, not the features: entropy 0 for nearly all of them."""
    features = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    components = transform_of(features).forward(features)[..., 0]
    wanted = features - features.mean(0)
    assert torch.allclose(components.abs().sort(1).values, wanted.abs().sort(1).values, atol=1e-5)  # in another order


def gaussian(count=64, seed=0):
    """Features of 4 independent channels with standard deviations 8, 4, 2, 1, mixed by a rotation."""
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator))
    values = torch.randn(count, 16, 16, 4, generator=generator) * torch.tensor([8.0, 4, 2, 1])
    return (values @ rotation).permute(0, 3, 1, 2).contiguous()


def test_the_coarsest_step_is_the_one_where_answers_begin_to_go():
    """Answers that stay as long as the squared error is below that of a step of 1: steps up to about 1 keep all of them."""
    features = gaussian()
    transform = transform_of(features, stride=1, rows=16)

    def kept(restored, start):
        error = (restored - features[start : start + len(restored)]).square().mean()
        return float(len(restored)) if error <= 1 / 12 else 0.0

    code = coarsest(lambda: iter([(0, features[:32]), (32, features[32:])]), transform, kept, 64, 0.97)
    assert 2**-RESOLUTION <= code.step <= 1.05
    assert code.kept == 1
    # Entropy of a Gaussian in steps: h(sigma) - log2(step), summed over the channels (256 cells).
    wanted = sum(0.5 * math.log2(2 * math.pi * math.e * s * s) - math.log2(code.step) for s in (8, 4, 2, 1)) * 256 / 8
    assert code.entropy_bytes == pytest.approx(wanted, rel=0.03)
    noise = code.step**2 / 12
    wanted = sum(0.5 * math.log2(1 + s * s / noise) for s in (8, 4, 2, 1)) * 256 / 8
    assert code.information_bytes == pytest.approx(wanted, rel=0.05)
    assert code.relative_error == pytest.approx(noise / np.mean([64, 16, 4, 1]), rel=0.1)


def test_a_part_of_the_answers_may_go():
    """Image k keeps its answer up to a step of 2 ** (k / 8): 75 % of 64 images are kept up to k = 16."""
    features = gaussian()
    transform = transform_of(features, stride=1, rows=16)

    def kept(restored, start):
        error = (restored - features[start : start + len(restored)]).square().mean((1, 2, 3))
        limits = torch.tensor([2 ** (k / 8) for k in range(start, start + len(restored))]).square() / 12
        return float((error <= limits).sum())

    code = coarsest(lambda: iter([(0, features)]), transform, kept, 64, 0.75)
    assert code.kept >= 0.75
    assert 2 ** (2 - 3 * RESOLUTION) <= code.step <= 2 ** (2 + 2 * RESOLUTION)


def test_what_no_output_follows_is_not_paid_for():
    """Two of four mixed channels reach the outputs: where gradients tell so, the others take no bytes."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(64, 4, 16, 16, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator))
    used = rotation[:2]
    layout = layout_of((4, 16, 16), (16, 16))

    def kept(restored, start):
        error = torch.einsum("kc,nchw->nkhw", used, restored - features[start : start + len(restored)])
        return float(len(restored)) if error.square().mean() <= 0.01 else 0.0

    def gradients():
        yield 0, torch.einsum("nkhw,kc->nchw", torch.randn(64, 2, 16, 16, generator=generator), used)

    def code(*weights):
        transform = PatchTransform(lambda: iter([(0, features)]), layout, 16, 1, *weights)
        return coarsest(lambda: iter([(0, features)]), transform, kept, 64, 0.97)

    blind, seeing = code(), code(gradients)
    assert seeing.kept == 1
    assert seeing.entropy_bytes == pytest.approx(blind.entropy_bytes / 2, rel=0.15)


def test_features_that_are_no_numbers_are_refused():
    features = torch.zeros(8, 3, 16, 16)
    features[2, 0, 0, 0] = torch.nan
    with pytest.raises(CutError, match="are no numbers"):
        transform_of(features)


def test_answers_that_nothing_keeps_give_the_finest_step():
    features = gaussian(count=8)
    transform = transform_of(features, stride=1, rows=16)
    code = coarsest(lambda: iter([(0, features)]), transform, lambda restored, start: 0.0, 8, 0.97)
    assert code.kept == 0
    assert code.relative_error < 1e-5


def test_answers_of_classifiers():
    scores = torch.tensor([[0.0, 1, 2], [3, 1, 2], [0, 5, 1]])
    answers = Answers([torch.randn(3, 2, 4), scores])
    assert answers.kind == "classes"
    assert answers.kept([torch.randn(3, 2, 4), scores * 2 + 1], 0) == 3
    assert answers.kept([torch.zeros(2, 2, 4), torch.tensor([[1.0, 0, 0], [0, 9, 1]])], 1) == 2
    assert answers.kept([torch.zeros(1, 2, 4), torch.tensor([[0.0, 0, 1]])], 2) == 0
    assert not answers.all_alike
    assert Answers([torch.tensor([[0.0, 1], [0, 2]])]).all_alike


def test_answers_of_segmenters():
    maps = torch.randn(4, 5, 6, 6)
    answers = Answers([maps])
    assert answers.kind == "cells"
    assert answers.kept([maps[1:]], 1) == pytest.approx(3)
    other = maps.clone()
    other[:, :, :3] = 0
    other[:, 0, :3] = 1  # the upper half says class 0
    expected = 0.5 + float((maps[:, :, :3].argmax(1) == 0).float().mean()) / 2
    assert answers.kept([other], 0) == pytest.approx(4 * expected)


def test_answers_of_other_networks():
    boxes = torch.randn(8, 10, 4) * 3
    answers = Answers([boxes, torch.zeros(8, 1)])
    assert answers.kind == "outputs"
    assert answers.kept([boxes, torch.zeros(8, 1)], 0) == pytest.approx(8)
    noisy = boxes + 0.3 * torch.randn(boxes.shape, generator=torch.Generator().manual_seed(0))
    assert answers.kept([noisy, torch.zeros(8, 1)], 0) / 8 == pytest.approx(0.99, abs=0.005)


@pytest.fixture(scope="module")
def pictures():
    random = np.random.default_rng(0)
    rough = [Pillow.fromarray(random.integers(0, 256, (8, 8, 3)).astype(np.uint8)) for _ in range(12)]
    return np.stack([np.asarray(picture.resize((64, 64), Pillow.Resampling.BICUBIC)) for picture in rough])


def test_the_image_is_sent_at_the_lowest_quality_that_keeps_the_answers(pictures):
    """A network that answers whether the picture is still about what it was."""
    originals = torch.from_numpy(pictures).float()

    def network(frames):
        apart = (frames.float()[:, None] - originals[None]).abs().mean((2, 3, 4)).amin(1)
        return [torch.stack([apart, torch.full_like(apart, 3.0)], 1)]  # class 1 as long as the error is below 3

    answers = Answers(network(torch.from_numpy(pictures)))
    found = {one.codec.partition(",")[0]: one for one in sent_images(network, pictures, answers, 0.97, SILENT)}
    assert found["png"].kept == 1
    jpeg = found["jpeg"]
    assert jpeg.kept >= 0.97
    assert jpeg.mean_bytes < found["png"].mean_bytes
    assert jpeg.encode_ms > 0
    assert jpeg.decode_ms > 0
    quality = int(jpeg.codec.rpartition(" ")[2])
    assert 5 < quality < 98


def test_an_image_that_must_not_change_is_sent_as_png(pictures):
    def network(frames):
        same = (frames == torch.from_numpy(pictures)[: len(frames)]).all(-1).all(-1).all(-1).float()
        return [torch.stack([1 - same, same], 1)]

    answers = Answers(network(torch.from_numpy(pictures)))
    assert [one.codec for one in sent_images(network, pictures, answers, 0.97, SILENT)] == ["png"]


def test_without_images_the_pixels_themselves_are_sent():
    assert raw_image((10, 20)).mean_bytes == 600


def test_features_that_the_disk_has_no_room_for_are_an_error(monkeypatch):
    """A page of a map that the disk has no room for would end the process without a word."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert _on_disk((3, 2)).shape == (3, 2)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        _on_disk((3, 2))
