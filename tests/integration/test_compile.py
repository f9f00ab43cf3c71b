"""From a recipe to a signed bundle that answers as the trained network does."""

from __future__ import annotations

import json

import limits
import msgspec
import numpy as np
import onnx
import pytest
import torch
from support import bundles, networks
from support.command import narrowcast

from narrowcast.compiler.bottlenecks.plain import PlainSettings
from narrowcast.compiler.compile import compile as compile_recipe
from narrowcast.compiler.data import split_holdout
from narrowcast.compiler.errors import CutError, VerificationError
from narrowcast.compiler.evaluate import evaluate_frames
from narrowcast.compiler.normalize import Normalize
from narrowcast.compiler.progress import SILENT
from narrowcast.compiler.verify import OnnxNetwork, verify
from narrowcast.head.session import HeadSession
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.frames import read_image
from narrowcast.transport.selfcheck import read_self_check
from narrowcast.transport.structs import to_json

TRUSTED = [bundles.KEY.public]


def frames_of(bundle: Bundle, folder, count: int = 12) -> np.ndarray:
    files = sorted(folder.rglob("*.png"))[:count]
    return np.stack([bundle.manifest.input.prepare(read_image(path)).image for path in files])


def test_a_bundle_says_what_it_is(compiled):
    result, _ = compiled
    manifest = Bundle.open(result.bundle, trusted=TRUSTED).manifest
    assert to_json(manifest) == to_json(result.manifest)
    assert manifest.codec.shape == (8, 8, 8)
    assert manifest.codec.levels == 3
    assert [(o.name, o.dtype, o.shape) for o in manifest.outputs] == [("output", "float32", [4])]
    assert {(p.kind, tuple(p.roles), p.optional) for p in manifest.parts} == {
        ("head", ("device",), False),
        ("tail", ("server",), False),
        ("tables", ("device", "server"), False),
        ("selfcheck", ("device",), False),
        ("whole", ("device", "server"), True),
    }
    figures = manifest.figures
    assert figures["images"] == 10
    assert 0 < figures["head_macs"] <= 1_000_000
    assert len(figures["levels"]) == 3
    images = {(row["codec"], row["quality"]): row for row in figures["sent_images"]}
    assert {("jpeg", 75), ("webp", 75)} >= set(images) >= {("jpeg", 75)}
    assert all(0 <= row["agreement"] <= 1 and row["mean_packet_bytes"] > 200 for row in images.values())
    sizes = [level["mean_packet_bytes"] for level in figures["levels"]]
    assert sizes == sorted(sizes)
    assert "folder" not in manifest.recipe


def test_the_networks_are_what_the_contract_says(compiled):
    bundle = Bundle.open(compiled[0].bundle, trusted=TRUSTED)

    def signature(kind):
        graph = onnx.load_from_string(bundle.read(kind)).graph
        return [
            [
                (
                    v.name,
                    v.type.tensor_type.elem_type,
                    [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim],
                )
                for v in values
            ]
            for values in (graph.input, graph.output)
        ]

    u8, i64, f32 = onnx.TensorProto.UINT8, onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    assert signature("head") == [[("image", u8, [1, 32, 32, 3]), ("level", i64, [1])], [("symbols", u8, [1, 8, 8, 8])]]
    assert signature("tail") == [
        [("symbols", u8, ["batch", 8, 8, 8]), ("level", i64, ["batch"])],
        [("output", f32, ["batch", 4])],
    ]
    assert signature("whole") == [[("image", u8, ["batch", 32, 32, 3])], [("output", f32, ["batch", 4])]]
    assert onnx.load_from_string(bundle.read("head")).opset_import[0].version == 17


def test_the_whole_network_is_the_teacher(compiled, photo_folder):
    bundle = Bundle.open(compiled[0].bundle, trusted=TRUSTED)
    frames = frames_of(bundle, photo_folder)
    with torch.no_grad():
        expected = networks.tiny().eval()(Normalize(bundle.manifest.input)(torch.from_numpy(frames))).numpy()
    assert np.allclose(OnnxNetwork(bundle.read("whole"))(image=frames)["output"], expected, atol=1e-5)


def test_the_split_answers_nearly_as_the_teacher(compiled, photo_folder):
    bundle = Bundle.open(compiled[0].bundle, trusted=TRUSTED)
    result = evaluate_frames(bundle, frames_of(bundle, photo_folder, 48), None, codecs=())
    errors = [score.output_error for score in result.of("split")]
    assert errors[-1] < 0.3
    assert result.of("teacher")[0].agreement == 1.0


