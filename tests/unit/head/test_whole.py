"""The uncut network on the board."""

from __future__ import annotations

import numpy as np
import pytest
from support import bundles

from narrowcast.head import whole
from narrowcast.head.errors import BackendError
from narrowcast.head.whole import WholeSession
from narrowcast.transport.bundle import describe_part
from narrowcast.transport.errors import MissingPartError

FRAME = bundles.random_frames(1, size=(20, 24))[0]


def opened(tmp_path, made):
    return bundles.open_made(made.write(tmp_path / "model.ncb"), "device")


def two_precisions():
    made, model = bundles.with_whole(bundles.make()), bundles.whole_model()
    part = describe_part("whole.int8.onnx", model, "whole", ["device"], precision="int8", optional=True)
    return made.with_part(part, model)


def test_it_answers_as_the_task_wants_it(tmp_path):
    session = WholeSession(opened(tmp_path, bundles.with_whole(bundles.make())))
    found = session.answer(FRAME)
    wanted = bundles.expected_output(session.contract.prepare(FRAME).image, 1)
    assert np.allclose(found.outputs["output"], wanted, atol=1e-3)
    assert found.placement == session.contract.placement(20, 24)
    assert found.resize_ms > 0 < found.whole_ms
    assert (session.choice.precision, session.choice.head_ms) == ("fp32", {})


def test_the_fastest_precision_runs_by_measurement(tmp_path, monkeypatch):
    bundle = opened(tmp_path, two_precisions())
    for times, chosen in (({"fp32": 10.0, "int8": 4.0}, "int8"), ({"fp32": 10.0, "int8": 9.9}, "fp32")):
        monkeypatch.setattr(whole, "_times", lambda loaded, frame, times=times: times)
        choice = WholeSession(bundle).choice
        assert (choice.precision, choice.head_ms) == (chosen, times)
    assert WholeSession(bundle, precision="int8").choice.precision == "int8"


def test_what_is_not_there_says_so(tmp_path):
    with pytest.raises(MissingPartError, match=r"has no uncut network: compile with \[export\] whole = true"):
        WholeSession(opened(tmp_path, bundles.make()))
    bundle = opened(tmp_path, bundles.with_whole(bundles.make()))
    with pytest.raises(MissingPartError, match=r"whole \(int8\)"):
        WholeSession(bundle, precision="int8")
    with pytest.raises(BackendError, match="no backend 'onnx'"):
        WholeSession(bundle, backend="onnx")
    session = WholeSession(bundle, backend=["onnx", "onnxruntime"])
    assert "no backend 'onnx'" in session.choice.passed_over["onnx"]
