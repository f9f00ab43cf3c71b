"""The local exit in the recipe: distilled, exported, verified, measured, in the bundle."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from support import bundles
from support.command import narrowcast

from narrowcast.compiler import exit as exits
from narrowcast.compiler.compile import compile as compile_recipe
from narrowcast.compiler.data import split_holdout
from narrowcast.compiler.errors import ExitError, TrainingError, VerificationError
from narrowcast.compiler.evaluate import evaluate_frames
from narrowcast.compiler.exit import Coded, ExitNetwork, train_exit, verify_exit
from narrowcast.compiler.export import export_exit
from narrowcast.compiler.job import Job
from narrowcast.compiler.progress import SILENT
from narrowcast.compiler.recipe import ExitSettings
from narrowcast.compiler.retune import _OnTop
from narrowcast.compiler.verify import OnnxNetwork
from narrowcast.head.session import HeadSession
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.bundle.writer import write_subset
from narrowcast.transport.errors import ConfigError, MissingPartError

TRUSTED = [bundles.KEY.public]
EXIT = {"width": 8, "images": 128, "passes": 4}
SETTINGS = ExitSettings(**EXIT)


class Notes:
    """Progress that keeps what it is told, and the names of its tasks."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.titles: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)

    def task(self, title: str, total: int, unit: str):
        self.titles.append(title)
        return SILENT.task(title, total, unit)


@pytest.fixture(scope="module")
def made(compiled, recipe_for, tmp_path_factory):
    """The bundle of the small teacher with a local exit; the bottleneck is trained already."""
    file = tmp_path_factory.mktemp("exit") / "exit.ncb"
    return compile_recipe(recipe_for(exit=EXIT), file, key=bundles.KEY, work=compiled[1] / "work")


@pytest.fixture(scope="module")
def bundle(made):
    return Bundle.open(made.bundle, trusted=TRUSTED)


@pytest.fixture
def job(made, recipe_for, compiled):
    """The same job once more, with its bottleneck trained."""
    found = Job(recipe_for(exit=EXIT), compiled[1] / "work", Notes())
    found.train()
    found.settle()
    return found


@pytest.fixture(scope="module")
def held(made, compiled):
    """The held-out images."""
    (file,) = (compiled[1] / "work" / "cache").glob("images-*.u8")
    images = np.memmap(file, np.uint8, "r").reshape(-1, 32, 32, 3)
    return np.ascontiguousarray(images[split_holdout(len(images), 0.2, 0)[1]])


def test_it_changes_nothing_else(made, compiled):
    """The encoder, its tables and their fingerprint are those of the bundle without an exit."""
    before, after = compiled[0].manifest, made.manifest
    assert after.fingerprint == before.fingerprint
    hashes = {part.name: part.sha256 for part in after.parts}
    assert {part.name: hashes[part.name] for part in before.parts} == {p.name: p.sha256 for p in before.parts}
    assert set(hashes) - {part.name for part in before.parts} == {"exit.fp32.onnx"}
    assert after.figures["levels"] == before.figures["levels"]


def test_it_is_a_part_for_the_device(made, bundle, tmp_path):
    part = made.manifest.find("exit")
    assert (part.roles, part.optional, part.precision) == (["device"], False, "fp32")
    model = onnx.load_from_string(bundle.read("exit"))
    assert model.opset_import[0].version == 17
    values = (*model.graph.input, *model.graph.output)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    assert shapes == {"symbols": [1, 8, 8, 8], "level": [1], "output": [1, 4]}
    write_subset(bundle, "server", tmp_path / "server.ncb")
    assert not Bundle.open(tmp_path / "server.ncb", "server", trusted=TRUSTED).has("exit")
    with pytest.raises(MissingPartError, match=r"exit\.fp32\.onnx"):
        Bundle.open(tmp_path / "server.ncb", "device", trusted=TRUSTED)


def test_its_figures_are_what_is_measured_again(made, bundle, held):
    figures = made.manifest.figures["exit"]
    assert figures["ms"] > 0
    assert figures["ms_with"].startswith("onnxruntime ")
    network = ExitNetwork((8, 8, 8), 3, 4, EXIT["width"])
    assert figures["parameters"] == sum(p.numel() for p in network.parameters())
    assert 10_000 < figures["macs"] < 1_000_000
    wanted = OnnxNetwork(bundle.read("whole"))(image=held)["output"].argmax(1)
    session = HeadSession(bundle)
    for row in figures["levels"]:
        got = [int(session.answer(session.symbols(f, row["level"]), row["level"])["output"].argmax()) for f in held]
        assert row["agreement"] == pytest.approx(np.mean(got == wanted))
    (score,) = evaluate_frames(bundle, held, None, codecs=()).of("exit")
    assert (score.setting, score.mean_bytes) == (2, None)
    assert score.agreement == pytest.approx(figures["levels"][2]["agreement"])


