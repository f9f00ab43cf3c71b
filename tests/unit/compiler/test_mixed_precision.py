"""Training in bfloat16: what computes in it, what stays in fp32, and that a run is as repeatable as in fp32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.training import PAPERS, Bench, StopsAfter
from torch import nn

from narrowcast.compiler import fabric, training
from narrowcast.compiler.bottlenecks.exact import in_fp32
from narrowcast.compiler.bottlenecks.factorized import FactorizedPrior
from narrowcast.compiler.bottlenecks.quantize import LogisticMixturePrior
from narrowcast.compiler.bottlenecks.tail import distillation
from narrowcast.compiler.errors import CompilerError
from narrowcast.compiler.job import Job
from narrowcast.compiler.progress import SILENT
from narrowcast.compiler.tails import FurtherBottleneck, FurtherSettings, FurtherTail

CPU = torch.device("cpu")


def settings_of(preset: str) -> dict:
    return {"bottleneck": PAPERS[preset]} if preset in PAPERS else {}


def in_bf16():
    return torch.autocast("cpu", torch.bfloat16)


class Observed:
    """A preset that notes the dtypes of its convolutions' outputs, and of the losses."""

    def __init__(self, preset) -> None:
        self.preset, self.convolved, self.losses = preset, set(), set()

    def __getattr__(self, name):
        return getattr(self.preset, name)

    def stages(self, net, *rest):
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda module, args, result: self.convolved.add(result.dtype))

        def watched(loss):
            def step(batch):
                found = loss(batch)
                self.losses.add(found.total.dtype)
                return found

            return step

        return [replace(stage, loss=watched(stage.loss)) for stage in self.preset.stages(net, *rest)]


@pytest.mark.parametrize("preset", ["shallow-residual", *PAPERS])
def test_convolutions_run_in_bf16_and_everything_kept_is_fp32(recipe_for, tmp_path, preset):
    recipe = recipe_for(**settings_of(preset), train={"images": 240, "precision": "bf16"})
    bench = Bench(recipe, tmp_path)
    observed = Observed(bench.preset)
    trained = bench.train(observed)
    assert torch.bfloat16 in observed.convolved
    assert observed.losses == {torch.float32}
    assert {value.dtype for value in trained.values() if value.is_floating_point()} == {torch.float32}
    other = Bench(recipe_for(**settings_of(preset)), tmp_path / "fp32")
    exact = other.train()
    assert any(not torch.equal(trained[name], exact[name]) for name in exact)  # it was another computation,
    assert loss_of(bench) == pytest.approx(loss_of(other), rel=0.1)  # that learned as much


@torch.no_grad()
def loss_of(bench: Bench) -> float:
    """The first stage's loss in fp32 of a bench that was trained."""
    first = bench.preset.stages(bench.net, bench.problem, bench.recipe.bottleneck)[0]
    return first.loss(bench.data.batch(0, 16)).total.item()


@pytest.mark.parametrize("preset", ["shallow-residual", *PAPERS])
def test_a_resumed_run_in_bf16_ends_exactly_as_an_uninterrupted_one(recipe_for, tmp_path, monkeypatch, preset):
    recipe = recipe_for(**settings_of(preset), train={"images": 160, "precision": "bf16"})
    whole = Bench(recipe, tmp_path / "a").train()
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    bench = Bench(recipe, tmp_path / "b")
    with pytest.raises(InterruptedError):
        bench.train(StopsAfter(bench.preset, 7))
    resumed = Bench(recipe, tmp_path / "b").train()
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


@pytest.mark.parametrize("prior", [FactorizedPrior(3), LogisticMixturePrior(2, 3)])
def test_rates_are_computed_in_fp32(prior):
    torch.manual_seed(0)
    values = (20 * torch.randn(4, 3, 5, 5)).bfloat16()
    level = [] if isinstance(prior, FactorizedPrior) else [torch.tensor([0, 1, 1, 0])]
    with in_bf16():
        bits = prior.bits(values, *level)
        again = prior.bits(values.float(), *level)
    assert bits.dtype == torch.float32
    assert torch.equal(bits, again)
    assert torch.equal(bits, prior.bits(values.float(), *level))


def test_distillation_of_nested_outputs_in_bf16_is_computed_in_fp32():
    torch.manual_seed(0)
    got, wanted = ({"scores": torch.randn(4, 5), "mask": [torch.randn(4, 1, 3, 3)]} for _ in range(2))
    narrow = {"scores": got["scores"].bfloat16(), "mask": [got["mask"][0].bfloat16()]}
    wide = {"scores": narrow["scores"].float(), "mask": [narrow["mask"][0].float()]}
    with in_bf16():
        assert torch.equal(distillation(narrow, wanted, 2.0), distillation(wide, wanted, 2.0))


