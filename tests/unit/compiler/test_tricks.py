"""The training tricks of ``shallow-residual``: each switch does what it says."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from support import networks
from torch import nn
from torch.nn import functional as F

from narrowcast.compiler.bottlenecks import PRESETS, Batch, Problem
from narrowcast.compiler.bottlenecks.blocks import Neck
from narrowcast.compiler.bottlenecks.crops import Cropper
from narrowcast.compiler.bottlenecks.objective import Coded, Objective, Terms
from narrowcast.compiler.bottlenecks.saliency import saliency_weights
from narrowcast.compiler.bottlenecks.shallow_residual import ShallowResidualSettings
from narrowcast.compiler.bottlenecks.tail import Answers, distillation
from narrowcast.compiler.cuts import find_cut
from narrowcast.compiler.cuts.trace import trace
from narrowcast.compiler.errors import BottleneckError, DataError
from narrowcast.compiler.labels import training_labels
from narrowcast.transport.contract import InputContract
from narrowcast.transport.errors import ConfigError

CONTRACT = InputContract(size=(32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


class LooksLeft(nn.Module):
    """[N, 3, 32, 32] -> [N, 4]; what is right of the middle means nothing to it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.classifier = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(F.relu(self.stem(x)[..., :8]).mean((2, 3)))


def problem(network: nn.Module | None = None, size: int = 32) -> Problem:
    contract = InputContract(size=(size, size), mean=CONTRACT.mean, std=CONTRACT.std)
    traced = trace((network or networks.tiny()).eval().requires_grad_(False), contract.size)
    return Problem(traced, find_cut(traced, "stem"), contract, torch.device("cpu"))


def a_batch(of: Problem, seed: int = 0, labels: torch.Tensor | None = None) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (8, *of.contract.size, 3), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        return Batch(images, of.before(of.normalize(images)), generator, labels)


def settings(**keys) -> ShallowResidualSettings:
    return ShallowResidualSettings(
        **{"encoder_macs": "1M", "channels": 6, "stride": 4, "levels": 2, "decoder_width": 16, "prune": False} | keys
    )


def stages(of: Problem, **keys):
    chosen = settings(**keys)
    preset = PRESETS["shallow-residual"]
    net = preset.build(of, chosen)
    preset.calibrate(net, of, chosen, (a_batch(of, seed) for seed in itertools.count()))
    return net, preset.stages(net, of, chosen)


def written(folder: Path, *names: str) -> list[Path]:
    """Files that look like images from outside."""
    files = [folder / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return files


class TestSaliency:
    def weights(self, of: Problem, batch: Batch) -> torch.Tensor:
        features = batch.features.clone().requires_grad_()
        return saliency_weights(features, of.after(features), of.layout)

    def test_cells_that_the_answer_hangs_on_weigh_more(self):
        torch.manual_seed(0)
        of = problem(LooksLeft())
        batch = a_batch(of)
        weights = self.weights(of, batch)
        assert weights.shape == (8, 1, 16, 16)
        assert (weights[..., 8:] == 0.5).all()
        assert (weights[..., :8] > 0.5).float().mean() > 0.5
        assert torch.allclose(weights.amax((1, 2, 3)), torch.ones(8))
        assert not weights.requires_grad

    @pytest.mark.parametrize("stage", ["match_features", "match_outputs"])
    def test_the_gradient_of_an_error_is_as_large_as_its_cells_weight(self, stage):
        torch.manual_seed(0)
        of = problem(LooksLeft())
        batch = a_batch(of)
        wrong = torch.full_like(batch.features, 0.1, requires_grad=True)

        def gradient(saliency: bool) -> torch.Tensor:
            def code(_: Batch) -> Coded:
                return Coded(batch.features + wrong, torch.zeros(8), torch.zeros(8, dtype=torch.int64))

            terms = Terms(deep=0, outputs=0, saliency=saliency)
            loss = getattr(Objective(code, of, [1.0], terms), stage)(batch).total
            return torch.autograd.grad(loss, wrong)[0]

        expected = self.weights(of, batch).expand_as(wrong)
        assert torch.allclose(gradient(True) / gradient(False), expected, rtol=1e-4)

    def test_networks_without_class_scores_have_it_too(self):
        of = problem(networks.two_outputs())
        weights = self.weights(of, a_batch(of))
        assert weights.min() >= 0.5
        assert weights.max() == 1


class TestCrops:
    def test_features_lie_where_the_cropped_image_would_have_them(self):
        of = problem()
        crop_of = Cropper(of, (8, 8), 0.5)
        places = set()
        for seed in range(12):
            batch = a_batch(of, seed)
            crop = crop_of(batch)
            assert crop.batch.images.shape == (8, 16, 16, 3)
            assert crop.batch.features.shape == (8, 8, 8, 8)
            assert crop.part == 0.25
            with torch.no_grad():
                alone = of.before(of.normalize(crop.batch.images))
            rows, columns = crop.inside
            here, there = crop.batch.features[..., rows, columns], alone[..., rows, columns]
            assert torch.allclose(here, there, atol=1e-5)
            assert torch.equal(crop.of(batch.features), crop.batch.features)
            places.add((crop.place[0].start, crop.place[1].start))
            if crop.place[0].start == 0:
                assert rows.start == 0  # the image's own border counts
            elif rows.start:
                assert not torch.allclose(crop.batch.features, alone, atol=1e-5)
        assert len(places) > 4

    def test_a_crop_follows_from_the_batchs_generator(self):
        of = problem()
        first, again = (Cropper(of, (8, 8), 0.5)(a_batch(of, 3)) for _ in range(2))
        assert first.place == again.place

    @pytest.mark.parametrize("trunk", ["new", "teacher"])
    def test_the_first_stage_learns_from_crops(self, trunk):
        of = problem()
        net, (first, second) = stages(of, first_crop=0.5, trunk=trunk, saliency=True)
        seen = []
        net.encoder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[2]))
        optimizer = torch.optim.Adam([p for group in first.groups for p in group.parameters], lr=1e-2)
        losses = []
        for seed in range(20):
            loss = first.loss(a_batch(of, seed % 4)).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert np.mean(losses[-5:]) < np.mean(losses[:5])
        assert set(seen) == {16 if trunk == "new" else 8}
        second.loss(a_batch(of))
        assert seen[-1] == (32 if trunk == "new" else 16)

    @pytest.mark.parametrize(
        ("latent", "part", "says"),
        [((8, 8), 0.3, "leaves 2 x 2 cells"), ((5, 5), 0.9, "cannot be cropped"), ((8, 5), 0.9, "cannot be cropped")],
    )
    def test_crops_that_cannot_be(self, latent, part, says):
        with pytest.raises(BottleneckError, match=says):
            Cropper(problem(), latent, part)

    def test_tokens_cannot_be_cropped(self, timm):
        network = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=4).eval().requires_grad_(False)
        contract = InputContract(size=(64, 64))
        traced = trace(network, contract.size)
        of = Problem(traced, find_cut(traced, "blocks.1"), contract, torch.device("cpu"))
        with pytest.raises(BottleneckError, match="cannot be cropped"):
            Cropper(of, (4, 4), 0.5)


