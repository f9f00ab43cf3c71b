"""``bottlefit`` and ``entropic-student``: what their papers say, on any cut, and a tail that is tuned without the fleet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import networks, problems
from support.problems import problem

from narrowcast.compiler.bottlenecks import PRESETS, Problem, bottlefit, entropic_student
from narrowcast.compiler.bottlenecks.blocks import GridFit
from narrowcast.compiler.bottlenecks.bottlefit import BottleFitSettings
from narrowcast.compiler.bottlenecks.entropic_student import EntropicStudentSettings
from narrowcast.compiler.bottlenecks.feature_errors import FeatureErrors, stage_ends
from narrowcast.compiler.bottlenecks.shallow_residual import ShallowResidualSettings
from narrowcast.compiler.bottlenecks.tail import TunedTail, distillation
from narrowcast.compiler.cost import count_macs
from narrowcast.compiler.errors import BottleneckError
from narrowcast.compiler.export import export_tail
from narrowcast.compiler.modules import Tail
from narrowcast.compiler.verify import OnnxNetwork
from narrowcast.transport.contract import InputContract

SMALL = {
    "bottlefit": BottleFitSettings(channels=6, decoder_width=16, calibration_images=32),
    "entropic-student": EntropicStudentSettings(channels=6, decoder_width=16, beta=1e-3),
}


def batches(of: Problem, count: int = 8):
    return problems.batches(of, count)


def run(stage, of: Problem, steps: int, rate: float) -> list[float]:
    """Trains a stage as the training loop would; the losses."""
    if stage.prepare is not None:
        stage.prepare(batches(of))
    optimizer = torch.optim.Adam([p for group in stage.groups for p in group.parameters], rate)
    losses = []
    for _, batch in zip(range(steps), batches(of), strict=False):
        loss = stage.loss(batch)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(loss.total.item())
    return losses


def clones(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in tensors.items()}


class TestThePapersFigures:
    """At the papers' own settings, on 224 px."""

    image = torch.zeros(1, 3, 224, 224)

    def test_bottlefit_with_12_channels(self):
        encoder = bottlefit.encoder_layers(BottleFitSettings().channels).eval()
        assert sum(p.numel() for p in encoder.parameters()) == 12_736
        assert count_macs(encoder, self.image) == 120_597_504
        latent = encoder(self.image)
        assert latent.shape == (1, 12, 29, 29)
        assert latent[0].numel() == 10_092  # bytes at 8 bits a symbol
        decoder = bottlefit.decoder_layers(12, 512, 512, torch.nn.Identity()).eval()
        assert decoder(latent).shape == (1, 512, 28, 28)
        kernels = [layer.kernel_size for layer in decoder if isinstance(layer, torch.nn.Conv2d)]
        assert kernels == [(2, 2)] * 4

    @pytest.mark.parametrize("channels", [3, 6, 9])
    def test_bottlefit_with_fewer(self, channels):
        encoder = bottlefit.encoder_layers(channels).eval()
        assert encoder(self.image).shape == (1, channels, 29, 29)

    def test_entropic_student(self):
        """Both figures count the GDN layers: their beta (C) and gamma (C x C) among the parameters, gamma's product with
        the activities among the multiply-accumulates. The convolutions have no biases. Without GDN they would be 127,008
        parameters and 465.5 M.
        """
        encoder = entropic_student.encoder_layers(EntropicStudentSettings().channels)
        assert sum(p.numel() for p in encoder.parameters()) == 138_672
        assert count_macs(encoder, self.image) == 588_354_048
        latent = encoder(self.image)
        assert latent.shape == (1, 24, 55, 55)
        decoder = entropic_student.decoder_layers(24, 512, 256, torch.nn.Identity())
        assert decoder(latent).shape == (1, 256, 56, 56)
        widths = [layer.out_channels for layer in decoder if isinstance(layer, torch.nn.Conv2d)]
        assert widths == [512, 256, 256]

    def test_schedules(self):
        of = problem()
        for settings, first_decays in ((BottleFitSettings(), (0.5,)), (EntropicStudentSettings(), (0.5, 0.8))):
            preset = PRESETS[settings.__struct_config__.tag]
            first, second = preset.stages(preset.build(of, settings), of, settings)
            assert (first.share, second.share) == (0.5, 0.5)
            assert (first.optimizer.kind, first.optimizer.weight_decay) == ("adam", 0)
            assert tuple(first.optimizer.decays) == first_decays
            assert (second.optimizer.kind, second.optimizer.momentum) == ("sgd", 0.9)
            assert second.optimizer.weight_decay == 5e-4
            assert tuple(second.optimizer.decays) == (0.5,)
            assert first.optimizer.max_gradient_norm is second.optimizer.max_gradient_norm is None
            assert preset.train_defaults == {"batch": 64, "learning_rate": 1e-3}
            assert settings.temperature == 1