def test_mixed_levels_in_one_batch(compiled, photo_folder):
    bundle = Bundle.open(compiled[0].bundle, trusted=TRUSTED)
    session, tail = HeadSession(bundle), OnnxNetwork(bundle.read("tail"))
    frame = frames_of(bundle, photo_folder, 1)[0]
    symbols = np.stack([session.symbols(frame, level) for level in range(3)])
    together = tail(symbols=symbols, level=np.arange(3))["output"]
    for level in range(3):
        alone = tail(symbols=symbols[level : level + 1], level=np.array([level]))["output"]
        assert np.allclose(together[level], alone[0], atol=1e-5)
    assert not np.allclose(together[0], together[2], atol=1e-5)


def test_compiling_again_gives_the_same_bundle_without_training(compiled, recipe_for, tmp_path):
    result, folder = compiled
    again = compile_recipe(recipe_for(), tmp_path / "again.ncb", key=bundles.KEY, work=folder / "work")
    assert again.manifest.fingerprint == result.manifest.fingerprint
    assert {p.name: p.sha256 for p in again.manifest.parts} == {p.name: p.sha256 for p in result.manifest.parts}


def test_what_limits_a_run_is_looked_at_without_training(compiled, recipe_for, tmp_path):
    result, folder = compiled
    job = limits.finished(recipe_for(), folder / "work")
    looked = limits.look(job, job.held, "held out")
    assert looked.agreed.shape == looked.errors.shape == (2, 3, 10)
    rounded = [row["rounded"]["agreement"] for row in looked.figures()["levels"]]
    assert rounded == [level["agreement"] for level in result.manifest.figures["levels"]], "the bundle's own images"
    with torch.no_grad():
        images = job.problem.normalize(torch.from_numpy(job.frames(job.held)))
        wanted, level = job.problem.before(images), torch.zeros(10, dtype=torch.int64)
        error = (job.bottleneck.decode(job.bottleneck.encode(images, level), level) - wanted).square().mean()
    assert np.isclose(looked.errors[0, 0].mean(), (error / wanted.var(correction=0)).item(), rtol=1e-4)
    assert (looked.errors[1].mean(1) < looked.errors[0].mean(1)).all(), "rounding costs something at every level"
    with pytest.raises(SystemExit, match="is not there, only runs of 'test' with other settings: train it first"):
        limits.finished(recipe_for(train={"images": 480}), folder / "work")
    with pytest.raises(SystemExit, match="has no run of 'test': train it first"):
        limits.finished(recipe_for(), tmp_path)


def test_plain_needs_no_training(recipe_for, photo_folder, tmp_path):
    plain = msgspec.structs.replace(recipe_for(), bottleneck=PlainSettings(bits=6))
    result = compile_recipe(plain, tmp_path / "plain.ncb", key=bundles.KEY, work=tmp_path / "work")
    bundle = Bundle.open(result.bundle, trusted=TRUSTED)
    assert (bundle.manifest.codec.name, bundle.manifest.codec.alphabet, bundle.manifest.codec.levels) == ("zstd", 64, 1)
    head = onnx.load_from_string(bundle.read("head"))
    assert [value.name for value in head.graph.input] == ["image"]
    found = evaluate_frames(bundle, frames_of(bundle, photo_folder), None, codecs=())
    assert found.of("split")[0].output_error < 0.01


def test_outputs_in_a_dictionary(recipe_for, photo_folder, tmp_path):
    recipe = recipe_for(teacher={"model": f"{networks.__file__}:two_outputs"}, train={"images": 16})
    result = compile_recipe(recipe, tmp_path / "two.ncb", key=None, work=tmp_path / "work")
    assert [(o.name, o.shape) for o in result.manifest.outputs] == [("mask", [1, 16, 16]), ("scores", [5])]
    bundle = Bundle.open(result.bundle, allow_unsigned=True)
    found = evaluate_frames(bundle, frames_of(bundle, photo_folder, 4), None, codecs=())
    assert found.of("split")[-1].output_error is not None


def test_a_cut_that_is_none_says_the_nearest(recipe_for, tmp_path):
    with pytest.raises(CutError, match="did you mean 'stem'"):
        compile_recipe(recipe_for(cut={"at": "stme"}), tmp_path / "x.ncb", work=tmp_path / "work")