def test_the_second_stage_sees_the_symbols_that_boards_will_send(recipe_for, tmp_path):
    """They are bytes in 255 steps: bfloat16's rounding would move many of them."""
    recipe = recipe_for(bottleneck=PAPERS["bottlefit"], train={"images": 240, "precision": "bf16"})
    bench = Bench(recipe, tmp_path)
    bench.train()
    stage = bench.preset.stages(bench.net, bench.problem, recipe.bottleneck)[-1]
    seen = []
    decode = bench.net.decode
    bench.net.decode = lambda symbols, level: (seen.append(symbols), decode(symbols, level))[1]
    batch = bench.data.batch(0, 8)
    with in_bf16():
        stage.loss(batch)
        narrow = bench.net.encode(bench.problem.normalize(batch.images), torch.zeros(8, dtype=torch.int64))
    with torch.no_grad():
        wanted = bench.net.encode(bench.problem.normalize(batch.images), torch.zeros(8, dtype=torch.int64))
    assert torch.equal(seen[0], wanted)
    assert not torch.equal(narrow, wanted)


@pytest.mark.parametrize("stage", [0, 1])
def test_further_tails_learn_from_the_symbols_that_boards_will_send(recipe_for, tmp_path, stage):
    recipe = recipe_for(bottleneck=PAPERS["bottlefit"], train={"images": 64})
    bench = Bench(recipe, tmp_path)
    bench.train()
    net = FurtherBottleneck(bench.net, bench.problem, FurtherSettings(decoder_width=8, tune_tail=False))
    seen = []
    decode = net.decode
    net.decode = lambda symbols, level: (seen.append((symbols, level)), decode(symbols, level))[1]
    batch = bench.data.batch(0, 8)
    with in_bf16():
        FurtherTail().stages(net, bench.problem, FurtherSettings(decoder_width=8, tune_tail=False))[stage].loss(batch)
    ((symbols, level),) = seen
    assert torch.equal(symbols, net.encode(bench.problem.normalize(batch.images), level))


def test_in_fp32_leaves_other_tensors_and_arguments_alone():
    @in_fp32
    def look(*values, **named):
        assert not torch.is_autocast_enabled("cpu")
        return [getattr(value, "dtype", value) for value in (*values, *named.values())]

    whole, double = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    with in_bf16():
        found = look(whole, double, torch.zeros(1).half(), "x", key=torch.zeros(1).bfloat16())
        assert torch.is_autocast_enabled("cpu")
    assert found == [torch.int64, torch.float64, torch.float32, "x", torch.float32]
    assert in_fp32(lambda: 7)() == 7


def test_auto_is_fp32_on_cpus():
    assert fabric.resolve_precision("auto", CPU) == "fp32"
    assert fabric.resolve_precision("bf16", CPU) == "bf16"


def test_a_device_without_bfloat16_is_told_of(recipe_for, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "has_bf16", lambda device: False)
    notes: list[str] = []
    Bench(recipe_for(train={"images": 8, "precision": "bf16"}), tmp_path).train(notes=notes)
    assert "no bfloat16 instructions" in notes[0]


def test_a_device_that_is_not_there_says_so():
    with pytest.raises(CompilerError, match="device 'cuda:7' cannot be used"):
        fabric.resolve_device("cuda:7")
    with pytest.raises(CompilerError, match="device 'abacus' cannot be used"):
        fabric.resolve_device("abacus")
    assert fabric.resolve_device("cpu") == CPU


def test_only_another_precision_in_effect_is_another_run(recipe_for, tmp_path):
    folders = [Job(recipe_for(train={"precision": name}), tmp_path, SILENT).folder for name in ("fp32", "auto", "bf16")]
    assert folders[0] == folders[1] != folders[2]


def test_codewords_are_chosen_in_fp32(recipe_for, tmp_path):
    bottleneck = {"preset": "codebook", "encoder_macs": "1M", "stride": 4, "decoder_width": 16, "codewords": 64}
    bench = Bench(recipe_for(bottleneck=bottleneck, train={"images": 16, "precision": "bf16"}), tmp_path)
    bench.train()
    source = bench.data.batch(0, 8).features
    with torch.no_grad(), in_bf16():
        latent = bench.net.latent(source).float()
        index = bench.net.code(source, torch.zeros(8, dtype=torch.int64))[2]
        narrow = bench.net.nearest(latent)
    assert torch.equal(index, bench.net.nearest(latent))
    assert not torch.equal(index, narrow)
