"""Which head runs: by measurement, within the bundle's bounds, remembered. Times come from a backend that counts them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from onnx import TensorProto, helper
from support import bundles, gpu

from narrowcast.head import choice
from narrowcast.head.backends import cuda, load_backend
from narrowcast.head.errors import BackendError
from narrowcast.head.session import HeadSession
from narrowcast.transport.bundle import describe_part
from narrowcast.transport.errors import ManifestError, MissingPartError
from narrowcast.transport.selfcheck import SelfCheck, SymbolBound, reference_frames
from narrowcast.transport.structs import to_json

EXACT = SymbolBound(moved=0, step=0)


def shifted_head() -> bytes:
    """The test bundle's head with half a step added before it rounds down: many symbols are one too high."""
    import onnx

    model = onnx.load_from_string(bundles.head_model())
    floor = next(node for node in model.graph.node if node.op_type == "Floor")
    model.graph.initializer.append(helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]))
    add = helper.make_node("Add", [floor.input[0], "half"], ["moved"])
    clip = helper.make_node("Min", ["moved", "most"], ["bounded"])
    model.graph.initializer.append(helper.make_tensor("most", TensorProto.FLOAT, [], [15.0]))
    floor.input[0] = "bounded"
    at = list(model.graph.node).index(floor)
    model.graph.node.insert(at, clip)
    model.graph.node.insert(at, add)
    return model.SerializeToString()


def made(tmp_path, heads: dict[str, bytes], bounds: dict[str, SymbolBound]):
    """A bundle with these heads, and bounds that hold for both levels."""
    bundle = bundles.make()
    bundle = bundle.without("head.onnx")
    for precision, model in heads.items():
        part = describe_part(f"head.{precision}.onnx", model, "head", ["device"], precision=precision)
        bundle = bundle.with_part(part, model)
    session = HeadSession(bundles.open_made(bundles.make().write(tmp_path / "plain.ncb")))
    frames = reference_frames(session.contract.size, 2)
    payloads = [[session.codec.encode(session.symbols(f, level), level) for f in frames] for level in range(2)]
    check = to_json(SelfCheck(payloads=payloads, bounds={name: [bound] * 2 for name, bound in bounds.items()}))
    bundle = bundle.with_part(describe_part("selfcheck.json", check, "selfcheck", ["device"]), check)
    return bundles.open_made(bundle.write(tmp_path / "m.ncb"))


@pytest.fixture
def times(monkeypatch):
    """What each precision is measured to take."""
    found = {"fp32": 10.0, "fp16": 12.0, "int8": 5.0}
    measured = []

    def measure(heads, size, level):
        measured.append(sorted(heads))
        return {name: found[name] for name in heads}

    monkeypatch.setattr(choice, "measure", measure)
    return found, measured


def both(tmp_path):
    head = bundles.head_model()
    return made(tmp_path, {"fp32": head, "int8": head}, {"fp32": EXACT, "int8": EXACT})


def test_the_fastest_runs(tmp_path, times):
    session = HeadSession(both(tmp_path))
    assert session.choice.precision == "int8"
    assert session.choice.head_ms == {"fp32": 10.0, "int8": 5.0}
    assert str(session.choice).startswith("head in int8 on onnxruntime")


@pytest.mark.parametrize("int8_ms", [9.9, 10.0, 30.0])
def test_fp32_runs_where_int8_is_not_clearly_faster(tmp_path, times, int8_ms):
    times[0]["int8"] = int8_ms
    assert HeadSession(both(tmp_path)).choice.precision == "fp32"


def test_one_head_is_not_timed(tiny, times):
    assert HeadSession(tiny).choice.head_ms == {}
    assert times[1] == []


def test_a_precision_that_is_asked_for_is_not_timed(tmp_path, times):
    assert HeadSession(both(tmp_path), precision="int8").choice.precision == "int8"
    assert times[1] == []


def test_a_head_whose_symbols_are_others_is_not_taken(tmp_path, times):
    heads = {"fp32": bundles.head_model(), "int8": shifted_head()}
    session = HeadSession(made(tmp_path, heads, {"fp32": EXACT, "int8": SymbolBound(moved=0.1, step=1)}))
    assert session.choice.precision == "fp32"
    assert "symbols differ, by 1 at most; 10 % and 1 are allowed" in session.choice.rejected["int8"]
    within = made(tmp_path, heads, {"fp32": EXACT, "int8": SymbolBound(moved=0.9, step=1)})
    assert HeadSession(within).choice.precision == "int8"