class TestTerms:
    @pytest.mark.parametrize(
        ("keys", "figures"),
        [
            ({}, {"bytes", "features", "deep", "outputs"}),
            ({"deep_weight": 0.0}, {"bytes", "features", "outputs"}),
            ({"output_weight": 0.0}, {"bytes", "features", "deep"}),
            ({"deep_weight": 0.0, "output_weight": 0.0}, {"bytes", "features"}),
        ],
    )
    def test_the_loss_has_the_terms_that_are_on(self, keys, figures):
        of = problem()
        _, (_, second) = stages(of, **keys)
        assert set(second.loss(a_batch(of)).figures) == figures

    def test_errors_count_as_much_as_they_weigh(self):
        of = problem()

        def total(**keys: float) -> float:
            torch.manual_seed(0)
            _, (_, second) = stages(of, trunk="teacher", **keys)
            return second.loss(a_batch(of)).total.item()

        base, more, most = (total(output_weight=weight) for weight in (0.0, 1e3, 3e3))
        assert more > base
        assert most - more == pytest.approx(2 * (more - base), rel=1e-2)
        assert total(deep_weight=2.0) > base

    @pytest.mark.parametrize(("balance", "ratio"), [(0.0, 16.0), (0.5, 4.0), (1.0, 1.0)])
    def test_levels_are_balanced_by_their_weights(self, balance, ratio):
        """With nothing but bits to pay for, a level's loss is its weight to the power of 1 - balance."""
        of = problem()
        batch = a_batch(of)

        def total(level: int) -> float:
            def code(_: Batch) -> Coded:
                return Coded(batch.features, torch.full((8,), 1000.0), torch.full((8,), level))

            return Objective(code, of, [16.0, 1.0], Terms(0, 0, balance=balance)).match_features(batch).total.item()

        assert total(0) / total(1) == pytest.approx(ratio)

    def test_there_may_be_no_first_stage(self):
        _, (only,) = stages(problem(), first_stage=0.0)
        assert (only.name, only.share) == ("outputs", 1.0)

    def test_a_random_start_is_not_the_linear_code(self):
        torch.manual_seed(0)
        of = problem()
        started, (first, _) = stages(of, linear_start=False, trunk="teacher")
        linear, (slow, _) = stages(of, trunk="teacher")
        for net, orthonormal in ((started, False), (linear, True)):
            assert isinstance(net.encoder, Neck)
            rows = net.encoder.linear.weight.flatten(1)
            assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=1e-4) is orthonormal
        assert first.groups[1].speed == 1.0
        assert slow.groups[1].speed < 1.0

    @pytest.mark.parametrize(
        ("keys", "says"),
        [
            ({"label_weight": 0.5}, "set tune_tail = true"),
            ({"first_crop": 0.5, "first_stage": 0.0}, "nothing to crop"),
            ({"first_crop": 0.0}, "first_crop"),
            ({"label_weight": 1.5, "tune_tail": True}, "label_weight"),
        ],
    )
    def test_settings_that_cannot_be(self, recipe_for, keys, says):
        with pytest.raises(ConfigError, match=says):
            recipe_for(bottleneck=keys)


