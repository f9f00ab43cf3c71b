"""``bottlefit`` and ``entropic-student``, from a recipe to a bundle; a tail that is tuned without touching the fleet."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from support import bundles

from narrowcast.compiler.bottlenecks import bottlefit, entropic_student
from narrowcast.compiler.compile import compile as compile_recipe
from narrowcast.compiler.evaluate import evaluate
from narrowcast.transport.bundle import Bundle

TRUSTED = [bundles.KEY.public]
SMALL = {
    "bottlefit": {"preset": "bottlefit", "channels": 6, "decoder_width": 16, "calibration_images": 32},
    "entropic-student": {"preset": "entropic-student", "channels": 6, "decoder_width": 16, "beta": 1e-3},
}
# What an engine on a board must know: nothing that only training needs is left in the head.
PLAIN_OPERATORS = {
    "bottlefit": {"BatchNormalization", "MaxPool", "Relu", "Sub"},
    "entropic-student": {"Abs"},
}
COMMON_OPERATORS = {"Transpose", "Cast", "Mul", "Add", "Conv", "Div", "Round", "Clip"}


@pytest.fixture(scope="module", params=SMALL)
def pair(request, recipe_for, tmp_path_factory):
    """(preset, bundle with a tuned tail, bundle of the same recipe whose tail stays the teacher's)."""
    folder = tmp_path_factory.mktemp(request.param)
    opened = []
    for tuned in (True, False):
        recipe = recipe_for(
            bottleneck={**SMALL[request.param], "tune_tail": tuned, "second_speed": 5.0},
            train={"images": 480, "batch": 8},
        )
        path = folder / f"{tuned}.ncb"
        compile_recipe(recipe, path, key=bundles.KEY, work=folder / "work")
        opened.append(Bundle.open(path, trusted=TRUSTED))
    return request.param, *opened


def initializers(bundle: Bundle, part: str) -> dict[str, np.ndarray]:
    graph = onnx.load_from_string(bundle.read(part)).graph
    return {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}


def test_the_bundle_answers_nearly_as_the_teacher(pair, photo_folder):
    _, tuned, untuned = pair
    for bundle in (tuned, untuned):
        found = evaluate(bundle, photo_folder, limit=16)
        (score,) = found.of("split")
        assert score.output_error < 0.3
        assert score.mean_bytes < found.of("png")[0].mean_bytes / 4
    assert tuned.manifest.codec.levels == 1
    assert tuned.manifest.codec.alphabet == 256


def test_tuning_the_tail_leaves_what_boards_know_alone(pair):
    _, tuned, untuned = pair
    assert tuned.manifest.fingerprint == untuned.manifest.fingerprint
    for part in ("head", "tables", "whole"):
        assert tuned.read(part) == untuned.read(part)
    assert tuned.read("tail") != untuned.read("tail")


def test_the_tuned_layers_are_exported(pair):
    """Behind the small teacher's cut lie three layers with weights: the teacher's own in one tail, others in the other."""
    _, tuned, untuned = pair

    def shared(bundle: Bundle) -> int:
        whole = [value for value in initializers(bundle, "whole").values() if value.ndim > 1 and value.size > 16]
        tail = list(initializers(bundle, "tail").values())
        return sum(any(np.array_equal(one, other) for other in tail) for one in whole)

    assert shared(untuned) == 3
    assert shared(tuned) == 0


def test_the_head_holds_plain_operators_and_nothing_of_the_server(pair):
    name, tuned, _ = pair
    graph = onnx.load_from_string(tuned.read("head")).graph
    assert {node.op_type for node in graph.node} <= COMMON_OPERATORS | PLAIN_OPERATORS[name]
    assert [value.name for value in graph.input] == ["image"]
    encoder = {"bottlefit": bottlefit.encoder_layers(6), "entropic-student": entropic_student.encoder_layers(6)}[name]
    numbers = sum(value.numel() for value in encoder.state_dict().values())
    assert sum(value.size for value in initializers(tuned, "head").values()) < numbers + 50  # and the quantizer's


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_resnet_from_timm(timm, recipe_for, tmp_path, name):
    recipe = recipe_for(
        teacher={"model": "timm:resnet18", "options": {"num_classes": 5}},
        cut={"at": "layer2"},
        bottleneck=SMALL[name],
        train={"images": 16, "batch": 8},
        export={"whole": False},
    )
    result = compile_recipe(recipe, tmp_path / "resnet.ncb", key=bundles.KEY, work=tmp_path / "work")
    assert result.verified.moved_symbols <= 1e-4
    bundle = Bundle.open(result.bundle, trusted=TRUSTED)
    assert [(output.name, output.shape) for output in bundle.manifest.outputs] == [("output", [5])]
    assert bundle.manifest.figures["levels"][0]["mean_packet_bytes"] > 0