def test_a_head_that_the_backend_refuses_is_passed_over(tmp_path, times):
    heads = {"fp32": bundles.head_model(), "int8": bundles.head_model().replace(b"Floor", b"Flood")}
    session = HeadSession(made(tmp_path, heads, {"fp32": EXACT, "int8": EXACT}))
    assert session.choice.precision == "fp32"
    assert "does not load" in session.choice.rejected["int8"]


def test_no_head_that_loads(tmp_path, times):
    broken = bundles.head_model().replace(b"Floor", b"Flood")
    with pytest.raises(BackendError, match="does not load"):
        HeadSession(made(tmp_path, {"fp32": broken, "int8": broken}, {"fp32": EXACT, "int8": EXACT}))


def test_the_choice_is_remembered(tmp_path, times):
    bundle = both(tmp_path)
    first, second = HeadSession(bundle), HeadSession(bundle)
    assert (first.choice.remembered, second.choice.remembered) == (False, True)
    assert second.choice.precision == "int8"
    assert len(times[1]) == 1
    assert HeadSession(bundle, threads=1).choice.remembered is False  # other threads, other times


@pytest.mark.parametrize("stage", ["load", "run", "check"])
def test_a_choice_among_heads_of_which_one_failed_is_not_remembered(tmp_path, times, monkeypatch, stage):
    """Memory may have been short: at the next start there may be enough."""
    bundle, short, runs = both(tmp_path), [True], []

    class Failing:
        name = "onnxruntime 0"

        def run(self, image, level):
            runs.append(level)
            if stage == "run" or len(runs) > 1:
                raise BackendError("out of memory")
            return real("onnxruntime", bundles.head_model(), threads=0).run(image, level)

    def load(backend, model, *, threads):
        loads.append(model)
        if short and len(loads) == 2:  # int8's
            if stage == "load":
                raise BackendError("out of memory")
            return Failing()
        return real(backend, model, threads=threads)

    real, loads = choice.load_backend, []
    monkeypatch.setattr(choice, "load_backend", load)
    first = HeadSession(bundle).choice
    assert (first.precision, first.rejected) == ("fp32", {"int8": "out of memory"})
    short.clear()
    second = HeadSession(bundle).choice
    assert (second.precision, second.remembered) == ("int8", False)
    assert HeadSession(bundle).choice.remembered