def test_verification_finds_a_head_that_is_not_the_trained_one(compiled, recipe_for, photo_folder, tmp_path):
    """The bundle's head against a bottleneck that was trained a little longer."""
    from narrowcast.compiler.job import Job
    from narrowcast.compiler.modules import Head, Tail
    from narrowcast.compiler.progress import SILENT

    result, folder = compiled
    job = Job(recipe_for(), folder / "work", SILENT)
    job.train()
    bundle = Bundle.open(result.bundle, trusted=TRUSTED)
    head, tail = Head(job.problem.normalize, job.bottleneck).eval(), Tail(job.bottleneck, job.problem.after).eval()
    onnx_parts = bundle.read("head"), bundle.read("tail")
    frames = frames_of(bundle, photo_folder, 4)
    good = verify(head, tail, *onnx_parts, [frames], 3)
    assert good.moved_symbols <= 1e-4
    assert good.output_difference <= 1e-3
    with torch.no_grad():
        job.bottleneck.log_gain.add_(0.02)
    with pytest.raises(VerificationError, match="symbols of the exported head differ"):
        verify(head, tail, *onnx_parts, [frames], 3)
    with torch.no_grad():
        job.bottleneck.log_gain.add_(1.0)
    with pytest.raises(VerificationError, match="steps off in a symbol"):
        verify(head, tail, *onnx_parts, [frames], 3)
    with torch.no_grad():
        job.bottleneck.log_gain.sub_(1.02)
        job.bottleneck.decoder.last.bias.add_(0.1)
    with pytest.raises(VerificationError, match="of its largest value off"):
        verify(head, tail, *onnx_parts, [frames], 3)


@pytest.fixture(scope="module")
def three(recipe_for, compiled, tmp_path_factory):
    """The bundle of ``compiled`` with more heads, and what was said meanwhile; nothing is trained for it."""
    folder = tmp_path_factory.mktemp("three")
    recipe = recipe_for(
        export={
            "precisions": ["int8", "fp16", "fp32"],
            "calibration_images": 16,
            "max_agreement_loss": 1.0,
            "targets": ["jetson-orin-nano"],
        }
    )
    result = compile_recipe(recipe, folder / "test.ncb", key=bundles.KEY, work=compiled[1] / "work")
    assert result.work == compiled[0].work  # [export] has no part in what is trained
    return result


