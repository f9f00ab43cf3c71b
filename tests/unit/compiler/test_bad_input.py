"""What users get wrong while compiling, and what they are told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import networks
from support.training import Bench, Notes
from torch import nn

from narrowcast.compiler import training
from narrowcast.compiler.bottlenecks import Group, Loss, Optimizer, Stage
from narrowcast.compiler.clipping import check_alphabet
from narrowcast.compiler.errors import (
    BottleneckError,
    DataError,
    TeacherError,
    TrainingError,
    VerificationError,
    WeightsError,
)
from narrowcast.compiler.job import Job
from narrowcast.compiler.progress import SILENT
from narrowcast.compiler.teacher import load_teacher
from narrowcast.compiler.verify import check_outputs_apart, outputs_apart

BATCHES = ({0: torch.export.Dim("batch")},)


class Stubborn(nn.Module):
    """Never leaves training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def train(self, mode: bool = True):
        return super().train(True)


class TestTeacherInTheWrongMode:
    def test_eval_is_called_for_the_user(self):
        network = networks.normalised()
        assert network.training
        assert not any(module.training for module in load_teacher("support.networks:normalised").modules())

    def test_a_network_that_stays_in_training_mode(self, tmp_path, monkeypatch):
        monkeypatch.setattr(networks, "tiny", Stubborn)
        with pytest.raises(
            TeacherError, match=r"tiny is still in training mode after eval\(\) \(in the network itself\)"
        ):
            load_teacher("support.networks:tiny")
        monkeypatch.setattr(networks, "tiny", lambda: nn.Sequential(nn.ReLU(), Stubborn()))
        with pytest.raises(TeacherError, match=r"after eval\(\) \(in 1\)"):
            load_teacher("support.networks:tiny")

    @pytest.mark.parametrize(
        ("network", "operator"),
        [
            (networks.normalised(), "batch_norm"),
            (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5)), "dropout"),
            (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout2d(0.5)), "feature_dropout"),
        ],
    )
    def test_a_program_that_was_exported_in_training_mode(self, tmp_path, network, operator):
        example = (torch.randn(2, 3, 32, 32),)
        program = torch.export.export(network.train(), example, dynamic_shapes=BATCHES)
        torch.export.save(program, tmp_path / "net.pt2")
        with pytest.raises(TeacherError, match=rf"exported in training mode \(aten\.{operator}.*call eval\(\)"):
            load_teacher("net.pt2", folder=tmp_path)
        program = torch.export.export(network.eval(), example, dynamic_shapes=BATCHES)
        torch.export.save(program, tmp_path / "net.pt2")
        load_teacher("net.pt2", folder=tmp_path)


class TestWeights:
    def save(self, path, **changes) -> str:
        state = {**networks.tiny().state_dict(), **changes}
        torch.save({name: value for name, value in state.items() if value is not None}, path / "w.pt")
        return str(path / "w.pt")

    def test_all_that_does_not_fit_is_named(self, tmp_path):
        file = self.save(
            tmp_path, **{"classifier.bias": None, "head.bias": torch.zeros(4), "stem.0.bias": torch.zeros(9)}
        )
        wanted = (
            r"1 missing \(classifier.bias\), 1 surplus \(head.bias\), "
            r"1 of another shape \(stem.0.bias \[9\] instead of \[8\]\)"
        )
        with pytest.raises(WeightsError, match=wanted):
            load_teacher("support.networks:tiny", weights=file)

    def test_values_that_are_no_numbers(self, tmp_path):
        file = self.save(tmp_path, **{"classifier.bias": torch.tensor([0.0, float("nan"), 0, 0])})
        with pytest.raises(WeightsError, match="values that are no numbers, in classifier.bias"):
            load_teacher("support.networks:tiny", weights=file)


def test_features_that_are_no_numbers_name_the_image(recipe_for, tmp_path):
    job = Job(recipe_for(), tmp_path, SILENT)
    job.problem.before.register_forward_hook(
        lambda module, args, result: result.index_fill(0, torch.tensor([1]), torch.inf)
    )
    with pytest.raises(TeacherError, match=r"features at 'stem' are no numbers for .*04\.png: check its weights"):
        job.train()
    assert not list(tmp_path.glob("cache/features-*"))


def test_so_do_those_that_nobody_keeps(recipe_for, tmp_path):
    job = Job(recipe_for(bottleneck={"preset": "plain"}), tmp_path, SILENT)
    job.problem.before.register_forward_hook(lambda module, args, result: (result - result.amax()).sqrt())
    with pytest.raises(TeacherError, match=r"features at 'stem' are no numbers for .*\.png: check its weights"):
        job.train()


class Fixed(nn.Module):
    """A tail with these answers."""

    def __init__(self, *answers: list[float]) -> None:
        super().__init__()
        self.answers = [torch.tensor([answer]) for answer in answers]

    def forward(self, symbols, level):
        return tuple(self.answers)


