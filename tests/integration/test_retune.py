"""Another tail for a bundle that is out: the boards' part of it stays as it was, byte for byte."""

from __future__ import annotations

import re

import msgspec
import pytest
import torch
from support import bundles, networks
from support.training import PAPERS, Notes

from narrowcast.cli import main
from narrowcast.compiler.compile import compile as compile_recipe
from narrowcast.compiler.errors import DataError, RetuneError, TrainingError
from narrowcast.compiler.evaluate import evaluate
from narrowcast.compiler.job import remember, run_of
from narrowcast.compiler.recipe import TailSettings
from narrowcast.compiler.retune import retune
from narrowcast.compiler.tails import FurtherTail
from narrowcast.transport.bundle import Bundle, write_bundle
from narrowcast.transport.errors import BundleError

TRUSTED = [bundles.KEY.public]
TUNED = {"tune_tail": True}


@pytest.fixture
def old(compiled):
    return Bundle.open(compiled[0].bundle, trusted=TRUSTED)


@pytest.mark.parametrize("label_weight", [0.0, 0.5])
def test_only_the_servers_part_changes(compiled, old, recipe_for, photo_folder, tmp_path, label_weight):
    recipe = recipe_for(bottleneck=TUNED | {"label_weight": label_weight}, train={"images": 1200})
    made = retune(recipe, old, tmp_path / "new.ncb", key=bundles.KEY, work=compiled[1] / "work")
    new = Bundle.open(made.bundle, trusted=TRUSTED)
    assert new.manifest.fingerprint == old.manifest.fingerprint
    assert new.manifest.codec == old.manifest.codec
    assert new.manifest.release == old.manifest.release + 1
    changed = {
        one.kind
        for one, other in zip(old.manifest.parts, new.manifest.parts, strict=True)
        if one.sha256 != other.sha256
    }
    assert changed == {"tail"}
    before, after = (evaluate(bundle, photo_folder, codecs=()) for bundle in (old, new))
    assert [s.mean_bytes for s in before.of("split")] == [s.mean_bytes for s in after.of("split")]
    if not label_weight:  # where the answers were furthest from the teacher's they are closer now
        assert after.of("split")[0].output_error < before.of("split")[0].output_error


@pytest.mark.slow
def test_a_retuned_bundle_can_be_retuned(compiled, old, recipe_for, tmp_path):
    """It goes on from what it was made of, which is the retuned run and not the first one."""
    work = compiled[1] / "work"
    recipe = recipe_for(bottleneck=TUNED, train={"images": 80})
    first = retune(recipe, old, tmp_path / "1.ncb", key=bundles.KEY, work=work)
    again = Bundle.open(first.bundle, trusted=TRUSTED)
    assert run_of(work, again.manifest) == first.work
    assert run_of(work, old.manifest) == compiled[0].work
    second = retune(recipe, again, tmp_path / "2.ncb", key=bundles.KEY, work=work)
    assert second.manifest.release == old.manifest.release + 2
    assert second.manifest.fingerprint == old.manifest.fingerprint
    assert second.work not in (first.work, compiled[0].work)
    tails = [one.manifest.find("tail").sha256 for one in (first, second)]
    assert tails[0] != tails[1]


def test_what_was_measured_and_learned_stays_and_so_does_the_name(recipe_for, tmp_path, monkeypatch):
    """A quantizer that was measured on other images would be another one; a further tail goes on from what it is."""
    recipe = recipe_for(bottleneck=PAPERS["bottlefit"], train={"images": 64})
    tail = TailSettings(name="second", model=recipe.teacher.model, images=16, decoder_width=8)
    recipe = msgspec.structs.replace(recipe, tails=[tail])
    work = tmp_path / "work"
    first = compile_recipe(recipe, tmp_path / "a.ncb", key=bundles.KEY, work=work)
    calibrated: list[str] = []
    monkeypatch.setattr(FurtherTail, "calibrate", lambda *_: calibrated.append("anew"))
    other = msgspec.structs.replace(
        recipe, name="other", train=msgspec.structs.replace(recipe.train, seed=1, images=16)
    )
    notes: list[str] = []
    old = Bundle.open(first.bundle, trusted=TRUSTED)
    made = retune(other, old, tmp_path / "b.ncb", key=bundles.KEY, work=work, progress=Notes(notes))
    assert made.manifest.fingerprint == first.manifest.fingerprint
    assert made.manifest.name == first.manifest.name == "test"
    assert any("its name is 'test'" in note for note in notes)
    assert not calibrated
    for kind in ("tail", "second"):
        parts = [one.manifest.find("tail", tail=None if kind == "tail" else kind).sha256 for one in (first, made)]
        assert parts[0] != parts[1], kind


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({}, "tunes no tail"),
        ({"bottleneck": TUNED | {"decoder_width": 24}}, "not that of test"),
        ({"bottleneck": TUNED | {"channels": 4}}, "not that of test"),
        ({"bottleneck": TUNED, "cut": {"at": "body"}}, "cut at 'stem'"),
        ({"bottleneck": TUNED, "input": {"interpolation": "bicubic"}}, "[input] is not that of test"),
    ],
)
def test_recipes_that_do_not_fit(compiled, old, recipe_for, tmp_path, tables, says):
    with pytest.raises(RetuneError, match=re.escape(says)):
        retune(recipe_for(**tables), old, tmp_path / "x.ncb", work=compiled[1] / "work")


