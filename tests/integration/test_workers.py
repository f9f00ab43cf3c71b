"""Training in two real processes over gloo: the same as in one, through kills, to the bit."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from support import pairs
from support.training import Notes
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from narrowcast.compiler import workers
from narrowcast.compiler.errors import CompilerError, TrainingError
from narrowcast.compiler.job import Job
from narrowcast.compiler.progress import SILENT

# Never imported here: it changes the training loop of the process that it is in.
DRIVER = Path(pairs.__file__).with_name("driver.py")


def run(recipe, work: Path, *words: str) -> subprocess.CompletedProcess[str]:
    work.mkdir(exist_ok=True)
    (work / "recipe.json").write_bytes(msgspec.json.encode(recipe))
    command = [sys.executable, DRIVER, str(work / "recipe.json"), str(work), *words]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # this checkout, wherever it is installed
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)


def checkpoint_of(work: Path) -> dict:
    (path,) = work.glob("test-*/checkpoint.pt")
    return torch.load(path, weights_only=True)


@torch.no_grad()
def loss_of(job: Job) -> float:
    last = job.preset.stages(job.bottleneck, job.problem, job.recipe.bottleneck)[-1]
    return last.loss(job.data.batch(0, 24)).total.item()


@pytest.mark.slow
def test_two_processes_train_as_one_would_and_survive_a_kill(recipe_for, tmp_path):
    recipe = recipe_for(train={"devices": 2, "images": 120})
    both = Job(recipe, tmp_path / "whole", SILENT)
    both.train()
    killed = run(recipe, tmp_path / "killed", "1:9")
    assert killed.returncode == 1
    assert "TrainingError: training process" in killed.stderr
    assert "run it again to go on where it was" in killed.stderr
    saved = checkpoint_of(tmp_path / "killed")
    assert saved["position"]["step"] in {8, 9}  # process 0 may be ended while it writes the last
    assert saved["processes"] == 2

    shutil.copytree(tmp_path / "killed", tmp_path / "other")
    Job(recipe, tmp_path / "killed", SILENT).train()
    one, other = checkpoint_of(tmp_path / "whole"), checkpoint_of(tmp_path / "killed")
    assert one["position"] == other["position"] == {"stage": 2, "step": 15, "in_stage": 0}
    assert all(torch.equal(value, other["bottleneck"][name]) for name, value in one["bottleneck"].items())

    # One device goes on from what two have done, and comes to nearly the same.
    notes: list[str] = []
    alone = Job(recipe_for(train={"images": 120}), tmp_path / "other", Notes(notes))
    alone.train()
    assert any("2 processes trained it so far, now 1" in note for note in notes)
    first = Job(recipe_for(train={"images": 120}), tmp_path / "first", SILENT)
    first.train()
    assert loss_of(both) == pytest.approx(loss_of(first), rel=0.2)
    assert loss_of(alone) == pytest.approx(loss_of(first), rel=0.2)


def test_no_process_outlives_a_killed_parent():
    code = (
        "import multiprocessing; from support.orphans import work\n"
        "if __name__ == '__main__':\n"
        "    worker = multiprocessing.get_context('spawn').Process(target=work); worker.start(); worker.join()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[1:3]))}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
        try:  # both write to this pipe: it ends when the last of them has
            assert parent.communicate(timeout=60) == ("", None)
        except subprocess.TimeoutExpired:
            os.kill(worker, signal.SIGKILL)
            raise


def test_gradients_add_up_to_those_of_the_whole_batch():
    found = Fabric(accelerator="cpu", devices=2, strategy=DDPStrategy(start_method="spawn")).launch(pairs.gradients)
    layer, _, inputs = pairs.problem()
    layer(inputs).square().sum(1).mean().backward()
    assert torch.allclose(torch.tensor(found["weight"]), layer.weight.grad)
    assert torch.allclose(torch.tensor(found["bias"]), layer.bias.grad)
    assert found["idle"] is None  # an optimizer would move it otherwise
    assert found["images"] == 5
    assert found["loss"] == pytest.approx(layer(inputs).square().sum(1).mean().item())


def test_a_schedulers_variables_are_hidden_while_workers_run(monkeypatch):
    for name in workers.SCHEDULERS:
        monkeypatch.setenv(name, "7")
    with workers._own_environment():
        assert not set(workers.SCHEDULERS) & os.environ.keys()
        os.environ["MASTER_PORT"] = "1"  # as Fabric does
    assert {os.environ[name] for name in workers.SCHEDULERS} == {"7"}


@pytest.mark.parametrize(
    ("train", "device", "message"),
    [
        ({"devices": 9, "batch": 8}, "cpu", r"batch is 8; 9 devices take an image each"),
        ({"devices": 1000}, "cuda", r"devices is 1000; this machine has \d+ GPUs"),
        ({"devices": 2}, "cuda:1", r"device is 'cuda:1', one GPU; devices is 2: name the kind"),
    ],
)
def test_devices_that_cannot_be(recipe_for, tmp_path, train, device, message):
    with pytest.raises(CompilerError, match=message):
        workers.train_in_workers(recipe_for(train=train), tmp_path, torch.device(device), SILENT)


class TestRelay:
    """What processes say, told in the one that started them."""

    def hear(self, *messages, cut: bytes = b"") -> tuple[workers._Relay, list]:
        said: list = []
        relay = workers._Relay(Told(said))
        reader, writer = multiprocessing.Pipe(duplex=False)
        with relay.running([reader], [writer]):
            for message in messages:
                writer.send(message)
            if cut:
                writer._send(cut)
        return relay, said

    def test_progress_arrives_in_order(self):
        _, said = self.hear(("note", "a"), ("task", "t", 2, "images"), ("advance", 1, {"loss": 2.0}), ("end",))
        assert said == ["a", ("t", 2, "images"), (1, {"loss": 2.0}), "end"]

    def test_a_process_that_dies_in_the_middle_of_a_word_ends_its_step(self):
        _, said = self.hear(("task", "t", 2, "images"), cut=b"\x00\x00\x00\x7fhalf")
        assert said == [("t", 2, "images"), "end"]

    def test_an_error_keeps_its_class_and_words(self):
        relay, _ = self.hear(("failed", TrainingError, "the loss is nan at step 4"))
        found = relay.cause(ProcessRaisedException("Traceback\nTrainingError: x", 0, 1))
        assert (type(found), str(found)) == (TrainingError, "the loss is nan at step 4")

    @pytest.mark.parametrize(
        ("error", "message"),
        [
            (ProcessExitedException("", 1, 7, -9, "SIGKILL"), "training process 1 was ended by SIGKILL; run it again"),
            (ProcessExitedException("", 0, 7, 130), "training process 0 ended with code 130"),
            (
                ProcessRaisedException("Traceback\nOSError: the disk is full\n", 0, 7),
                "failed: OSError: the disk is full",
            ),
            (ProcessRaisedException("E: [1.2.3.4] Connection closed by peer", 0, 7), "so another one was killed"),
        ],
    )
    def test_what_nobody_has_foreseen_is_told_as_well_as_it_is_known(self, error, message):
        relay, _ = self.hear()
        assert message in str(relay.cause(error))


class Told:
    """Progress that keeps everything."""

    def __init__(self, said: list) -> None:
        self.said = said
        self.note = said.append

    def task(self, *args):
        self.said.append(args)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.said.append("end")

    def advance(self, *args):
        self.said.append(args)