class Exported:
    """The same, as ONNX Runtime would give them."""

    def __init__(self, *answers: list[float]) -> None:
        self.outputs = [f"{k}" for k in range(len(answers))]
        self._answers = dict(zip(self.outputs, (np.array([answer], np.float32) for answer in answers), strict=True))

    def __call__(self, **inputs):
        return self._answers


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("got", "wanted", "said"),
    [
        ([NAN, 1.0], [NAN, 1.0], "is no number"),
        ([NAN, 1.0], [0.5, 1.0], "is no number"),
        ([0.5, 1.0], [NAN, 1.0], "is no number"),
        ([INF, 1.0], [0.5, 1.0], "is inf of its largest value off"),
        ([0.5, 1.0], [0.6, 1.0], "is 0.1 of its largest value off"),
        ([-INF, 1.0], [-INF, 1.0], None),
        ([0.5, 1.0], [0.5, 1.0], None),
    ],
)
def test_outputs_that_are_no_numbers_do_not_pass(got, wanted, said):
    symbols, level = np.zeros((1, 1, 1, 1), np.uint8), np.zeros(1, np.int64)
    apart = outputs_apart(Fixed(wanted, [1.0]), Exported(got, [1.0]), symbols, level)
    if said is None:
        check_outputs_apart(apart, "tail")
        return
    with pytest.raises(VerificationError, match=said):
        check_outputs_apart(apart, "tail")


class NoSlope:
    """A loss that is a number, whose gradient from the fourth step on is none."""

    def __init__(self) -> None:
        self.steps = 0

    def calibrate(self, *args):
        pass

    def stages(self, net, *args):
        parameter = net.log_gain

        def loss(batch):
            self.steps += 1
            spoilt = (parameter * 0).sum().sqrt() if self.steps > 3 else 0
            return Loss(parameter.square().sum() + spoilt)

        return [Stage("only", 1.0, [Group([parameter])], loss, Optimizer(max_gradient_norm=None))]


def test_a_gradient_that_is_no_number_never_reaches_weights_or_checkpoint(recipe_for, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    bench = Bench(recipe_for(), tmp_path)
    with pytest.raises(
        TrainingError, match=r"the gradient's norm is nan at step 3 \(stage 'only'\); the last good state is in"
    ):
        bench.train(NoSlope())
    saved = torch.load(bench.checkpoint, weights_only=True)
    assert saved["position"]["step"] == 3
    assert all(value.isfinite().all() for value in saved["bottleneck"].values())
    assert all(torch.equal(value, saved["bottleneck"][name]) for name, value in bench.net.state_dict().items())


def test_labels_that_are_not_there(recipe_for, tmp_path, photo_folder):
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in sorted(photo_folder.rglob("*.png"))[:4]:
        (flat / file.name).write_bytes(file.read_bytes())
    recipe = recipe_for(data={"train": str(flat)}, bottleneck={"tune_tail": True, "label_weight": 0.5})
    with pytest.raises(DataError, match=r"images that are not in class folders and no labels\.csv"):
        Job(recipe, tmp_path / "work", SILENT)


class TestAlphabet:
    def symbols(self, clipped: int) -> np.ndarray:
        found = np.full((2, 10, 1, 10, 10), 128, np.uint8)
        found[1].reshape(-1)[:clipped] = [0, 255] * (clipped // 2)
        return found

    def test_a_few_clipped_symbols_are_nobodys_business(self):
        notes: list[str] = []
        check_alphabet(self.symbols(0), 256, Notes(notes))
        assert notes == []

    def test_channels_that_are_not_sent_do_not_count(self):
        found = self.symbols(0).repeat(2, axis=2)
        found[0, :, 1] = 0
        notes: list[str] = []
        check_alphabet(found, 256, Notes(notes), [1, 2])
        assert notes == []
        with pytest.raises(BottleneckError, match="level 0"):
            check_alphabet(found, 256, SILENT)

    def test_some_are_told(self):
        notes: list[str] = []
        check_alphabet(self.symbols(20), 256, Notes(notes))
        assert "2 % of the symbols at level 1 lie at the ends of the alphabet of 256" in notes[0]

    def test_many_are_refused(self):
        with pytest.raises(BottleneckError, match=r"10 % of the symbols at level 1 .*Let a bit weigh more"):
            check_alphabet(self.symbols(100), 256, SILENT)

    def test_a_real_encoder_that_is_too_loud(self, recipe_for, tmp_path):
        from narrowcast.compiler.assemble import Assembly

        job = Job(recipe_for(train={"images": 8}), tmp_path, SILENT)
        job.train()
        with torch.no_grad():
            job.bottleneck.log_gain.add_(8.0)
        with pytest.raises(BottleneckError, match="the latent is too large"):
            Assembly(job).write(tmp_path / "m.ncb", None)
        assert not (tmp_path / "m.ncb").exists()


@pytest.mark.parametrize(("folder", "says"), [("none", "no folder"), ("empty", "0 clips of 6 frames")])
def test_a_folder_of_videos_that_has_none_is_told_before_anything_is_trained(recipe_for, tmp_path, folder, says):
    (tmp_path / "empty").mkdir()
    recipe = recipe_for(data={"video": str(tmp_path / folder)}, coding={"video": True})
    with pytest.raises(DataError, match=rf"\[data\] video: {says}"):
        Job(recipe, tmp_path / "work", SILENT)
    assert not list((tmp_path / "work").rglob("images-*"))