class TestPrecisions:
    """One bundle with heads in fp32, fp16 and INT8."""

    def test_every_head_has_the_same_inputs_and_outputs(self, three):
        bundle = Bundle.open(three.bundle, trusted=TRUSTED)
        names = [part.name for part in bundle.manifest.parts if part.kind == "head"]
        assert names == ["head.fp32.onnx", "head.fp16.onnx", "head.int8.onnx"]
        exact, *others = (onnx.load_from_string(bundle.read("head", p)).graph for p in ("fp32", "fp16", "int8"))
        for other in others:
            assert list(other.input) == list(exact.input)
            assert list(other.output) == list(exact.output)
        assert bundle.read("head") == bundle.read("head", "fp32")

    def test_figures_stand_side_by_side(self, three):
        figures = three.manifest.figures
        assert list(figures["precisions"]) == ["fp32", "fp16", "int8"]
        assert figures["left_out"] == {}
        exact, half, quarter = figures["precisions"].values()
        assert [row["moved_symbols"] for row in exact["levels"]] == [0, 0, 0]
        assert [row["agreement"] for row in exact["levels"]] == [row["agreement"] for row in figures["levels"]]
        for row, known in zip(exact["levels"], figures["levels"], strict=True):
            assert row["mean_packet_bytes"] == known["mean_packet_bytes"]
            assert row["output_error"] == pytest.approx(known["output_error"], rel=1e-3)
        assert 0 < max(row["moved_symbols"] for row in quarter["levels"]) < 0.5
        assert max(row["largest_step"] for row in half["levels"]) <= 1
        assert all(entry["head_ms"] > 0 for entry in figures["precisions"].values())
        assert figures["head_ms_with"].startswith("onnxruntime ")

    def test_evaluation_of_a_precision_finds_what_the_figures_say(self, three, compiled, recipe_for):
        bundle = Bundle.open(three.bundle, trusted=TRUSTED)
        files = sorted((compiled[1] / "work" / "cache").glob("images-*.u8"))
        images = np.memmap(files[0], np.uint8, "r").reshape(-1, 32, 32, 3)
        held = np.ascontiguousarray(images[split_holdout(len(images), 0.2, 0)[1]])
        found = evaluate_frames(bundle, held, None, codecs=(), precision="int8").of("split")
        rows = three.manifest.figures["precisions"]["int8"]["levels"]
        assert [score.mean_bytes for score in found] == pytest.approx([r["mean_packet_bytes"] for r in rows], abs=0.06)
        assert [score.agreement for score in found] == [row["agreement"] for row in rows]

    def test_one_set_of_tables_serves_them_all(self, three, compiled):
        """The head that was there alone pays next to nothing for the others' symbols."""
        before = [level["mean_packet_bytes"] for level in compiled[0].manifest.figures["levels"]]
        after = [level["mean_packet_bytes"] for level in three.manifest.figures["levels"]]
        assert after == pytest.approx(before, rel=0.02)
        assert three.manifest.fingerprint != compiled[0].manifest.fingerprint

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
    def test_this_machine_passes_the_self_check(self, three, precision):
        bundle = Bundle.open(three.bundle, "device", trusted=TRUSTED)
        report = HeadSession(bundle, precision=precision).self_check()
        assert report.passed, str(report)
        assert len(report.levels) == 3

    def test_a_board_takes_one_by_itself(self, three):
        session = HeadSession(Bundle.open(three.bundle, "device", trusted=TRUSTED))
        assert set(session.choice.head_ms) == {"fp32", "fp16", "int8"}
        assert session.choice.rejected == {}
        assert HeadSession(session.bundle).choice.remembered

    def test_tensorrt_takes_every_head_of_a_bundle_for_boards_that_prefer_it(self, three):
        """Tails and uncut networks are of a newer opset than 8.6 reads; the former run on servers."""
        unsupported = three.manifest.figures["unsupported"]
        wholes = [p.precision for p in three.manifest.parts if p.kind == "whole"]
        assert wholes
        assert list(unsupported) == ["tail", *(f"{precision} whole network" for precision in wholes)]
        assert "TensorRT 8.6" in unsupported["tail"]
        assert all(
            "it is of opset 18; TensorRT 8.6 reads up to 17" in found["TensorRT 8.6"][0]
            for found in unsupported.values()
        )

    def test_what_is_left_out_is_said(self, recipe_for, compiled, tmp_path, monkeypatch):
        """One convolution leaves nothing to quantize; that fp16 loses too much is made up."""
        monkeypatch.setattr("narrowcast.compiler.assemble.too_lossy", lambda trials, settings: {"fp16": "a bad day"})
        notes = []
        recipe = recipe_for(export={"precisions": ["fp32", "fp16", "int8"], "targets": ["rpi5"]})
        recipe = msgspec.structs.replace(recipe, bottleneck=PlainSettings(bits=6))
        result = compile_recipe(recipe, tmp_path / "m.ncb", work=compiled[1] / "work", progress=_Notes(notes))
        figures = result.manifest.figures
        assert [p.precision for p in result.manifest.parts if p.kind == "head"] == ["fp32"]
        assert "no convolution to quantize" in figures["left_out"]["int8"]
        assert figures["left_out"]["fp16"] == "a bad day"
        assert "precisions" not in figures
        assert "no fp16 head: a bad day" in notes
        assert (
            figures["unsupported"] == {}
        )  # the oldest ONNX Runtime takes all; TensorRT, which no board has, is not asked
        check = read_self_check(Bundle.open(result.bundle, allow_unsigned=True))
        assert set(check.bounds) == {"fp32"}


class _Notes:
    """Progress that keeps what it is told."""

    def __init__(self, lines: list[str]) -> None:
        self.note = lines.append
        self.task = SILENT.task


def test_the_command_line_compiles_inspects_and_evaluates(photo_folder, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        f'[teacher]\nmodel="{networks.__file__}:tiny"\n[data]\ntrain="{photo_folder}"\n[cut]\nat="stem"\n[input]\nsize=[32,32]\n'
        '[bottleneck]\npreset="plain"\n'
    )

    made = narrowcast("compile", recipe, "-o", tmp_path / "m.ncb", "--work", tmp_path / "work")
    assert made.returncode == 0, made.stderr
    assert "made a signing key" in made.stderr
    assert "mine, release 1" in made.stdout
    shown = narrowcast("inspect", tmp_path / "m.ncb", "--json")
    assert json.loads(shown.stdout)["name"] == "mine"
    words = ["--data", photo_folder, "--limit", 8, "--json", "--quiet", "--codecs", "none"]
    scored = narrowcast("evaluate", tmp_path / "m.ncb", *words)
    assert scored.stderr == ""
    assert json.loads(scored.stdout)["images"] == 8
