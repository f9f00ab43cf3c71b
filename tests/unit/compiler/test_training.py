"""The training loop: the same result whether or not it was interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.training import PAPERS, Bench, Notes, StopsAfter
from support.waiting import until

from narrowcast.compiler import data as data_module
from narrowcast.compiler import job as jobs
from narrowcast.compiler import training
from narrowcast.compiler.bottlenecks import Group, Loss, Optimizer, Stage
from narrowcast.compiler.data import TrainingData, find_images, prepare_images, split_holdout
from narrowcast.compiler.errors import DataError, TrainingError
from narrowcast.compiler.progress import SILENT
from narrowcast.compiler.training import rate_at
from narrowcast.transport.errors import FrameError


def recipe_of(recipe_for, preset: str):
    """A recipe of 30 steps; for the papers' presets each stage has 15 of them."""
    if preset == "shallow-residual":
        return recipe_for()
    return recipe_for(bottleneck=PAPERS[preset])


@pytest.mark.parametrize(
    ("preset", "steps"),
    [
        *(("shallow-residual", steps) for steps in (3, 8, 20)),
        # In the first stage before and after the learning rate falls, at the border between the stages, in the second.
        *((preset, steps) for preset in PAPERS for steps in (4, 10, 15, 20)),
    ],
)
def test_a_resumed_run_ends_exactly_as_an_uninterrupted_one(recipe_for, tmp_path, monkeypatch, preset, steps):
    recipe = recipe_of(recipe_for, preset)
    whole = Bench(recipe, tmp_path / "a").train()
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    bench = Bench(recipe, tmp_path / "b")
    with pytest.raises(InterruptedError):
        bench.train(StopsAfter(bench.preset, steps))
    again = Bench(recipe, tmp_path / "b")
    resumed = again.train()
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    finished = Bench(recipe, tmp_path / "b").train()  # a finished run is not trained again
    assert all(torch.equal(value, whole[name]) for name, value in finished.items())


def test_a_run_whose_targets_are_kept_later_goes_on_without_them(recipe_for, tmp_path, monkeypatch):
    """Kept targets are rounded: a disk that has room by now must not turn a run that began without it."""
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)

    def bench(name: str) -> Bench:
        made = Bench(recipe_for(train={"images": 48}), tmp_path / name)
        made.data.cache_features(tmp_path, "digest", 1e9, SILENT)
        return made

    whole, first = bench("whole").train(), bench("killed")
    with pytest.raises(InterruptedError):
        first.train(StopsAfter(first.preset, 1))
    again, notes = bench("killed"), []
    stages = again.preset.stages(again.net, again.problem, again.recipe.bottleneck)
    assert again.data.cache_targets("outputs", stages[-1].targets, tmp_path, "digest", 1e9, SILENT)
    assert training._kept_targets(None, stages, again.data, SILENT) == {"features": False, "outputs": True}
    found = again.train(notes=notes)
    assert all(torch.equal(value, whole[name]) for name, value in found.items())
    assert len(notes) == 1
    training._kept_targets({"kept_targets": {"outputs": True}}, stages, first.data, Notes(notes))
    assert "answers for 'outputs' were kept, and now are not" in notes[-1]


