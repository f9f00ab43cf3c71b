"""What a manifest may say about tasks and further tails, and what a server's answer may look like."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from support import bundles

from narrowcast.head.answers import AnswerReader
from narrowcast.tail.errors import TailBackendError
from narrowcast.tail.store import load_model
from narrowcast.transport.bundle import Bundle, OutputSpec, TailSpec, describe_part
from narrowcast.transport.bundle.manifest import parse_manifest
from narrowcast.transport.errors import ManifestError, MissingPartError, TransportError
from narrowcast.transport.rpc.tensors import from_tensors, to_tensor
from narrowcast.transport.structs import to_json
from narrowcast.transport.tasks import ClassifyTask, DetectTask, SegmentTask
from narrowcast.transport.tasks.answers import SentOutput

FURTHER = TailSpec(name="second", outputs=bundles.OUTPUTS)


def changed(**changes):
    manifest = msgspec.structs.replace(bundles.make().manifest, **changes)
    return parse_manifest(to_json(manifest), "m.ncb")


def with_tail(path, spec=FURTHER, part_of="second"):
    """A bundle whose tail is there twice."""
    made = bundles.make()
    tail = made.contents["tail.onnx"]
    part = describe_part("tail.second.onnx", tail, "tail", ["server"], precision="fp32", tail=part_of)
    made.manifest = msgspec.structs.replace(made.manifest, tails=[spec], parts=[*made.manifest.parts, part])
    made.contents["tail.second.onnx"] = tail
    made.write(path)
    return bundles.open_made(path)


def test_a_task_of_the_outputs():
    assert changed(task=ClassifyTask(classes=["a", "b", "c"])).task.classes == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": ClassifyTask(classes=["a"])}, "'main': 1 classes; the network gives 3"),
        ({"task": SegmentTask(classes=["a", "b"], output="mask")}, "no output 'mask'"),
        ({"task": DetectTask(classes=["a"], strides=[8])}, "no output 'scores'"),
        ({"tails": [FURTHER, FURTHER]}, "two tails have the same name"),
        ({"tails": [msgspec.structs.replace(FURTHER, name="main")]}, "two tails have the same name"),
        ({"tails": [msgspec.structs.replace(FURTHER, name="a/b")]}, "tails"),
        ({"tails": [msgspec.structs.replace(FURTHER, task=ClassifyTask(classes=["a"]))]}, "'second': 1 classes"),
    ],
)
def test_what_a_manifest_may_not_say(changes, message):
    with pytest.raises(ManifestError, match=message):
        changed(**changes)


def test_outputs_must_be_named():
    outputs = [OutputSpec(name="out", dtype="float32", shape=[2, 4, 4])]
    with pytest.raises(ManifestError, match="does not name its outputs"):
        changed(outputs=outputs, task=SegmentTask(classes=["a", "b"]))


def test_a_part_of_a_tail_that_is_not_listed(tmp_path):
    with pytest.raises(ManifestError, match="belongs to the tail 'third'"):
        with_tail(tmp_path / "m.ncb", part_of="third")


def test_the_first_tail_is_the_one_without_a_name(tmp_path):
    bundle = with_tail(tmp_path / "m.ncb")
    assert bundle.manifest.find("tail").name == "tail.onnx"
    assert bundle.manifest.find("tail", tail="second").name == "tail.second.onnx"
    assert bundle.has("tail", tail="second")
    assert not bundle.has("whole", tail="second")
    with pytest.raises(MissingPartError, match="whole of the tail 'second'"):
        bundle.read("whole", tail="second")
    assert [tail.name for tail in bundle.manifest.all_tails()] == ["main", "second"]


def test_a_device_needs_no_tails(tmp_path):
    from narrowcast.transport.bundle import write_subset

    write_subset(with_tail(tmp_path / "m.ncb"), "device", tmp_path / "d.ncb")
    device = Bundle.open(tmp_path / "d.ncb", "device", trusted=[bundles.trusted_key()])
    assert not device.has("tail", tail="second")


def test_a_model_runs_the_tails_that_are_asked_for(tmp_path):
    model = load_model(with_tail(tmp_path / "m.ncb"))
    assert model.tails == ["main", "second"]
    symbols = np.arange(3 * np.prod(bundles.SHAPE), dtype=np.int64).reshape(3, *bundles.SHAPE) % 5
    wanted = [frozenset(["main", "second"]), frozenset(["second"]), frozenset(["main"])]
    answers = model.answer(symbols.astype(np.uint8), np.zeros(3, np.int64), wanted)
    assert [sorted(answer) for answer in answers] == [["output", "second/output"], ["second/output"], ["output"]]
    means = symbols.mean((2, 3))
    for answer, mean in zip(answers, means, strict=True):
        assert all(np.allclose(values, mean) for values in answer.values())


def test_a_tail_that_is_not_what_its_manifest_says(tmp_path):
    other = msgspec.structs.replace(FURTHER, outputs=[OutputSpec(name="boxes", dtype="float32", shape=[3])])
    with pytest.raises(TailBackendError, match="its tail 'second' gives"):
        load_model(with_tail(tmp_path / "m.ncb", other))
    wide = [OutputSpec(name="output", dtype="float32", shape=[4])]
    spec = TailSpec(name="second", outputs=wide, task=ClassifyTask())
    with pytest.raises(TailBackendError, match="gives other shapes"):
        load_model(with_tail(tmp_path / "w.ncb", spec))


class TestRaggedOutputs:
    expected = [SentOutput("boxes", "float32", [5, 4], up_to=True)]

    @pytest.mark.parametrize("count", [0, 1, 5])
    def test_up_to_the_limit(self, count):
        boxes = np.ones((count, 4), np.float32)
        assert from_tensors([to_tensor("boxes", boxes)], self.expected)["boxes"].shape == (count, 4)

    @pytest.mark.parametrize("shape", [(6, 4), (2, 5), (4,), (), (2, 4, 1)])
    def test_and_no_other_shape(self, shape):
        with pytest.raises(TransportError, match="the bundle says"):
            from_tensors([to_tensor("boxes", np.ones(shape, np.float32))], self.expected)

    def test_a_plain_output_has_its_shape(self):
        with pytest.raises(TransportError):
            from_tensors([to_tensor("x", np.ones(2, np.float32))], [SentOutput("x", "float32", [3])])


def test_the_reader_wants_all_that_it_asked_for(tmp_path):
    manifest = with_tail(tmp_path / "m.ncb").manifest
    place = manifest.input.placement(8, 8)
    one = to_tensor("output", np.zeros(3, np.float32))
    assert AnswerReader(manifest, ["main"]).read([one], place) == ({"output": pytest.approx(np.zeros(3))}, {})
    with pytest.raises(TransportError, match="second/output"):
        AnswerReader(manifest).read([one], place)