def test_a_new_library_measures_again(tmp_path, times, keys_folder):
    bundle = both(tmp_path)
    HeadSession(bundle)
    (file,) = (keys_folder.parent / "cache").glob("precision-*.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "backend": "onnxruntime 0.1"}))
    assert HeadSession(bundle).choice.remembered is False
    file.write_text("broken")
    assert HeadSession(bundle).choice.remembered is False
    assert HeadSession(bundle).choice.remembered is True


def test_remembering_can_be_turned_off(tmp_path, times, monkeypatch):
    monkeypatch.setenv("NARROWCAST_CACHE", "off")
    bundle = both(tmp_path)
    assert [HeadSession(bundle).choice.remembered for _ in range(2)] == [False, False]


def test_a_disk_that_cannot_be_written_is_no_error(tmp_path, times, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("NARROWCAST_CACHE", str(file / "below"))
    assert HeadSession(both(tmp_path)).choice.precision == "int8"


def test_real_times_are_measured_side_by_side():
    heads = {name: load_backend("onnxruntime", bundles.head_model(), threads=1) for name in ("fp32", "int8")}
    found = choice.measure(heads, (bundles.SIDE, bundles.SIDE), 1)
    assert set(found) == {"fp32", "int8"}
    assert all(value > 0 for value in found.values())


class TestBackends:
    """Several backends, best first."""

    def test_the_next_one_runs_what_the_first_cannot(self, tmp_path, times, caplog):
        session = HeadSession(both(tmp_path), backend=["tensorrt", "onnxruntime"])
        assert session.choice.backend.startswith("onnxruntime ")
        assert list(session.choice.passed_over) == ["tensorrt"]
        assert "cannot be used" in session.choice.passed_over["tensorrt"]
        assert "the head does not run on tensorrt, the next backend is tried: the backend tensorrt" in caplog.text

    def test_the_first_that_loads_runs(self, tiny):
        session = HeadSession(tiny, backend=["onnxruntime", "tensorrt"])
        assert session.choice.backend.startswith("onnxruntime ")
        assert session.choice.passed_over == {}

    def test_none_that_loads(self, tiny, caplog):
        with pytest.raises(
            BackendError, match=r"tensorrt cannot be used.*; no backend 'tenserrt'; did you mean 'tensorrt'"
        ):
            HeadSession(tiny, backend=["tensorrt", "tenserrt"])
        with pytest.raises(BackendError, match="no backend was named"):
            HeadSession(tiny, backend=[])

    @pytest.mark.skipif(gpu.COMPILER is None, reason="there is no C compiler for the fake CUDA driver")
    def test_tensorrt_runs_where_it_is(self, tmp_path, times):
        with gpu.machine(gpu.build_driver(tmp_path), "10.3.0"):
            session = HeadSession(both(tmp_path), backend=["tensorrt", "onnxruntime"])
            assert session.choice.backend == "tensorrt 10.3.0"
            assert session.choice.precision == "int8"
            assert session.self_check().passed
            again = HeadSession(both(tmp_path), backend=["tensorrt", "onnxruntime"])
            assert again.choice.remembered

    @pytest.mark.skipif(gpu.COMPILER is None, reason="there is no C compiler for the fake CUDA driver")
    def test_another_gpu_measures_again(self, tmp_path, times, monkeypatch):
        with gpu.machine(gpu.build_driver(tmp_path), "10.3.0"):
            assert not HeadSession(both(tmp_path), backend="tensorrt").choice.remembered
            monkeypatch.setattr(cuda.Gpu, "_attribute", lambda self, number, device: 9)
            cuda._open.clear()
            assert not HeadSession(both(tmp_path), backend="tensorrt").choice.remembered
            assert HeadSession(both(tmp_path), backend="tensorrt").choice.remembered


class TestSelfCheck:
    """`HeadSession.self_check`."""

    def test_it_passes_where_the_symbols_are_the_bundles(self, tmp_path):
        report = HeadSession(both(tmp_path), precision="int8").self_check()
        assert report.passed
        assert [(level.moved_symbols, level.largest_step) for level in report.levels] == [(0, 0), (0, 0)]

    def test_it_says_how_far_off_they_are(self, tmp_path):
        heads = {"fp32": bundles.head_model(), "int8": shifted_head()}
        bundle = made(tmp_path, heads, {"fp32": EXACT, "int8": SymbolBound(moved=0.001, step=1)})
        report = HeadSession(bundle, precision="int8").self_check()
        assert not report.passed
        frames = reference_frames(bundle.manifest.input.size, 2)
        exact = HeadSession(bundle, precision="fp32")
        moved = np.mean([exact.symbols(f, 1) != HeadSession(bundle, precision="int8").symbols(f, 1) for f in frames])
        assert report.levels[1].moved_symbols == pytest.approx(moved)
        assert report.levels[1].largest_step == 1

    def test_a_step_too_far_fails_however_rare(self, tmp_path):
        heads = {"fp32": bundles.head_model(), "int8": shifted_head()}
        bundle = made(tmp_path, heads, {"fp32": EXACT, "int8": SymbolBound(moved=1, step=0)})
        assert not HeadSession(bundle, precision="int8").self_check().passed

    def test_a_bundle_without_the_part(self, tmp_path):
        path = bundles.make().without("selfcheck.json").write(tmp_path / "m.ncb")
        with pytest.raises(MissingPartError, match="no selfcheck part"):
            HeadSession(bundles.open_made(path)).self_check()

    def test_a_precision_without_a_bound(self, tmp_path):
        head = bundles.head_model()
        bundle = made(tmp_path, {"fp32": head, "int8": head}, {"fp32": EXACT})
        with pytest.raises(ManifestError, match="no bound for int8"):
            HeadSession(bundle, precision="int8").self_check()

    def test_payloads_that_do_not_decode(self, tmp_path):
        check = to_json(SelfCheck(payloads=[[b"x"], [b"x"]], bounds={"fp32": [EXACT, EXACT]}))
        part = describe_part("selfcheck.json", check, "selfcheck", ["device"])
        bundle = bundles.open_made(bundles.make().with_part(part, check).write(tmp_path / "m.ncb"))
        with pytest.raises(ManifestError, match="does not decode"):
            HeadSession(bundle).self_check()
