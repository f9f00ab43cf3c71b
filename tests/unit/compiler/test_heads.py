"""What a precision costs, and which are left out for it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from support import bundles

from narrowcast.compiler.errors import VerificationError
from narrowcast.compiler.heads import Trial, make_heads, make_self_check, too_lossy, try_heads
from narrowcast.compiler.progress import SILENT
from narrowcast.compiler.recipe import ExportSettings
from narrowcast.compiler.verify import OnnxNetwork
from narrowcast.transport.codec import open_codec
from narrowcast.transport.selfcheck import reference_frames

FRAMES = bundles.random_frames(40)


def head(offset: float) -> bytes:
    """The test bundle's head with pixels brighter by ``offset`` steps of level 1."""
    import onnx

    model = onnx.load_from_string(bundles.head_model())
    model.graph.initializer.append(helper.make_tensor("offset", TensorProto.FLOAT, [], [offset]))
    model.graph.initializer.append(helper.make_tensor("most", TensorProto.FLOAT, [], [15.0]))
    at = next(k for k, node in enumerate(model.graph.node) if node.op_type == "Floor")
    model.graph.node[at].input[0] = "bounded"
    model.graph.node.insert(at, helper.make_node("Min", ["moved", "most"], ["bounded"]))
    model.graph.node.insert(at, helper.make_node("Add", ["scaled", "offset"], ["moved"]))
    return model.SerializeToString()


def teacher() -> dict[str, np.ndarray]:
    return OnnxNetwork(bundles.tail_model())(symbols=(FRAMES // 16).transpose(0, 3, 1, 2), level=np.ones(40, np.int64))


def trials(**heads: bytes) -> dict[str, Trial]:
    return try_heads(heads, bundles.tail_model(), bundles.spec(), FRAMES, teacher(), SILENT)


def test_a_trial_says_how_far_symbols_moved_and_what_became_of_the_answers():
    found = trials(fp32=bundles.head_model(), int8=head(0.25))
    exact, other = found["fp32"], found["int8"]
    assert exact.moved_symbols == [0, 0]
    assert exact.agreement[1] == 1.0
    assert exact.output_error[1] == pytest.approx(0, abs=1e-9)
    # a quarter of the symbols lie in the upper quarter of their step; the highest cannot move
    assert other.moved_symbols[1] == pytest.approx(0.25 * 15 / 16, abs=0.02)
    assert other.largest_step == [1, 1]
    assert other.output_error[1] > 0.001


def test_bytes_are_packets():
    codec = open_codec(bundles.spec(), bundles.tables())
    rows = trials(fp32=bundles.head_model())["fp32"].figures(codec)
    symbols = (FRAMES // 16).transpose(0, 3, 1, 2)
    sizes = [24 + len(codec.encode(np.ascontiguousarray(one), 1)) for one in symbols]
    assert rows[1]["mean_packet_bytes"] == pytest.approx(np.mean(sizes), abs=0.05)
    assert [row["level"] for row in rows] == [0, 1]


def test_symbols_outside_the_alphabet_are_an_error_that_names_the_precision():
    import onnx

    model = onnx.load_from_string(bundles.head_model())
    gains = next(t for t in model.graph.initializer if t.name == "gains")
    gains.CopyFrom(onnx.numpy_helper.from_array(np.full((2, 1, 1, 1), 0.5, np.float32), "gains"))
    with pytest.raises(VerificationError, match=r"the int8 head gives uint8 \[3, 8, 8\] up to 1\d\d"):
        trials(fp32=bundles.head_model(), int8=model.SerializeToString())


def test_a_head_that_does_not_run_is_an_error_that_names_the_precision():
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Reshape", ["image", "shape"], ["symbols"])]
    inputs = [value("image", TensorProto.UINT8, [1, "H", "W", 3])]
    constants = [("shape", np.array([1, 5, 5], np.int64))]
    broken = bundles.onnx_model(nodes, inputs, [value("symbols", TensorProto.UINT8, [1, 5, 5])], constants)
    with pytest.raises(VerificationError, match="the fp16 head does not run"):
        trials(fp32=bundles.head_model(), fp16=broken)


def trial(agreement: list, error: list) -> Trial:
    return Trial(agreement=agreement, output_error=error)


@pytest.mark.parametrize(
    ("exact", "other", "said"),
    [
        (([0.8, 0.9], [0.1, 0.1]), ([0.79, 0.88], [0.5, 0.5]), None),
        (([0.8, 0.9], [0.1, 0.1]), ([0.75, 0.89], [0.1, 0.1]), "3 points fewer"),
        (([None], [0.1]), ([None], [0.105]), None),
        (([None], [0.1]), ([None], [0.12]), "20 % above"),
        (([None], [0.1]), ([None], [float("nan")]), "nan % above"),
    ],
)
def test_what_loses_too_much_is_left_out(exact, other, said):
    reasons = too_lossy({"fp32": trial(*exact), "int8": trial(*other)}, ExportSettings())
    assert set(reasons) == (set() if said is None else {"int8"})
    assert said is None or said in reasons["int8"]


def test_the_recipe_says_what_is_too_much():
    found = {"fp32": trial([0.9], [0.1]), "int8": trial([0.85], [0.1])}
    assert too_lossy(found, ExportSettings(max_agreement_loss=0.06)) == {}
    assert "max_agreement_loss is 0.04" in too_lossy(found, ExportSettings(max_agreement_loss=0.04))["int8"]


def test_a_precision_that_cannot_be_made_is_left_out_with_the_reason():
    settings = ExportSettings(precisions=["fp32", "int8"])
    heads, left_out = make_heads(bundles.head_model(), settings, FRAMES, symmetric=False, progress=SILENT)
    assert set(heads) == {"fp32"}
    assert "no convolution to quantize" in left_out["int8"]


def test_the_self_check_has_the_symbols_of_the_reference_frames_and_bounds_above_what_was_seen():
    codec = open_codec(bundles.spec(), bundles.tables())
    check = make_self_check({"fp32": bundles.head_model(), "int8": head(0.25)}, codec, (bundles.SIDE, bundles.SIDE))
    frames = reference_frames((bundles.SIDE, bundles.SIDE), len(check.payloads[1]))
    symbols, errors = codec.decode_batch(check.payloads[1], [1] * len(frames))
    assert errors == [None] * len(frames)
    assert np.array_equal(symbols, (frames // 16).transpose(0, 3, 1, 2))
    assert 0 < check.bounds["fp32"][1].moved < 0.01
    moved = float((OnnxNetwork(head(0.25))(image=frames[:1], level=np.array([1]))["symbols"] != symbols[:1]).mean())
    assert moved < check.bounds["int8"][1].moved < 0.5
    assert check.bounds["int8"][1].step == 2