def test_it_learns_what_the_symbols_tell():
    """Scores that follow from the symbols, at levels whose steps are far apart."""
    random = np.random.default_rng(0)
    latent = random.normal(size=(600, 6, 6, 6)) + random.normal(size=(600, 6, 1, 1))
    level = torch.from_numpy(random.integers(0, 2, 600))
    steps = np.where(level.numpy() == 0, 4.0, 12.0)[:, None, None, None]
    symbols = torch.from_numpy(np.clip(np.round(latent * steps) + 60, 0, 127).astype(np.uint8))
    scores = torch.from_numpy(latent.mean((2, 3))).float() * 4
    torch.manual_seed(0)
    network = ExitNetwork((6, 6, 6), 2, 6, 16)
    seen, unseen = slice(0, 500), slice(500, 600)
    network.start_from(symbols[seen], level[seen])
    settings = ExitSettings(width=16, images=500, passes=12)
    exits._fit(network, Coded(symbols[seen], level[seen], scores[seen]), settings, 0, SILENT)
    with torch.no_grad():
        got = network.eval()(symbols[unseen], level[unseen])
    assert (got.argmax(1) == scores[unseen].argmax(1)).float().mean() > 0.5  # chance: a sixth


def test_it_learns_what_indices_tell():
    """Symbols without an order: the class is the index that a frame shows most."""
    random = np.random.default_rng(0)
    level = torch.from_numpy(random.integers(0, 2, 600))
    wanted = random.integers(0, 6, 600)
    order = random.permutation(32)  # near indices have nothing in common
    drawn = np.where(
        random.random((600, 2, 4, 4)) < 0.4, wanted[:, None, None, None], random.integers(0, 32, (600, 2, 4, 4))
    )
    symbols = torch.from_numpy(order[drawn].astype(np.uint8))
    scores = torch.nn.functional.one_hot(torch.from_numpy(wanted), 6).float() * 6
    torch.manual_seed(0)
    network = ExitNetwork((2, 4, 4), 2, 6, 16, words=32)
    seen, unseen = slice(0, 500), slice(500, 600)
    network.start_from(symbols[seen], level[seen])
    settings = ExitSettings(width=16, images=500, passes=12)
    exits._fit(network, Coded(symbols[seen], level[seen], scores[seen]), settings, 0, SILENT)
    with torch.no_grad():
        got = network.eval()(symbols[unseen], level[unseen])
    assert (got.argmax(1) == scores[unseen].argmax(1)).float().mean() > 0.5


def test_it_is_kept_and_depends_on_the_seed_alone(job):
    notes: Notes = job.progress
    first = train_exit(job, SETTINGS).state_dict()
    assert "training: local exit" not in notes.titles  # taken from the folder
    (kept,) = job.folder.glob("exit-*.pt")
    whole = kept.read_bytes()
    kept.write_bytes(b"broken")
    try:
        again = train_exit(job, SETTINGS).state_dict()
    finally:
        kept.write_bytes(whole)
    assert any("cannot be read" in line for line in notes.lines)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_of_another_encoder_in_the_same_run_it_is_another(job):
    """A damaged checkpoint is deleted, and the run trained anew: not to the bit the same on another machine."""
    kept = list(job.folder.glob("exit-*.pt"))
    train_exit(job, SETTINGS)
    assert list(job.folder.glob("exit-*.pt")) == kept
    weight = next(job.bottleneck.encoder.parameters())
    with torch.no_grad():
        weight += 1e-3
    try:
        train_exit(job, SETTINGS)
    finally:
        with torch.no_grad():
            weight -= 1e-3
    (new,) = set(job.folder.glob("exit-*.pt")) - set(kept)
    new.unlink()


def test_what_it_learns_from_is_bounded(job, monkeypatch):
    monkeypatch.setattr(exits, "MEMORY_BYTES", 64 * 8 * 8 * 8)
    coded = exits._code(job, SETTINGS)
    assert coded.symbols.shape == (64, 8, 8, 8)
    assert coded.scores.shape == (64, 4)
    assert set(coded.level.tolist()) == {0, 1, 2}
    assert any("learns from 64 images" in line for line in job.progress.lines)


