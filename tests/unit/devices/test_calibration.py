"""Calibrations: small networks really measured, fits with known answers, files, and what the planner makes of them."""

from __future__ import annotations

import json
import stat
from functools import partial

import msgspec
import numpy as np
import onnx
import onnx.shape_inference
import pytest

from narrowcast.cli import main
from narrowcast.compiler.errors import BoardError
from narrowcast.compiler.planner.boards import CalibratedBoard, SshBoard
from narrowcast.devices.calibration import MeasuredPower, load_calibration, save_calibration
from narrowcast.devices.calibration.fit import OTHER, fit, nearest, nonnegative
from narrowcast.devices.calibration.graphs import graphs
from narrowcast.devices.calibration.measure import calibrate
from narrowcast.devices.calibration.operations import Operation, operation
from narrowcast.devices.calibration.power import Meter
from narrowcast.devices.errors import CalibrationError
from narrowcast.devices.probe import probe
from narrowcast.head.backends.profiling import Value, profile
from narrowcast.head.errors import BackendError

GRAPHS = [g for g in graphs() if g.name.endswith((" at 28", " at 14", "x14", "x28", "12x28"))][::3]


@pytest.fixture(scope="module")
def measured():
    """A quick calibration of this machine, with a meter that always says the same."""
    readings = iter([4000.0] * 1_000_000)
    meter = Meter(partial(next, readings), 100.0, "all of it")
    return calibrate(probe(), seconds=1, only=GRAPHS, meter=meter)


def test_every_network_is_valid_onnx_of_its_own():
    names, models = zip(*graphs(), strict=True)
    assert len(set(names)) == len(names)
    assert len(set(models)) == len(models)
    for graph in GRAPHS:
        onnx.checker.check_model(onnx.shape_inference.infer_shapes(onnx.load_from_string(graph.model)))


def test_a_profile_tells_operators_with_all_their_shapes():
    model = next(g.model for g in graphs() if g.name == "matmul 1x512x1000")
    found = profile(model, runs=2)
    products = [operation(n.op, n.inputs, n.outputs) for n in found.nodes if "m" in n.op]
    assert sum(one.macs for one in products) == 2 * 512 * 1000
    assert all(node.us >= 0 for node in found.nodes)
    assert found.cpu_ms > 0
    with pytest.raises(BackendError, match="cannot profile"):
        profile(b"no network", runs=1)


@pytest.mark.parametrize(
    ("op", "shapes", "out", "kind", "macs"),
    [
        ("Conv", [(1, 3, 8, 8), (16, 3, 3, 3)], (1, 16, 4, 4), "conv stem float", 16 * 16 * 27),
        ("FusedConv", [(1, 8, 8, 8), (16, 8, 3, 3)], (1, 16, 8, 8), "conv dense float", 16 * 64 * 72),
        ("Conv", [(1, 8, 8, 8), (16, 8, 1, 1)], (1, 16, 8, 8), "conv pointwise float", 16 * 64 * 8),
        ("Conv", [(1, 8, 4, 4), (8, 1, 3, 3)], (1, 8, 4, 4), "conv depthwise float", 8 * 16 * 9),
        ("Conv", [(1, 32, 4, 4), (32, 8, 3, 3)], (1, 32, 4, 4), "conv grouped float", 32 * 16 * 72),
        ("QLinearConv", [(1, 4, 4, 16), (8, 16, 1, 1)], (1, 4, 4, 8), "conv pointwise float", 8 * 16 * 16),
        ("MatMul", [(1, 7, 5), (5, 3)], (1, 7, 3), "matmul float", 105),
        ("Relu", [(1, 2, 3)], (1, 2, 3), "Relu float", 0),
    ],
)
def test_kinds_and_multiply_accumulates(op, shapes, out, kind, macs):
    found = operation(op, [Value("float", shape) for shape in shapes], [Value("float", out)])
    assert (found.kind, found.macs) == (kind, macs)


def test_a_gain_per_channel_costs_a_stretch_each():
    def stretches(small):
        return operation(
            "Mul", [Value("float", (1, 4, 5, 6)), Value("float", small)], [Value("float", (1, 4, 5, 6))]
        ).sums

    assert stretches((1, 4, 5, 6)) == stretches(()) == 0
    assert stretches((1, 4, 1, 1)) == 4
    assert stretches((6,)) == 20


def test_least_squares_without_negative_coefficients():
    random = np.random.default_rng(0)
    matrix, true = random.random((40, 5)), np.array([3.0, 0.0, 0.5, 0.0, 2.0])
    assert nonnegative(matrix, matrix @ true) == pytest.approx(true, abs=1e-9)
    assert (nonnegative(matrix, -(matrix @ true)) == 0).all()


def test_a_fit_finds_a_machine_that_is_a_roofline():
    random = np.random.default_rng(1)

    def one():
        macs, moved = 10 ** random.uniform(5, 8), 10 ** random.uniform(4, 6)
        return Operation("conv dense float", macs, moved, 0.0, 0.0, (float(np.log(macs)), float(np.log(moved))))

    def truth(op):
        return 5.0 + op.macs / 2e4 + op.moved / 5e3

    seen, unseen = [one() for _ in range(40)], [one() for _ in range(20)]
    kinds = fit(seen, [truth(op) for op in seen])
    for op in unseen:
        assert kinds["conv dense float"].us(op) == pytest.approx(truth(op), rel=0.05)
    assert nearest({**kinds, OTHER: kinds["conv dense float"]}, "conv stem uint8") == kinds["conv dense float"]