def test_a_killed_process_leaves_a_checkpoint_that_another_goes_on_from(recipe_for, photo_folder, tmp_path):
    """SIGKILL, for real, in the middle of `narrowcast compile`."""
    networks = Path(__file__).parents[2] / "support" / "networks.py"
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'[teacher]\nmodel="{networks}:tiny"\n[data]\ntrain="{photo_folder}"\n[cut]\nat="stem"\n[input]\nsize=[32,32]\n'
        '[bottleneck]\nencoder_macs="1M"\nlevels=2\nchannels=8\nstride=4\ndecoder_width=16\n[train]\nimages=100000\nbatch=8\n'
    )
    code = (
        "import sys\nfrom narrowcast.compiler import training\ntraining.CHECKPOINT_SECONDS = 0.2\n"
        "from narrowcast.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "compile", str(recipe), "-o", str(tmp_path / "m.ncb"), "--unsigned"]
    command += ["--work", str(tmp_path / "work")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until(lambda: bool(list(tmp_path.glob("work/r-*/checkpoint.pt"))), "a checkpoint was written", seconds=60)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (checkpoint,) = tmp_path.glob("work/r-*/checkpoint.pt")
    reached = torch.load(checkpoint, weights_only=True)["position"]["step"]
    assert reached > 0
    again = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert again.stderr is not None
    lines = []
    until(
        lambda: lines.append(again.stderr.readline()) or "resuming" in lines[-1], "the second run resumes", seconds=60
    )
    again.kill()
    again.communicate()
    assert int(lines[-1].split("step ")[1].split()[0]) >= reached


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(recipe_for, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    bench = Bench(recipe_for(), tmp_path)

    class Explodes(StopsAfter):
        def stages(self, *args):
            def spoilt(loss):
                def step(batch):
                    found = loss(batch)
                    self.left -= 1
                    return Loss(found.total * float("nan")) if self.left < 0 else found

                return step

            return [replace(s, loss=spoilt(s.loss)) for s in self.preset.stages(*args)]

    with pytest.raises(TrainingError, match=r"the loss is nan at step 4 .*last good state.*learning_rate"):
        bench.train(Explodes(bench.preset, 4))
    assert torch.load(bench.checkpoint, weights_only=True)["position"]["step"] == 4


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_a_broken_checkpoint_says_what_to_do(recipe_for, tmp_path, content):
    bench = Bench(recipe_for(), tmp_path)
    bench.checkpoint.write_bytes(content)
    with pytest.raises(TrainingError, match="delete it to start anew"):
        bench.train()


def test_a_checkpoint_of_another_network_is_refused(recipe_for, tmp_path):
    Bench(recipe_for(), tmp_path).train()
    other = Bench(recipe_for(bottleneck={"channels": 6}), tmp_path)
    with pytest.raises(TrainingError, match="of another run"):
        other.train()


def test_the_learning_rate_warms_up_and_falls():
    rates = [rate_at(done) for done in np.linspace(0, 1, 201)]
    assert max(rates) == pytest.approx(1.0)
    assert rates[0] < 0.2
    assert rates[-1] == pytest.approx(training.LAST_RATE)
    top = int(np.argmax(rates))
    assert rates[top:] == sorted(rates[top:], reverse=True)


class OneStage:
    """A preset of one stage that pulls one number towards zero."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.values: list[float] = []

    def calibrate(self, *args):
        pass

    def stages(self, net, *args):
        number = torch.nn.Parameter(torch.tensor(1.0))

        def loss(batch):
            self.values.append(number.item())
            return Loss(number.square() * 50)

        return [Stage("only", 1.0, [Group([number], 2.0)], loss, self.optimizer)]


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_stage_steps_as_it_says(recipe_for, tmp_path, clip):
    """Against the same steps written out: momentum, decay, a rate that falls twice, gradients shortened or not."""
    recipe = recipe_for(train={"images": 80, "batch": 8, "learning_rate": 1e-3})
    preset = OneStage(Optimizer("sgd", 0.9, 0.1, (0.5, 0.75), clip))
    Bench(recipe, tmp_path).train(preset)
    value, velocity, expected = 1.0, 0.0, []
    for step in range(10):
        expected.append(value)
        rate = 2e-3 * (1 if step < 5 else 0.1 if step < 8 else 0.01)  # three quarters of ten steps end with the eighth
        gradient = 100 * value
        if clip is not None:
            gradient = max(-clip, min(clip, gradient))
        velocity = 0.9 * velocity + gradient + 0.1 * value
        value -= rate * velocity
    assert preset.values == pytest.approx(expected, rel=1e-5)


def test_adam_is_the_default_on_the_runs_own_curve(recipe_for, tmp_path):
    preset = OneStage(Optimizer())
    Bench(recipe_for(train={"images": 80, "batch": 8, "learning_rate": 1e-3}), tmp_path).train(preset)
    steps = -np.diff(preset.values)
    rates = [2e-3 * rate_at(step / 10) for step in range(9)]
    assert steps[:5] == pytest.approx(rates[:5], rel=0.05)


def test_batches_follow_from_the_seed_and_the_step_and_cover_the_data(recipe_for, tmp_path):
    bench = Bench(recipe_for(), tmp_path)
    count = len(bench.data.indices)
    for step in (0, 3, 17):
        first, second = bench.data.batch(step, 8), bench.data.batch(step, 8)
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.uniform(first.features), second.uniform(second.features))
        assert torch.equal(first.levels(3), second.levels(3))
    seen = torch.cat([bench.data.batch(step, count).images for step in (0,)])
    assert len({image.numpy().tobytes() for image in seen}) == count
    assert not torch.equal(bench.data.batch(0, count).images, bench.data.batch(1, count).images)


def test_the_order_of_a_pass_is_drawn_once_and_follows_from_the_seed_and_the_pass(recipe_for, tmp_path, monkeypatch):
    bench = Bench(recipe_for(), tmp_path)
    count, drawn, rng = len(bench.data.indices), [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda key: drawn.append(key) or rng(key))
    steps = 3 * count // 7  # of 7 images: most passes end within a batch
    seen = [bench.data._drawn(step, 7, 0, 1) for step in range(steps)]
    assert drawn == [(0, 0), (0, 1), (0, 2)]
    wanted = np.concatenate([bench.data.indices[rng((0, epoch)).permutation(count)] for epoch in range(3)])
    assert np.concatenate(seen).tolist() == wanted[: steps * 7].tolist()
    resumed = TrainingData(bench.prepared, bench.data.indices, bench.problem, 0)
    for step in (steps - 1, steps // 2, 0):  # wherever it goes on
        assert resumed._drawn(step, 7, 0, 1).tolist() == seen[step].tolist()
        assert resumed._drawn(step, 7, 1, 2).tolist() == seen[step][3:].tolist()
    few = TrainingData(bench.prepared, bench.data.indices[:3], bench.problem, 0)
    assert sorted(few._drawn(1, 12, 0, 1).tolist()) == sorted(bench.data.indices[:3].tolist() * 4)


def test_a_cache_of_which_a_file_is_gone_or_cut_short_is_none(recipe_for, tmp_path):
    recipe, folder = recipe_for(), tmp_path / "cache"
    bench = Bench(recipe, tmp_path)
    bench.data.cache_features(folder, "digest", 1e9, SILENT)
    one = bench.data.batch(0, 8)
    files = find_images(Path(recipe.data.train))
    for kind in ("images-*.u8", "images-*.json", "features-*.f16", "features-*.json"):
        for damage in (Path.unlink, lambda file: os.truncate(file, file.stat().st_size - 2)):
            (file,) = folder.glob(kind)
            damage(file)
            prepared = prepare_images(files, recipe.input, folder)
            again = TrainingData(prepared, bench.data.indices, bench.problem, 0)
            assert again.cache_features(folder, "digest", 1e9, SILENT)
            other = again.batch(0, 8)
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.features, other.features)


def test_what_killed_runs_left_is_cleared_away_at_the_next_start(recipe_for, tmp_path):
    recipe = recipe_for()
    number = 2**22 + 1  # no process has it
    left = [tmp_path / "cache" / f".features-1.f16.{number}.partial"]
    left.append(tmp_path / f"{recipe.name}-0123" / f".checkpoint.pt.{number}.partial")
    for file in left:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"half")
    jobs.Job(recipe, tmp_path, SILENT)
    assert not [file for file in left if file.exists()]


def test_cached_features_are_the_teachers(recipe_for, tmp_path):
    bench = Bench(recipe_for(), tmp_path)
    before = bench.data.batch(2, 8).features
    assert bench.data.cache_features(tmp_path, "digest", 1e9, SILENT)
    assert torch.allclose(bench.data.batch(2, 8).features, before, atol=1e-2)
    assert not bench.data.cache_features(tmp_path, "digest", 1000, SILENT)
    again = TrainingData(bench.prepared, bench.data.indices, bench.problem, 0)
    bench.problem.before = None  # the second time nothing is computed
    assert again.cache_features(tmp_path, "digest", 1e9, SILENT)


@pytest.mark.parametrize("preset", ["shallow-residual", "codebook"])
def test_kept_targets_are_what_the_teacher_says_at_every_step(recipe_for, tmp_path, preset):
    extra = {"codewords": 16, "codebooks": 3} if preset == "codebook" else {"channels": 8}
    keys = {"preset": preset, "encoder_macs": "1M", "levels": 2, "stride": 4, "decoder_width": 16}
    bench = Bench(recipe_for(bottleneck={**keys, **extra}), tmp_path)
    bench.data.cache_features(tmp_path, "digest", 1e9, SILENT)
    (*_, stage) = bench.preset.stages(bench.net, bench.problem, bench.recipe.bottleneck)
    before = stage.loss(bench.data.batch(2, 8, stage=stage.name)).figures["outputs"]
    assert not bench.data.cache_targets(stage.name, stage.targets, tmp_path, "digest", 1000, SILENT)
    assert bench.data.cache_targets(stage.name, stage.targets, tmp_path, "digest", 1e9, SILENT)
    assert bench.data.batch(2, 8).targets is None
    batch = bench.data.batch(2, 8, stage=stage.name)
    assert batch.targets is not None
    assert stage.loss(batch).figures["outputs"] == pytest.approx(before, rel=0.02, abs=1e-4)
    batch.targets[1][:, 0] = 100.0  # what is kept is what is learned
    assert stage.loss(batch).figures["outputs"] > before + 1


def test_a_job_keeps_targets_where_images_are_seen_often_and_only_while_it_trains(recipe_for, tmp_path):
    for images, kept in ((60, 0), (240, 1)):  # of 48
        job = jobs.Job(recipe_for(train={"images": images, "device": "cpu"}), tmp_path / str(images), SILENT)
        job.train()
        assert len(list(job.cache.glob("targets-*.f16"))) == kept
    for path in job.cache.glob("targets-*"):
        path.unlink()
    again = jobs.Job(recipe_for(train={"images": 240, "device": "cpu"}), tmp_path / "240", SILENT)
    again.train()
    assert not list(job.cache.glob("targets-*"))


def test_images_that_cannot_be_read_are_skipped_and_told(photo_folder, recipe_for, tmp_path):
    files = find_images(photo_folder)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a png")
    prepared = prepare_images([bad, *files[:5]], recipe_for().input, tmp_path)
    assert len(prepared) == 5
    assert len(prepared.skipped) == 1
    assert "bad.png" in prepared.skipped[0]
    again = prepare_images([bad, *files[:5]], recipe_for().input, tmp_path)
    assert again.skipped == prepared.skipped
    assert np.array_equal(again.images, prepared.images)
    with pytest.raises(DataError, match="1 of 2 images can be read"):
        prepare_images([bad, files[0]], recipe_for().input, tmp_path)


def test_an_image_that_can_be_read_again_is_not_left_out_for_ever(photo_folder, recipe_for, tmp_path, monkeypatch):
    """Rights and a disk's bad day do not show in a file's size and time."""
    files, contract, honest = find_images(photo_folder)[:4], recipe_for().input, data_module.read
    whole = prepare_images(files, contract, tmp_path / "whole")

    def refuse(*names):
        def read(source, contract):
            if source in names:
                raise FrameError(f"{source} cannot be read: permission denied")
            return honest(source, contract)

        monkeypatch.setattr(data_module, "read", read)

    for limit in (1e9, 0):  # kept, and streamed
        folder = tmp_path / str(limit)
        refuse(files[1])
        less = prepare_images(files, contract, folder, limit_bytes=limit)
        assert less.files == [str(file) for file in (files[0], *files[2:])]
        assert less.digest != whole.digest  # nor is what was made of these taken for those
        refuse(*files[1:])
        with pytest.raises(DataError, match="1 of 4 images can be read"):
            prepare_images(files, contract, tmp_path / f"none-{limit}", limit_bytes=limit)
        monkeypatch.setattr(data_module, "read", honest)
        for place in (folder, tmp_path / f"none-{limit}"):
            again = prepare_images(files, contract, place, limit_bytes=limit)
            assert (again.skipped, again.digest) == ([], whole.digest)
            assert np.array_equal(again.images[np.arange(4)], whole.images)


def test_folders_without_images(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        find_images(tmp_path / "none")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match="no images under"):
        find_images(tmp_path)


def test_every_image_is_either_trained_on_or_held_out():
    for count, part in ((2, 0.01), (2, 0.99), (100, 0.05), (10, 0.5)):
        seen, held = split_holdout(count, part, 0)
        assert sorted([*seen, *held]) == list(range(count))
        assert len(seen) >= 1
        assert len(held) >= 1


@pytest.mark.parametrize("cache_gigabytes", [0.0, 1.0])
def test_the_teacher_is_never_modified(recipe_for, tmp_path, cache_gigabytes):
    """Its own layers are the trunk, and its batch statistics stay what they are, whether or not features are cached."""
    networks = Path(__file__).parents[2] / "support" / "networks.py"
    recipe = recipe_for(
        teacher={"model": f"{networks}:normalised"},
        bottleneck={"trunk": "teacher"},
        train={"images": 48, "cache_gigabytes": cache_gigabytes},
    )
    job = jobs.Job(recipe, tmp_path, SILENT)
    before = {name: value.clone() for name, value in job.teacher.state_dict().items()}
    job.train()
    after = job.teacher.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not any(module.training for module in job.teacher.modules())


def test_another_network_under_the_same_weights_is_another_run(recipe_for, tmp_path):
    source = (
        "import torch\nfrom torch import nn\n\ndef load():\n    torch.manual_seed(0)\n    return nn.Sequential("
        "nn.Conv2d(3, 8, 3, 2, 1), nn.{}(), nn.Conv2d(8, 8, 3, 2, 1), nn.Flatten(), nn.Linear(512, 4))\n"
    )
    folders = set()
    for activation in ("ReLU", "Tanh", "ReLU"):
        (tmp_path / "net.py").write_text(source.format(activation))
        recipe = recipe_for(teacher={"model": f"{tmp_path}/net.py:load"}, cut={"at": "1"})
        folders.add(jobs.Job(recipe, tmp_path / "work", SILENT).folder)
    assert len(folders) == 2