@pytest.mark.parametrize(
    ("grid", "target"),
    [
        ((28, 28), (28, 28)), ((28, 28), (56, 56)), ((28, 28), (14, 14)), ((28, 28), (7, 7)), ((28, 28), (27, 27)),
        ((28, 28), (29, 29)), ((28, 28), (1, 1)), ((56, 56), (112, 112)), ((20, 15), (40, 30)), ((20, 15), (10, 8)),
        ((20, 15), (7, 3)), ((4, 4), (16, 16)),
    ],
)  # fmt: skip
def test_any_grid_fits_the_cut(grid, target):
    fit = GridFit(grid, target)
    assert fit(torch.randn(2, 3 * fit.expand, *grid)).shape == (2, 3, *target)
    flat = fit(torch.full((1, fit.expand, *grid), 2.5))
    assert torch.allclose(flat, torch.full_like(flat, 2.5))  # neither fitting nor padding changes what is even


@pytest.mark.parametrize("name", SMALL)
def test_a_resnet_cut_in_its_second_stage(timm, name):
    of = problem(timm.create_model("resnet18", num_classes=10), "layer2", InputContract(size=(64, 64)))
    assert [end for end, _ in stage_ends(of)] == ["layer3", "layer4"]
    preset, settings = PRESETS[name], SMALL[name]
    net = preset.build(of, settings)
    batch = next(batches(of, 2))
    for stage in preset.stages(net, of, settings):
        loss = stage.loss(batch)
        loss.total.backward()
        assert torch.isfinite(loss.total)
    net.eval()
    level = torch.zeros(2, dtype=torch.int64)
    symbols = net.encode(of.normalize(batch.images), level)
    assert symbols.shape == (2, *net.shape)
    assert net.decode(symbols, level).shape == (2, 128, 8, 8)
    tail = net.tuned_tail()
    with torch.no_grad():
        assert torch.equal(tail(batch.features), of.after(batch.features))  # nothing has been tuned yet


@pytest.mark.parametrize("name", SMALL)
def test_tokens(timm, name):
    of = problem(timm.create_model("vit_tiny_patch16_224", depth=3), "blocks.0", InputContract(size=(224, 224)))
    preset, settings = PRESETS[name], SMALL[name]
    net = preset.build(of, settings).eval()
    level = torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        symbols = net.encode(torch.randn(1, 3, 224, 224), level)
        assert net.decode(symbols, level).shape == (1, 197, 192)
    assert len(stage_ends(of)) == 1  # all blocks have the same grid: the last is the end of the only stage


@pytest.mark.parametrize("name", SMALL)
def test_a_cut_behind_the_pooling(name):
    of = problem(cut="mean")
    assert of.cut.shape == (16,)
    net = PRESETS[name].build(of, SMALL[name]).eval()
    level = torch.zeros(2, dtype=torch.int64)
    assert net.decode(torch.zeros(2, *net.shape), level).shape == (2, 16)
    assert stage_ends(of) == []


@pytest.mark.parametrize("name", SMALL)
def test_images_that_are_too_small(name):
    of = problem(contract=InputContract(size=(6, 32)))
    with pytest.raises(BottleneckError, match=rf"size is 6 x 32; {name} takes images of at least 8 x 8"):
        PRESETS[name].build(of, SMALL[name])
    of = problem(contract=InputContract(size=(8, 8)))
    net = PRESETS[name].build(of, SMALL[name]).eval()
    assert net.decode(torch.zeros(1, *net.shape), torch.zeros(1, dtype=torch.int64)).shape == (1, 8, 4, 4)