def test_a_new_trunk_gets_images_channel_by_channel():
    """In the layout of RGB bytes the backward pass of its first skip corrupts memory at 224 px (torch 2.13, AMX)."""
    of = problem()
    batch = a_batch(of)
    for keys in ({}, {"first_crop": 0.5}):
        net, found = stages(of, trunk="new", **keys)
        seen = []
        net.encoder.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(inputs[0].is_contiguous()))
        for stage in found:
            stage.loss(batch)
        assert seen == [True, True]


class TestLabels:
    def test_labels_and_the_teachers_answers_are_mixed(self):
        got, wanted = torch.randn(5, 4), torch.randn(5, 4)
        labels = torch.tensor([0, 1, 2, 3, 0])
        wrong, apart = F.cross_entropy(got, labels), distillation(got, wanted, 2.0)
        assert torch.allclose(Answers(2.0, 0.25).loss(got, wanted, labels).total, 0.25 * wrong + 0.75 * apart)
        assert torch.equal(Answers(2.0, 0.0).loss(got, wanted, None).total, apart)

    def test_a_tail_learns_the_labels_that_it_is_given(self):
        """The teacher knows nothing of these labels: only their own weight can bring them in."""
        of = problem()
        labels = torch.tensor([3, 2, 1, 0] * 2)

        def after_tuning(weight: float) -> float:
            net, found = stages(of, tune_tail=True, label_weight=weight)
            tail = found[-1]
            optimizer = torch.optim.Adam([p for group in tail.groups for p in group.parameters], lr=1e-2)
            for _ in range(40):
                loss = tail.loss(a_batch(of, labels=labels))
                optimizer.zero_grad()
                loss.total.backward()
                optimizer.step()
            with torch.no_grad():
                batch = a_batch(of)
                level = torch.ones(8, dtype=torch.int64)
                symbols = net.encode(of.normalize(batch.images), level)
                return F.cross_entropy(net.tuned_tail()(net.decode(symbols, level)), labels).item()

        assert after_tuning(1.0) < 0.5 * after_tuning(0.0)

    def test_images_without_labels_are_an_error(self):
        with pytest.raises(DataError, match="class folders, or a labels.csv"):
            Answers(1.0, 0.5).loss(torch.randn(5, 4), torch.randn(5, 4), None)

    def test_a_network_without_class_scores_is_an_error(self):
        maps = torch.randn(5, 4, 3, 3)
        with pytest.raises(DataError, match="one vector of class scores; this one has 0"):
            Answers(1.0, 0.5).loss(maps, maps, torch.zeros(5, dtype=torch.int64))

    def test_class_folders_in_the_order_of_their_names(self, tmp_path):
        files = written(tmp_path, "b/1.png", "a/1.png", "c/1.png")
        assert training_labels(files, tmp_path, 3).tolist() == [1, 0, 2]

    def test_classes_of_which_no_image_was_drawn_count(self, tmp_path):
        files = written(tmp_path, "b/1.png", "a/1.png", "c/deep/1.png", "d/1.png")
        assert training_labels(files[1:3], tmp_path, 4).tolist() == [0, 2]
        with pytest.raises(DataError, match=r"4 class folders.* 3 class folders"):  # as many as were drawn of
            training_labels(files[1:], tmp_path, 3)

    def test_a_table_goes_before_folders(self, tmp_path):
        (tmp_path / "labels.csv").write_text("file,label\na/1.png,7\n2.png,0\n")
        assert training_labels([tmp_path / "2.png", tmp_path / "a" / "1.png"], tmp_path, 8).tolist() == [0, 7]
        with pytest.raises(DataError, match=r"no label for .*3\.png"):
            training_labels([tmp_path / "3.png"], tmp_path, 8)
        (tmp_path / "labels.csv").write_text("file,label\na/1.png,7\n2.png,0\na/1.png,6\n")
        with pytest.raises(DataError, match=r"gives .*a/1\.png two labels, 7 and 6"):
            training_labels([tmp_path / "2.png"], tmp_path, 8)

    @pytest.mark.parametrize(
        ("names", "says"),
        [(["a/1.png", "b/1.png"], "2 class folders"), (["1.png", "a/2.png", "b/1.png"], "not in class folders")],
    )
    def test_folders_that_are_no_classes(self, tmp_path, names, says):
        with pytest.raises(DataError, match=f"{says}.* 3 class folders"):
            training_labels(written(tmp_path, *names), tmp_path, 3)
