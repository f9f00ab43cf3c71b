"""Several bundles in one run: one teacher, one cache; failures, resuming, warm starts."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from support import bundles, networks
from support.training import Notes

from narrowcast.cli import main
from narrowcast.compiler import compile as compiling
from narrowcast.compiler import job as jobs
from narrowcast.compiler import sweep as sweeping
from narrowcast.compiler.errors import TrainingError
from narrowcast.compiler.recipe import TailSettings
from narrowcast.compiler.sweep import parse_axis, sweep
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.errors import ConfigError

PAPER = {"preset": "entropic-student", "channels": 4, "decoder_width": 8, "first_stage": 0.5}
TRAIN = {"images": 64, "batch": 8}
EXPORT = {"whole": False}  # one network less to export for every point


@pytest.fixture
def recipe(recipe_for):
    return recipe_for(bottleneck=PAPER, train=TRAIN, export=EXPORT)


@pytest.fixture
def loads(monkeypatch):
    """How often a teacher was loaded."""
    counted: list[str] = []
    load = jobs.load_teacher

    def counting(model, **rest):
        counted.append(model)
        return load(model, **rest)

    monkeypatch.setattr(jobs, "load_teacher", counting)
    return counted


def test_a_sweep_gives_the_bundles_that_single_runs_give(recipe, loads, tmp_path):
    notes: list[str] = []
    axes = {"bottleneck.beta": [0.001, 1000.0], "bottleneck.channels": [6]}
    points = sweep(recipe, axes, tmp_path / "m.ncb", key=bundles.KEY, work=tmp_path / "work", progress=Notes(notes))
    assert len(loads) == 1
    assert len(list((tmp_path / "work" / "cache").glob("*.u8"))) == 1
    assert [point.bundle.name for point in points] == [
        "m-beta0.001-channels6.ncb", "m-beta1000.0-channels6.ncb",
    ]  # fmt: skip
    for point in points:
        manifest = Bundle.open(point.bundle, trusted=[bundles.KEY.public]).manifest
        assert manifest.recipe["bottleneck"]["beta"] == point.values["bottleneck.beta"]
        assert manifest.codec.shape[0] == point.values["bottleneck.channels"]
        assert manifest.name == f"test-{point.bundle.stem[2:]}"
        assert "started_from" not in manifest.figures

    # The last one, alone and with a teacher of its own.
    bottleneck = msgspec.structs.replace(recipe.bottleneck, beta=1000.0, channels=6)
    alone = msgspec.structs.replace(recipe, bottleneck=bottleneck)
    single = compiling.compile(alone, tmp_path / "alone.ncb", work=tmp_path / "other").manifest
    assert single.fingerprint == points[-1].manifest.fingerprint
    assert single.figures["levels"] == points[-1].manifest.figures["levels"]

    # Once more: nothing is made again.
    before = {point.bundle: point.bundle.stat().st_mtime_ns for point in points}
    again = sweep(recipe, axes, tmp_path / "m.ncb", key=bundles.KEY, work=tmp_path / "work", progress=Notes(notes))
    assert sum("is there already" in note for note in notes) == 2
    assert {point.bundle: point.bundle.stat().st_mtime_ns for point in again} == before
    assert [point.rows() for point in again] == [point.rows() for point in points]


def test_a_point_that_fails_is_told_of_and_passed_over(recipe, tmp_path, monkeypatch):
    train, starts = jobs.Job.train, []

    def failing(job):
        starts.append(job.start)
        if job.recipe.bottleneck.beta == 2:
            raise TrainingError("the loss is nan at step 4")
        if job.recipe.bottleneck.beta == 3:
            raise ZeroDivisionError("nobody has foreseen this")
        train(job)

    monkeypatch.setattr(jobs.Job, "train", failing)
    notes: list[str] = []
    axes = {"bottleneck.beta": [1, 2, 3, 4]}
    work = tmp_path / "work"
    points = sweep(recipe, axes, tmp_path / "m.ncb", warm_start=0.25, work=work, progress=Notes(notes))
    assert [point.error for point in points] == [
        None, "the loss is nan at step 4", "unexpected ZeroDivisionError: nobody has foreseen this", None,
    ]  # fmt: skip
    assert [point.bundle.exists() for point in points] == [True, False, False, True]
    assert points[1].rows()[0]["mean_packet_bytes"] is None
    assert "  failed: the loss is nan at step 4" in notes
    assert starts[0] is None
    assert starts[1] == starts[2] == starts[3]  # the last that was trained


def test_a_warm_start_goes_on_from_the_point_before_with_fewer_images(recipe, tmp_path):
    points = sweep(recipe, {"bottleneck.beta": [1, 4]}, tmp_path / "m.ncb", warm_start=0.25, work=tmp_path / "work")
    first, second = (point.manifest for point in points)
    assert "started_from" not in first.figures
    assert second.figures["started_from"].startswith("test-beta1-")
    assert (first.recipe["train"]["images"], second.recipe["train"]["images"]) == (64, 16)
    (checkpoint,) = (tmp_path / "work").glob("test-beta4-*/checkpoint.pt")
    assert torch.load(checkpoint, weights_only=True)["position"]["step"] == 2
    start = torch.load(tmp_path / "work" / second.figures["started_from"] / "checkpoint.pt", weights_only=True)
    reached, begun = (torch.load(checkpoint, weights_only=True)["bottleneck"], start["bottleneck"])
    moved = (reached["encoder.0.weight"] - begun["encoder.0.weight"]).abs().max()
    assert 0 < moved < 0.01  # one step of Adam at 1e-3, not other first weights


def test_points_that_differ_in_coding_alone_share_a_training(recipe, tmp_path):
    axes, work = {"coding.tables": ["channel", "context"]}, tmp_path / "work"
    points = sweep(recipe, axes, tmp_path / "m.ncb", work=work)
    assert [point.error for point in points] == [None, None]
    assert [point.manifest.recipe["coding"]["tables"] for point in points] == ["channel", "context"]
    assert len(list(work.glob("*/checkpoint.pt"))) == 1
    notes: list[str] = []
    sweep(recipe, axes, tmp_path / "m.ncb", work=work, progress=Notes(notes))
    assert sum("is there already" in note for note in notes) == 2


def test_a_warm_start_from_another_shape_says_so(recipe, tmp_path):
    points = sweep(recipe, {"bottleneck.channels": [4, 6]}, tmp_path / "m.ncb", warm_start=0.5, work=tmp_path / "work")
    assert points[0].error is None
    assert "a bottleneck of another shape" in points[1].error


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("bottleneck.beta=0.32,1.28", ("bottleneck.beta", [0.32, 1.28])),
        ("bottleneck.trunk=new,teacher", ("bottleneck.trunk", ["new", "teacher"])),
        ("bottleneck.rate_weights=[0.5, 8], [1, 16]", ("bottleneck.rate_weights", [[0.5, 8], [1, 16]])),
        ("bottleneck.tune_tail=true", ("bottleneck.tune_tail", [True])),
        (' cut.at = "stem", "body" ', ("cut.at", ["stem", "body"])),
    ],
)
def test_values_are_tomls_or_words(text, wanted):
    assert parse_axis(text) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beta=1", "it goes TABLE.KEY=VALUE"),
        ("bottleneck.beta", "it goes TABLE.KEY=VALUE"),
        ("bottleneck.beta=1,1", "each once"),
        ("bottleneck.trunk=new,,teacher", "without a gap"),
        ("teacher.model=a,b", r"what \[teacher\] says is shared by all"),
    ],
)
def test_sweeps_that_are_none(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_axis(text)


def test_a_value_that_cannot_be_stops_everything_before_it_starts(recipe, tmp_path):
    with pytest.raises(ConfigError, match="beta-1"):
        sweep(recipe, {"bottleneck.beta": [1, -1]}, tmp_path / "m.ncb", work=tmp_path / "work")
    with pytest.raises(ConfigError, match=r"sweep-warm-start is 2; a part"):
        sweep(recipe, {"bottleneck.beta": [1]}, tmp_path / "m.ncb", warm_start=2, work=tmp_path / "work")
    with pytest.raises(ConfigError, match="two points have the same name"):
        sweep(msgspec.structs.replace(recipe, name="n" * 63), {"bottleneck.beta": [1, 2]}, tmp_path / "m.ncb")
    assert not (tmp_path / "work").exists()


def test_the_command_line_prints_and_writes_the_table(recipe_for, photo_folder, tmp_path, capsys):
    networks = recipe_for().teacher.model
    file = tmp_path / "r.toml"
    file.write_text(
        f'[teacher]\nmodel="{networks}"\n[data]\ntrain="{photo_folder}"\n[cut]\nat="stem"\n[input]\nsize=[32,32]\n'
        '[bottleneck]\npreset="plain"\n[export]\nwhole=false\n'
    )
    common = ["compile", str(file), "-o", str(tmp_path / "m.ncb"), "--unsigned", "--work", str(tmp_path / "work")]
    sweeping = [*common, "--sweep", "bottleneck.bits=2,8", "--csv", str(tmp_path / "t.csv"), "--quiet"]
    assert main([*sweeping, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["values"] for row in rows] == [{"bottleneck.bits": 2}, {"bottleneck.bits": 8}]
    assert rows[0]["mean_packet_bytes"] < rows[1]["mean_packet_bytes"]
    with (tmp_path / "t.csv").open() as table:
        assert [row["bottleneck.bits"] for row in csv.DictReader(table)] == ["2", "8"]
    made = [(tmp_path / f"m-bits{bits}.ncb").stat().st_mtime_ns for bits in (2, 8)]
    assert main(sweeping) == 0
    assert "m-bits8.ncb" in capsys.readouterr().out
    assert [(tmp_path / f"m-bits{bits}.ncb").stat().st_mtime_ns for bits in (2, 8)] == made  # kept: nothing has changed
    (tmp_path / "no").touch()
    nowhere = [*common, "--sweep", "bottleneck.bits=2", "--csv", str(tmp_path / "no" / "t.csv"), "--quiet"]
    assert main(nowhere) != 0
    assert "m-bits2.ncb" in capsys.readouterr().out  # what was found is told first
    assert main([*common, "--csv", "x.csv"]) == 2
    assert main([*sweeping, "--retune", "x.ncb"]) == 2
    assert main([*sweeping, "--sweep", "bottleneck.bits=3"]) == 2


def test_a_bundle_is_made_anew_where_a_tails_network_or_a_video_has_changed(recipe_for, tmp_path, monkeypatch):
    """Neither is told by the recipe, nor by the run."""
    weights, clip = tmp_path / "w.safetensors", tmp_path / "films" / "a.mkv"
    network = networks.tiny()
    save_file(network.state_dict(), weights)
    clip.parent.mkdir()
    clip.write_bytes(b"one")
    tail = {"name": "other", "model": f"{networks.__file__}:tiny", "weights": str(weights)}
    data = {"video": str(clip.parent)}
    recipe = recipe_for(bottleneck=PAPER, train=TRAIN, data=data, coding={"video": True}, tails=[tail])
    made: list[str] = []

    def finish(job, file, key):
        made.append(job.recipe.name)
        wanted = msgspec.to_builtins(job.recipe)
        del wanted["folder"]
        found = bundles.make()
        manifest = msgspec.structs.replace(found.manifest, recipe=wanted)
        bundles.Made(manifest, found.contents).write(file, key)
        jobs.remember(job.folder, manifest)
        job.checkpoint.touch()
        return SimpleNamespace(manifest=manifest)

    monkeypatch.setattr(sweeping, "finish", finish)
    monkeypatch.setattr(jobs, "check_recorded", lambda *_: None)  # the film is none

    def calls() -> int:
        """How many bundles are made now."""
        made.clear()
        (point,) = sweep(recipe, {"bottleneck.beta": [1]}, tmp_path / "m.ncb", key=bundles.KEY, work=tmp_path / "work")
        assert point.error is None
        return len(made)

    assert [calls(), calls()] == [1, 0]
    clip.write_bytes(b"another")
    assert [calls(), calls()] == [1, 0]
    with torch.no_grad():
        network.classifier.bias += 1
    save_file(network.state_dict(), weights)
    assert [calls(), calls()] == [1, 0]


@pytest.mark.slow
def test_points_have_the_recipes_further_tails(recipe, tmp_path):
    tail = TailSettings(name="other", model=recipe.teacher.model, images=16, decoder_width=8)
    with_tail = msgspec.structs.replace(recipe, tails=[tail])
    (point,) = sweep(with_tail, {"bottleneck.beta": [1]}, tmp_path / "m.ncb", work=tmp_path / "work")
    assert point.error is None
    assert [one.name for one in point.manifest.tails] == ["other"]


def test_points_cannot_differ_in_what_they_share(recipe, tmp_path):
    with pytest.raises(ConfigError, match=r"input\.size: points may differ in \[bottleneck\]"):
        sweep(recipe, {"input.size": [[32, 32], [48, 48]]}, tmp_path / "m.ncb", work=tmp_path / "work")