def test_tails_that_torch_export_traced_are_tuned_and_exported_too():
    of = problem(networks.branching())
    assert of.traced.method == "torch.export"
    preset, settings = PRESETS["bottlefit"], SMALL["bottlefit"]
    net = preset.build(of, settings)
    before = clones(net.tail.state_dict())
    _, second = preset.stages(net, of, settings)
    run(second, of, 3, 1e-2)
    changed = {name for name, value in net.tail.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, _ in net.tail.named_parameters()}
    tail = Tail(net, net.tail).eval()
    exported = OnnxNetwork(export_tail(tail, net.shape, ["output"]))
    symbols = torch.randint(0, 256, (3, *net.shape), dtype=torch.uint8)
    level = torch.zeros(3, dtype=torch.int64)
    (wanted,) = tail(symbols, level)
    found = exported(symbols=symbols.numpy(), level=level.numpy())["output"]
    assert np.allclose(found, wanted.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_each_stage_trains_what_it_says(name):
    network = networks.tiny()
    with torch.no_grad():
        network.classifier.weight.mul_(30)  # answers that differ from image to image
    of = problem(network)
    preset, settings = PRESETS[name], SMALL[name]
    torch.manual_seed(0)
    net = preset.build(of, settings)
    teacher = clones(of.traced.module.state_dict())
    untuned = clones(net.tail.state_dict())
    first, second = preset.stages(net, of, settings)
    encoder = clones(net.encoder_state())
    net.train()
    losses = run(first, of, 15, 1e-2)
    assert losses[-1] < 0.7 * losses[0]
    assert any(not torch.equal(value, encoder[key]) for key, value in net.encoder_state().items())
    assert all(torch.equal(value, untuned[key]) for key, value in net.tail.state_dict().items())

    if second.prepare is not None:
        second.prepare(batches(of))
    encoder, density = clones(net.encoder_state()), net.density()
    decoder = clones(net.decoder.state_dict())
    net.train()
    losses = run(second, of, 15, 2e-3)
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    assert all(torch.equal(value, encoder[key]) for key, value in net.encoder_state().items())
    assert density is None or np.array_equal(net.density(), density)
    assert any(not torch.equal(value, decoder[key]) for key, value in net.decoder.state_dict().items())
    assert all(not torch.equal(value, untuned[key]) for key, value in net.tail.named_parameters())
    assert all(torch.equal(value, teacher[key]) for key, value in of.traced.module.state_dict().items())


@pytest.mark.parametrize("name", SMALL)
def test_the_tail_can_stay_frozen(name):
    of = problem()
    settings = SMALL[name].__class__(**{**_fields(SMALL[name]), "tune_tail": False})
    preset = PRESETS[name]
    net = preset.build(of, settings)
    _, second = preset.stages(net, of, settings)
    trained = {id(p) for group in second.groups for p in group.parameters}
    assert trained == {id(p) for p in net.decoder.parameters()}
    assert net.tuned_tail() is None
    behind = clones(of.after.state_dict())
    run(second, of, 3, 1e-2)
    assert all(torch.equal(value, behind[key]) for key, value in of.after.state_dict().items())


def _fields(settings) -> dict:
    return {name: getattr(settings, name) for name in settings.__struct_fields__}


def test_shallow_residual_can_tune_its_tail_too():
    of = problem()
    options = {"encoder_macs": "1M", "channels": 6, "stride": 4, "levels": 2, "decoder_width": 16, "trunk": "teacher"}
    preset = PRESETS["shallow-residual"]
    plain = ShallowResidualSettings(**options)
    assert [stage.share for stage in preset.stages(preset.build(of, plain), of, plain)] == [0.25, 0.75]
    settings = ShallowResidualSettings(**options, tune_tail=True)
    net = preset.build(of, settings)
    stages = preset.stages(net, of, settings)
    assert [stage.share for stage in stages] == pytest.approx([0.2, 0.6, 0.2])
    before, tail, density = clones(net.encoder_state()), clones(net.tail.state_dict()), net.density()
    tuned = {id(p) for p in net.tail.parameters()}
    assert not any(id(p) in tuned for stage in stages[:2] for group in stage.groups for p in group.parameters)
    run(stages[2], of, 3, 1e-3)
    assert all(torch.equal(value, before[key]) for key, value in net.encoder_state().items())
    assert np.array_equal(net.density(), density)
    assert all(not torch.equal(value, tail[key]) for key, value in net.tail.named_parameters())


def test_a_tuned_tail_keeps_the_teachers_statistics(timm):
    of = problem(timm.create_model("resnet18", num_classes=10), "layer3", InputContract(size=(64, 64)))
    tail = TunedTail(of.after)
    outer = torch.nn.Sequential(tail).train()
    before = clones(tail.state_dict())
    outer(torch.randn(4, 256, 4, 4))
    assert not any(module.training for module in tail.modules())
    assert all(torch.equal(value, before[key]) for key, value in tail.state_dict().items())
    assert all(p.requires_grad for p in tail.parameters())
    assert not any(p.requires_grad for p in of.after.parameters())


def test_bottlefits_symbols_use_the_whole_range_and_keep_the_latent_within_half_a_step():
    of = problem()
    preset, settings = PRESETS["bottlefit"], SMALL["bottlefit"]
    net = preset.build(of, settings)
    _, second = preset.stages(net, of, settings)
    net.eval()
    second.prepare(batches(of))
    seen = [batch for _, batch in zip(range(4), batches(of), strict=False)]  # 32 images: those it was measured on
    level = torch.zeros(8, dtype=torch.int64)
    with torch.no_grad():
        latents = torch.cat([net.encoder(of.normalize(batch.images)) for batch in seen])
        symbols = torch.cat([net.encode(of.normalize(batch.images), level) for batch in seen])
    assert torch.equal(symbols.amin((0, 2, 3)), torch.zeros(6))
    assert torch.equal(symbols.amax((0, 2, 3)), torch.full((6,), 255.0))
    apart = (symbols * net.step + net.low - latents).abs()
    assert (apart <= 0.5 * net.step + 1e-5).all()


def test_entropic_student_pays_for_squared_errors_and_beta_times_the_bits():
    of = problem()
    settings = EntropicStudentSettings(channels=6, decoder_width=16, beta=0.5)
    preset = PRESETS["entropic-student"]
    net = preset.build(of, settings)
    stage = preset.stages(net, of, settings)[0]
    found = stage.loss(next(batches(of)))
    batch = next(batches(of))
    with torch.no_grad():
        latent = net.encoder(of.normalize(batch.images))
        noisy = latent + batch.uniform(latent)
        assert (noisy != noisy.round()).any()
        restored = net.restore(noisy)
        body = networks.tiny().body
        errors = (restored - batch.features).square().sum()
        errors += (body(restored.clone()) - body(batch.features.clone())).square().sum()
        bits = net.prior.bits(noisy).sum()
    assert found.total.item() == pytest.approx((errors + 0.5 * bits).item(), rel=1e-5)
    assert found.figures["bytes"] == pytest.approx(bits.item() / 8 / 8)
    assert set(found.figures) == {"bytes", "stem", "body"}


def test_the_figures_of_the_first_stage_are_parts_of_the_features_variance():
    of = problem()
    batch = next(batches(of))
    total, figures = FeatureErrors(of)(batch.features, batch)
    assert total == 0
    assert figures == {"stem": 0, "body": 0}
    _, figures = FeatureErrors(of)(batch.features.mean().expand_as(batch.features), batch)
    assert figures["stem"] == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation(temperature):
    torch.manual_seed(0)
    got, wanted = torch.randn(3, 5), torch.randn(3, 5)
    p, q = (torch.softmax(scores.double() / temperature, 1) for scores in (wanted, got))
    expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
    assert distillation(got, wanted, temperature).item() == pytest.approx(expected.item(), rel=1e-5)
    assert distillation(wanted, wanted, temperature).item() == pytest.approx(0, abs=1e-6)


def test_distillation_of_several_outputs():
    torch.manual_seed(0)
    wanted = {"scores": torch.randn(3, 5), "mask": torch.randn(3, 1, 4, 4), "count": torch.ones(3, dtype=torch.int64)}
    got = {"scores": torch.randn(3, 5), "mask": torch.zeros(3, 1, 4, 4), "count": torch.zeros(3, dtype=torch.int64)}
    alone = distillation(got["scores"], wanted["scores"], 1.0)
    relative = wanted["mask"].square().mean() / wanted["mask"].var()
    assert distillation(got, wanted, 1.0).item() == pytest.approx((alone + relative).item())