def test_a_calibration_of_this_machine_survives_its_file_and_knows_its_error(measured, tmp_path):
    assert measured.error.graphs == len(GRAPHS)
    assert 0 < measured.error.median <= measured.error.p90
    assert measured.machine.runtime.startswith("onnxruntime ")
    save_calibration(measured, tmp_path / "here.json")
    loaded = load_calibration(tmp_path / "here.json")
    assert msgspec.to_builtins(loaded) == msgspec.to_builtins(measured)
    operations = [operation("Relu", [Value("float", (1, 16, 28, 28))], [Value("float", (1, 16, 28, 28))])] * 3
    assert loaded.predict(operations) == measured.predict(operations)
    assert loaded.predict(operations).ms > loaded.predict(operations[:1]).ms > 0


def test_energy_is_power_times_time_and_only_where_power_was_measured(measured):
    power = MeasuredPower(idle_mw=2000.0, busy_mw=5000.0, samples=9, scope="all of it")
    operations = [operation("Relu", [Value("float", (1, 16, 28, 28))], [Value("float", (1, 16, 28, 28))])]
    found = msgspec.structs.replace(measured, power=power).predict(operations)
    assert (found.mj, found.net_mj) == pytest.approx((5 * found.ms, 3 * found.ms))
    without = msgspec.structs.replace(measured, power=None).predict(operations)
    assert (without.ms, without.mj, without.net_mj) == (found.ms, None, None)
    assert measured.power.scope == "all of it"
    assert measured.power.samples >= 1
    assert measured.power.idle_mw == measured.power.busy_mw == pytest.approx(4000)


def test_operators_never_measured_are_named(measured):
    found = measured.predict([operation("Einsum", [Value("float", (1, 9))], [Value("float", (1, 9))])])
    assert found.unknown == ["Einsum float"]
    assert found.ms > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(version=2), "Invalid enum value 2"),
        (lambda d: d.update(kind={}), "unknown key 'kind'; did you mean 'kinds'"),
        (lambda d: d["kinds"].pop(OTHER), "has no 'other'"),
        (lambda d: d["kinds"][OTHER]["coefficients"].pop(), "coefficients"),
        (lambda d: d["kinds"][OTHER]["residuals"].pop(), "one belongs to one"),
        (lambda d: d.update(threads=0), "threads"),
    ],
)
def test_a_wrong_calibration_says_what_is_wrong(measured, tmp_path, change, said):
    found = msgspec.to_builtins(measured)
    change(found)
    (tmp_path / "wrong.json").write_text(json.dumps(found))
    with pytest.raises(CalibrationError, match=said):
        load_calibration(tmp_path / "wrong.json")


def test_no_calibration_at_all(tmp_path, capsys):
    with pytest.raises(CalibrationError, match="cannot be read"):
        load_calibration(tmp_path / "none.json")
    with pytest.raises(CalibrationError, match="0 of 1 networks run here"):
        calibrate(probe(), seconds=1, only=[GRAPHS[0]._replace(model=b"none")])
    assert main(["probe", "--root", str(tmp_path), "--calibrate", str(tmp_path / "x.json")]) == 2
    assert "measures this machine" in capsys.readouterr().err


def test_a_calibrated_board_states_its_error_and_refuses_other_threads(measured):
    board = CalibratedBoard(measured, 1)
    assert board.time(GRAPHS[0].model, {}).ms > 0
    assert "graphs that the fit had not seen" in board.describe()["words"]
    with pytest.raises(BoardError, match="is of 1 threads, the plan of 2"):
        CalibratedBoard(measured, 2)


@pytest.fixture
def ssh(tmp_path):
    """A command that does what ssh does with a shell here: it runs the last argument."""
    path = tmp_path / "ssh"
    path.write_text('#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done\nexec sh -c "$1"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_board_is_measured_over_ssh(ssh):
    import sys

    board = SshBoard("me@board", 1, python=sys.executable, ssh=[ssh])
    assert board.time(GRAPHS[0].model, _feed(GRAPHS[0].model)).ms > 0
    assert board.describe()["words"].startswith("me@board, onnxruntime ")


@pytest.mark.parametrize(
    ("python", "said"),
    [("python-that-is-not-there", "not found"), ("echo", "no measurement"), ("exit 3;", "exit code 3")],
)
def test_a_board_that_cannot_measure_says_why(ssh, python, said):
    with pytest.raises(BoardError, match=said):
        SshBoard("me@board", 1, python=python, ssh=[ssh]).time(GRAPHS[0].model, _feed(GRAPHS[0].model))


def test_a_destination_is_no_option_of_ssh():
    with pytest.raises(BoardError, match="no destination"):
        SshBoard("-oProxyCommand=true", 1)


def _feed(model):
    (value,) = onnx.load_from_string(model).graph.input
    return {value.name: np.zeros([d.dim_value for d in value.type.tensor_type.shape.dim], np.float32)}