@pytest.mark.parametrize(("what", "step"), [("loss", 1), ("gradient's norm", 0)])
def test_what_is_no_number_stops_it_before_a_weight_is_changed(what, step):
    """Two steps of 64 images: the loss is none at the second one, and the gradient behind a good loss at the first."""
    network = ExitNetwork((2, 4, 4), 1, 3, 8)
    scores = torch.zeros(128, 3)
    if what == "loss":
        order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
        scores[order[-1]] = float("nan")
    else:
        network.scale.register_hook(lambda gradient: gradient * float("inf"))
    coded = Coded(torch.zeros(128, 2, 4, 4, dtype=torch.uint8), torch.zeros(128, dtype=torch.int64), scores)
    said = rf"the {what} of the local exit is \w+ at step {step} of 2 \(.*kept\): check .*\[input\] range.*without \[exit\]"
    with pytest.raises(TrainingError, match=said):
        exits._fit(network, coded, ExitSettings(width=8, images=128, passes=1), 0, SILENT)
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


def test_one_level_needs_no_input_for_it(recipe_for, tmp_path):
    recipe = recipe_for(exit={**EXIT, "passes": 1}, bottleneck={"preset": "plain", "bits": 4})
    result = compile_recipe(recipe, tmp_path / "m.ncb", work=tmp_path / "work")
    session = HeadSession(Bundle.open(tmp_path / "m.ncb", allow_unsigned=True))
    assert OnnxNetwork(session.bundle.read("exit")).inputs == ["symbols"]
    symbols = session.symbols(np.zeros((32, 32, 3), np.uint8), 0)
    assert session.answer(symbols, 0)["output"].shape == (4,)
    assert len(result.manifest.figures["exit"]["levels"]) == 1


def test_a_codebooks_indices_are_exported():
    torch.manual_seed(0)
    network = ExitNetwork((2, 4, 4), 2, 6, 8, words=16).eval()
    symbols = np.random.default_rng(0).integers(0, 16, (2, 3, 2, 4, 4)).astype(np.uint8)
    verify_exit(network, export_exit(network, (2, 4, 4), 2, "output"), list(symbols))


def test_a_retuned_bundle_keeps_its_exit(job, bundle, compiled):
    top = _OnTop(job, bundle, [])
    assert top._exit(b"") == {"exit": bundle.manifest.figures["exit"]}
    assert top.parts.contents == {"exit.fp32.onnx": bundle.read("exit")}
    without = _OnTop(job, Bundle.open(compiled[0].bundle, trusted=TRUSTED), [])
    assert without._exit(b"") == {}
    assert without.parts.contents == {}
    assert any("boards keep their parts" in line for line in job.progress.lines)


def test_a_network_that_gives_more_than_class_scores(recipe_for, tmp_path):
    networks = recipe_for().teacher.model.removesuffix(":tiny")
    recipe = recipe_for(teacher={"model": f"{networks}:two_outputs"}, exit=EXIT)
    with pytest.raises(ExitError, match=r"gives mask \[1, 16, 16\], scores \[5\].*whole = true"):
        compile_recipe(recipe, tmp_path / "m.ncb", work=tmp_path / "work")
    assert not list((tmp_path / "work").glob("test-*"))  # before anything was trained


@pytest.mark.parametrize("table", [{"width": 4}, {"images": 0}, {"passes": 0}, {"widht": 32}])
def test_a_table_that_cannot_be(recipe_for, table):
    with pytest.raises(ConfigError, match="exit"):
        recipe_for(exit=table)


def test_an_export_that_answers_otherwise_is_refused(bundle):
    torch.manual_seed(1)
    other = ExitNetwork((8, 8, 8), 3, 4, EXIT["width"]).eval()
    with pytest.raises(VerificationError, match="level 0: the exported local exit is"):
        verify_exit(other, bundle.read("exit"), [np.zeros((1, 8, 8, 8), np.uint8)] * 3)


def test_inspect_shows_it(made, tmp_path):
    bundles.KEY.public.write(tmp_path / "k.pub")
    shown = narrowcast("inspect", made.bundle, "--trust", tmp_path / "k.pub").stdout
    assert "exit.fp32.onnx" in shown
    assert "local exit: " in shown
    assert "agrees with the teacher: level 0 " in shown