def test_a_teacher_whose_layers_in_the_head_have_changed(compiled, old, recipe_for, tmp_path):
    """Those of the old run would go into the teacher, and their features into the cache as the new teacher's."""
    state = networks.tiny().state_dict()
    torch.save(state | {"stem.0.bias": state["stem.0.bias"] + 1}, tmp_path / "other.pt")
    recipe = recipe_for(teacher={"weights": str(tmp_path / "other.pt")}, bottleneck=TUNED)
    kept = sorted((compiled[1] / "work" / "cache").iterdir())
    with pytest.raises(RetuneError, match="layers before the cut are not those that test was made with"):
        retune(recipe, old, tmp_path / "x.ncb", work=compiled[1] / "work")
    assert sorted((compiled[1] / "work" / "cache").iterdir()) == kept


def test_the_run_must_be_there(old, recipe_for, tmp_path):
    with pytest.raises(RetuneError, match=r"was not made in .*--work"):
        retune(recipe_for(bottleneck=TUNED), old, tmp_path / "x.ncb", work=tmp_path / "elsewhere")


def test_a_checkpoint_that_is_broken_is_said(compiled, old, recipe_for, tmp_path):
    run = tmp_path / "test-0123"
    run.mkdir()
    remember(run, old.manifest)
    (run / "checkpoint.pt").write_bytes(b"nothing")
    with pytest.raises(TrainingError, match="cannot be read"):
        retune(recipe_for(bottleneck=TUNED), old, tmp_path / "x.ncb", work=tmp_path)


def test_a_bundle_of_strangers_is_not_signed_again(compiled, old, recipe_for, tmp_path):
    with pytest.raises(BundleError):
        retune(recipe_for(bottleneck=TUNED), old.path, tmp_path / "x.ncb", key=bundles.KEY, work=compiled[1] / "work")


def test_an_unsigned_head_is_not_signed(compiled, old, recipe_for, tmp_path):
    contents = {part.name: old.read(part.kind, part.precision) for part in old.manifest.parts}
    write_bundle(tmp_path / "unsigned.ncb", old.manifest, contents, None)
    with pytest.raises(RetuneError, match="not signed"):
        retune(recipe_for(bottleneck=TUNED), tmp_path / "unsigned.ncb", tmp_path / "x.ncb", key=bundles.KEY)


def test_folders_that_are_no_classes_are_said_before_training(recipe_for, photo_folder, tmp_path):
    recipe = recipe_for(bottleneck=TUNED | {"label_weight": 0.5}, data={"train": str(photo_folder / "1")})
    with pytest.raises(DataError, match="not in class folders and no labels.csv"):
        compile_recipe(recipe, tmp_path / "x.ncb", work=tmp_path / "work")


def test_the_command_line_retunes(photo_folder, tmp_path, capsys):
    from support import networks

    recipe = tmp_path / "r.toml"
    text = f"""
    [teacher]
    model = "{networks.__file__}:tiny"
    [data]
    train = "{photo_folder}"
    [cut]
    at = "stem"
    [input]
    size = [32, 32]
    [bottleneck]
    encoder_macs = "1M"
    levels = 2
    channels = 4
    stride = 4
    decoder_width = 8
    tune_tail = TUNE
    [train]
    images = 64
    batch = 8
    """
    work, first, second = (str(tmp_path / name) for name in ("work", "a.ncb", "b.ncb"))
    recipe.write_text(text.replace("TUNE", "false"))
    assert main(["compile", str(recipe), "-o", first, "--work", work]) == 0
    assert main(["compile", str(recipe), "-o", second, "--work", work, "--retune", first]) == 1
    assert "set tune_tail = true" in capsys.readouterr().err
    recipe.write_text(text.replace("TUNE", "true"))
    assert main(["compile", str(recipe), "-o", second, "--work", work, "--retune", first]) == 0
    fingerprints = {Bundle.open(path, allow_unsigned=True).manifest.fingerprint for path in (first, second)}
    assert len(fingerprints) == 1
    assert "release 2" in capsys.readouterr().out
