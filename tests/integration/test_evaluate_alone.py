"""What a device can answer alone, beside teacher, split and codecs: in the table, CSV, JSON and plot."""

from __future__ import annotations

import csv
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from support import bundles

from narrowcast.cli import main
from narrowcast.compiler.codecs import codecs_named
from narrowcast.compiler.evaluate import evaluate_frames
from narrowcast.transport.bundle import describe_part

FRAMES = bundles.random_frames(40)


def whole_model(adds: tuple[float, float, float] = (0, 0, 0)) -> bytes:
    """image uint8 [N, 8, 8, 3] -> output float32 [N, 3]: what head and tail give at level 1, plus a constant."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "gain"], ["scaled"]),
        helper.make_node("Floor", ["scaled"], ["whole"]),
        helper.make_node("ReduceMean", ["whole"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Add", ["means", "adds"], ["output"]),
    ]
    constants = [("gain", np.array(1 / 16, np.float32)), ("adds", np.array(adds, np.float32) + 100)]
    inputs = [value("image", TensorProto.UINT8, ["N", 8, 8, 3])]
    return bundles.onnx_model(nodes, inputs, [value("output", TensorProto.FLOAT, ["N", 3])], constants)


def biased_exit() -> bytes:
    """The exit of the test bundle, with a preference for the first class."""
    model = onnx.load_from_string(bundles.exit_model())
    adds = next(tensor for tensor in model.graph.initializer if tensor.name == "adds")
    adds.CopyFrom(helper.make_tensor("adds", TensorProto.FLOAT, [3], [1.0, 0.0, 0.0]))
    return model.SerializeToString()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A bundle with an exit, and head and whole network in fp32 and INT8 (as it is called: it is another network)."""
    made = bundles.make()
    for name, model, kind, precision in (
        ("exit.fp32.onnx", biased_exit(), "exit", "fp32"),
        ("head.int8.onnx", bundles.head_model(), "head", "int8"),
        ("whole.fp32.onnx", whole_model(), "whole", "fp32"),
        ("whole.int8.onnx", whole_model((0, 0.3, 0)), "whole", "int8"),
    ):
        made = made.with_part(describe_part(name, model, kind, ["device"], precision=precision), model)
    return made.write(tmp_path_factory.mktemp("alone") / "m.ncb")


@pytest.fixture(scope="module")
def bundle(file):
    return bundles.open_made(file)


def tops(adds=(0, 0, 0)) -> np.ndarray:
    means = (FRAMES // 16).reshape(len(FRAMES), -1, 3).mean(1)
    return (means + np.array(adds)).argmax(1)


def test_the_exit_is_a_way_of_its_own(bundle):
    labels = tops()
    result = evaluate_frames(bundle, FRAMES, labels, codecs=codecs_named("png"))
    assert [score.way for score in result.scores] == ["teacher", "split", "split", "exit", "png"]
    (score,) = result.of("exit")
    right = (tops((1, 0, 0)) == labels).mean()
    assert 0.2 < right < 1
    assert (score.setting, score.scale, score.mean_bytes, score.mean_bytes_interval) == (1, None, None, None)
    assert score.accuracy == score.agreement == pytest.approx(right)
    assert score.accuracy_gain == pytest.approx(right - 1)
    assert score.accuracy_interval.low <= right <= score.accuracy_interval.high
    assert result.outcomes[3].sizes is None
    assert result.of("split")[1].accuracy == 1.0


def test_the_uncut_network_in_the_precision_that_is_asked_for(bundle):
    labels = tops()
    assert evaluate_frames(bundle, FRAMES, labels, codecs=()).of("local") == []  # in fp32 it is the teacher
    result = evaluate_frames(bundle, FRAMES, labels, codecs=(), precision="int8")
    assert [score.way for score in result.scores] == ["teacher", "local", "split", "split", "exit"]
    (score,) = result.of("local")
    assert score.accuracy == pytest.approx((tops((0, 0.3, 0)) == labels).mean())
    assert score.accuracy < 1
    assert (score.mean_bytes, score.setting) == (None, None)
    assert result.of("teacher")[0].accuracy == 1.0


def test_a_bundle_without_the_uncut_network_still_has_its_exit(bundle, tmp_path):
    made = bundles.make()
    part = describe_part("exit.fp32.onnx", biased_exit(), "exit", ["device"], precision="fp32")
    path = made.with_part(part, biased_exit()).write(tmp_path / "m.ncb")
    result = evaluate_frames(bundles.open_made(path), FRAMES, tops(), codecs=())
    assert [score.way for score in result.scores] == ["split", "split", "exit"]
    assert result.of("exit")[0].agreement is None


def test_the_command_line_shows_them(file, tmp_path, capsys):
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    rows = ["file,label"]
    for number, (frame, label) in enumerate(zip(FRAMES, tops(), strict=True)):
        Image.fromarray(frame).save(folder / f"{number:02d}.png")
        rows.append(f"{number:02d}.png,{label}")
    (folder / "labels.csv").write_text("\n".join(rows))
    bundles.trusted_key().write(tmp_path / "k.pub")
    words = ["evaluate", str(file), "--data", str(folder), "--precision", "int8", "--codecs", "jpeg", "--quiet"]
    words += ["--work", str(tmp_path / "work"), "--trust", str(tmp_path / "k.pub")]
    assert main([*words, "--all", "--csv", str(tmp_path / "rows.csv"), "--plot", str(tmp_path / "plot.svg")]) == 0
    table = capsys.readouterr().out
    lines = [line.split("  ")[0].strip() for line in table.splitlines()]
    assert lines[2:7] == [
        "teacher", "whole on the device, int8", "split, level 0", "split, level 1", "local exit, level 1",
    ]  # fmt: skip
    assert table.count("none") == 3
    codecs = table[table.index("Image codecs") :]
    assert "exit" not in codecs
    assert "local" not in codecs
    rows = {row["way"]: row for row in csv.DictReader((tmp_path / "rows.csv").open())}
    assert (rows["exit"]["mean_bytes"], rows["local"]["mean_bytes"]) == ("", "")
    assert float(rows["exit"]["accuracy"]) < 1
    drawn = (tmp_path / "plot.svg").read_text()
    assert "local exit" in drawn
    assert "whole on the device" in drawn
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (score,) = (score for score in found["scores"] if score["way"] == "exit")
    assert (score["mean_bytes"], score["setting"]) == (None, 1)
