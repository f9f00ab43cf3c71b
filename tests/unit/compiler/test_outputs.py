"""Distillation by what outputs mean, the parts of a teacher, and where a further tail's decoder starts."""

from __future__ import annotations

import pytest
import torch
from support import networks

from narrowcast.compiler.bottlenecks.blocks import Decoder
from narrowcast.compiler.bottlenecks.outputs import detection_errors, output_errors, segmentation_errors
from narrowcast.compiler.bottlenecks.tail import distillation
from narrowcast.compiler.errors import TeacherError
from narrowcast.compiler.recipe import recipe_from
from narrowcast.compiler.tails import _solve
from narrowcast.compiler.teacher import load_teacher
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.tasks import DetectTask, SegmentTask

DETECT = DetectTask(classes=["a", "b"], strides=[8], scores=["scores"], boxes=["boxes"], centerness=["centerness"])
SEGMENT = SegmentTask(classes=["a", "b"], output="mask")


def detector_maps(images: int = 2) -> dict[str, torch.Tensor]:
    """Background everywhere but for one cell of the first image."""
    scores = torch.full((images, 2, 4, 4), -6.0)
    scores[0, 1, 2, 2] = 3.0
    return {"scores": scores, "boxes": torch.ones(images, 4, 4, 4), "centerness": torch.zeros(images, 1, 4, 4)}


@pytest.mark.parametrize("activation", ["sigmoid", "none"])
def test_the_teachers_own_maps_are_no_error(activation):
    task = DetectTask(
        classes=["a", "b"], strides=[8], scores=["scores"], boxes=["boxes"], centerness=["centerness"],
        activation=activation,
    )  # fmt: skip
    maps = {name: values.sigmoid() if activation == "none" and name != "boxes" else values
            for name, values in detector_maps().items()}  # fmt: skip
    assert detection_errors(maps, maps, task).tolist() == pytest.approx([0, 0], abs=1e-5)
    off = {**maps, "scores": maps["scores"] * 0.5}
    assert (detection_errors(off, maps, task) > 0.01).all()


def test_a_box_matters_where_the_teacher_sees_something():
    wanted = detector_maps()
    errors = []
    for cell in ((2, 2), (0, 0)):
        got = {**wanted, "boxes": wanted["boxes"].clone()}
        got["boxes"][0, :, cell[0], cell[1]] = 3.0
        errors.append(detection_errors(got, wanted, DETECT)[0].item())
    assert errors[0] > 100 * errors[1]


def test_every_class_of_a_map_has_the_same_part():
    wanted = torch.zeros(1, 2, 10, 10)
    wanted[:, 0] = 4.0
    wanted[:, :, 0, 0] = torch.tensor([0.0, 4.0])  # one pixel of the second class
    rare, common = wanted.clone(), wanted.clone()
    rare[:, :, 0, 0] = 0
    common[:, :, 0, 1:] = 0  # nine pixels of the first
    assert segmentation_errors(wanted, wanted).item() == pytest.approx(0, abs=1e-6)
    few, many = (segmentation_errors(changed, wanted).item() for changed in (rare, common))
    assert few == pytest.approx(11 * many, rel=1e-3)


def test_gradients_lead_to_the_teachers_maps():
    torch.manual_seed(0)
    wanted = detector_maps()
    got = {name: (values + torch.randn(values.shape)).abs().requires_grad_() for name, values in wanted.items()}
    optimizer = torch.optim.Adam(got.values(), lr=0.1)
    first = detection_errors(got, wanted, DETECT).mean().item()
    for _ in range(60):
        loss = detection_errors(got, wanted, DETECT).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 * first


def test_nested_outputs_are_found_by_name():
    maps = detector_maps()
    nested = {"scores": maps["scores"], "boxes": maps["boxes"], "centerness": maps["centerness"]}
    assert output_errors(nested, nested, DETECT).tolist() == pytest.approx([0, 0], abs=1e-6)
    mask = {"mask": torch.randn(2, 2, 4, 4)}
    assert distillation(mask, mask, 1.0, SEGMENT).item() == pytest.approx(0, abs=1e-6)
    scores = torch.randn(2, 5)
    assert output_errors(scores, scores, None).tolist() == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("latent", "target"),
    [((3, 4, 4), (5, 8, 8)), ((3, 8, 8), (2, 4, 4)), ((3, 4, 4), (5, 7, 7)), ((3, 4, 4), (2, 4, 4))],
)
def test_a_further_decoder_starts_from_the_best_linear_map(latent, target):
    torch.manual_seed(0)
    teacher, decoder = Decoder(latent, target, 8), Decoder(latent, target, 8)
    symbols = [torch.randn(16, *latent) for _ in range(2)]
    with torch.no_grad():
        targets = [teacher(one) for one in symbols]
        _solve(decoder, [symbols], targets)
        apart = [
            (decoder(one) - wanted).square().mean() / wanted.var() for one, wanted in zip(symbols, targets, strict=True)
        ]
    # exact but for the ridge, and for the rows and columns that an odd grid lacks
    assert max(apart) < (0.15 if target[1] == 7 else 1e-3)


class TestParts:
    def test_a_part_of_a_teacher(self):
        part = load_teacher(f"{networks.__file__}:dense", part="fine")
        assert isinstance(part, torch.nn.Sequential)
        assert not part.training

    def test_no_such_part(self):
        with pytest.raises(TeacherError, match="no part 'fin'; did you mean 'fine'"):
            load_teacher(f"{networks.__file__}:dense", part="fin")


def test_tails_have_names_of_their_own(tmp_path):
    tail = {"name": "main", "model": "a.py:b"}
    mapping = {
        "teacher": {"model": "a.py:b"}, "data": {"train": "x"}, "cut": {"at": "stem"}, "input": {"size": [32, 32]},
        "tails": [tail],
    }  # fmt: skip
    with pytest.raises(ConfigError, match="none is 'main'"):
        recipe_from(mapping, "r.toml", "r", tmp_path)
