"""Layouts, transforms, priors and the two presets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.problems import batches, problem
from torch import nn

from narrowcast.compiler.bottlenecks import PRESETS
from narrowcast.compiler.bottlenecks.blocks import Decoder, FeatureGrid, Neck
from narrowcast.compiler.bottlenecks.plain import PlainSettings
from narrowcast.compiler.bottlenecks.quantize import LogisticMixturePrior, round_through
from narrowcast.compiler.bottlenecks.shallow_residual import ShallowResidualSettings
from narrowcast.compiler.bottlenecks.transform import principal_components
from narrowcast.compiler.cost import count_macs
from narrowcast.compiler.errors import BottleneckError
from narrowcast.compiler.layout import layout_of
from narrowcast.compiler.normalize import Normalize
from narrowcast.transport.contract import InputContract


@pytest.mark.parametrize(
    ("shape", "kind", "map_shape"),
    [
        ((64, 28, 28), "chw", (64, 28, 28)),
        ((28, 28, 64), "hwc", (64, 28, 28)),
        ((197, 192), "tokens", (192, 197, 1)),
        ((512,), "vector", (512, 1, 1)),
        ((7, 7, 7), "chw", (7, 7, 7)),
    ],
)
def test_layouts_go_there_and_back(shape, kind, map_shape):
    layout = layout_of(shape, (224, 224))
    assert (layout.kind, layout.map_shape) == (kind, map_shape)
    features = torch.randn(2, *shape)
    assert layout.to_map(features).shape == (2, *map_shape)
    assert torch.equal(layout.from_map(layout.to_map(features)), features)


def test_layouts_of_wide_images():
    assert layout_of((30, 40, 64), (480, 640)).kind == "hwc"
    assert layout_of((40, 30, 40), (480, 640)).kind == "chw"
    with pytest.raises(BottleneckError, match="1 to 3 dimensions"):
        layout_of((1, 2, 3, 4), (8, 8))


@pytest.mark.parametrize(
    ("shape", "grid"), [((197, 192), (192, 14, 14)), ((196, 8), (8, 14, 14)), ((16, 9, 9), (16, 9, 9))]
)
def test_feature_grids_keep_every_place(shape, grid):
    made = FeatureGrid(layout_of(shape, (224, 224)), (224, 224))
    assert made.shape == grid
    features = torch.randn(2, *shape)
    assert made.to_grid(features).shape == (2, *grid)
    back = made.from_grid(made.to_grid(features))
    assert back.shape == features.shape
    kept = made.extra if len(shape) == 2 else 0
    assert torch.equal(back[:, kept:], features[:, kept:])


def test_normalisation_is_the_contracts():
    image = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(np.uint8)
    for color, order in (("rgb", [0, 1, 2]), ("bgr", [2, 1, 0])):
        contract = InputContract(size=(5, 7), color=color, range=(-1.0, 1.0), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
        expected = (image[..., order] / 255 * 2 - 1 - contract.mean) / contract.std
        found = Normalize(contract)(torch.from_numpy(image)).permute(0, 2, 3, 1).numpy()
        assert np.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_networks_that_view_their_maps_get_images_plane_by_plane(color):
    images = Normalize(InputContract(size=(8, 8), color=color))(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
    assert images.is_contiguous()
    with torch.no_grad():
        maps = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2))(images)
    assert maps.view(2, -1).shape == (2, 36)


def test_rounding_passes_gradients():
    x = torch.tensor([0.5, 1.5, -0.2, 2.7], requires_grad=True)
    y = round_through(x)
    assert y.tolist() == [0, 2, 0, 3]
    y.sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 1]


def test_the_prior_is_a_density_and_its_bits_are_its_logarithm():
    torch.manual_seed(0)
    prior = LogisticMixturePrior(2, 3)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    density = prior.density(64, 32)
    assert density.shape == (2, 3, 64)
    assert np.allclose(density.sum(2), 1)
    values = torch.arange(-20, 21).float().expand(2, 3, 1, 41)
    bits = prior.bits(values, torch.tensor([0, 1]))[:, :, 0].detach().numpy()
    inner = density[:, :, 12:53]
    assert np.allclose(np.minimum(-np.log2(inner), 24), np.minimum(bits, 24), atol=0.02)


def test_the_prior_starts_near_what_it_is_told():
    prior = LogisticMixturePrior(1, 2)
    prior.start_from(torch.tensor([[0.5, 6.0]]))
    density = prior.density(128, 64)[0]
    steps = np.arange(128) - 64
    deviation = np.sqrt((density * steps**2).sum(1))
    assert deviation == pytest.approx([0.6, 7.0], rel=0.35)


def test_principal_components_are_the_best_linear_code():
    torch.manual_seed(0)
    mixing = torch.randn(6, 2)
    features = (torch.randn(40, 8, 8, 2) @ mixing.T).permute(0, 3, 1, 2) + 3
    transform = principal_components([features[:20], features[20:]], 1, 4)
    assert torch.allclose(transform.basis[:2] @ transform.basis[:2].T, torch.eye(2), atol=1e-4)
    assert transform.variance[:2].sum() == pytest.approx(transform.total, rel=1e-4)
    assert transform.variance[2:].max() < 1e-3
    flat = features.permute(0, 2, 3, 1).reshape(-1, 6)
    latent = (flat - transform.mean) @ transform.basis.T
    assert torch.allclose(latent @ transform.basis + transform.mean, flat, atol=1e-3)


def test_more_channels_than_a_patch_has_numbers():
    transform = principal_components([torch.randn(4, 2, 4, 4)], 1, 5)
    assert transform.basis.shape == (5, 2)
    assert transform.basis[2:].abs().max() == 0


@pytest.mark.parametrize("distortion", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("channels", [3, 16])
def test_the_step_is_finite_and_its_error_is_about_what_was_asked_for(distortion, channels):
    torch.manual_seed(0)
    features = torch.randn(20, 16, 6, 6) * torch.linspace(2, 0.2, 16)[None, :, None, None]
    transform = principal_components([features], 1, channels)
    step = transform.step_for(distortion)
    assert step > 0
    lost = transform.total - float(transform.variance.sum())
    error = lost + float(transform.variance.clamp(max=step**2 / 12).sum())
    if lost < distortion * transform.total * 0.5:
        assert error == pytest.approx(distortion * transform.total, rel=0.05)


@pytest.mark.parametrize("size", [(8, 28, 28), (8, 15, 15), (8, 29, 31), (8, 7, 9)])
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_neck_and_decoder_fit_each_other_on_odd_grids(size, patch):
    neck = Neck(size, patch, 12, 8)
    features = torch.randn(2, *size)
    latent = neck(features)
    assert latent.shape == (2, 12, -(-size[1] // patch), -(-size[2] // patch))
    assert Decoder(tuple(latent.shape[1:]), size, 8)(latent).shape == features.shape


def test_decoders_go_down_as_well():
    assert Decoder((6, 14, 14), (10, 7, 7), 8)(torch.randn(1, 6, 14, 14)).shape == (1, 10, 7, 7)
    assert Decoder((6, 4, 4), (10, 27, 27), 8)(torch.randn(1, 6, 4, 4)).shape == (1, 10, 27, 27)


@pytest.mark.parametrize("trunk", ["new", "teacher"])
def test_shallow_residual_keeps_the_shapes_and_the_alphabet(trunk):
    of = problem()
    settings = ShallowResidualSettings(encoder_macs="1M", channels=6, stride=4, levels=3, decoder_width=16, trunk=trunk)
    preset = PRESETS["shallow-residual"]
    net = preset.build(of, settings)
    preset.calibrate(net, of, settings, batches(of))
    batch = next(batches(of))
    level = torch.tensor([0, 1, 2, 0] * 4)
    with torch.no_grad():
        symbols = net.encode(of.normalize(batch.images), level)
        assert symbols.shape == (16, *net.shape) == (16, 6, 8, 8)
        assert torch.equal(symbols, symbols.round())
        assert symbols.min() >= 0
        assert symbols.max() < net.alphabet
        assert net.decode(symbols, level).shape == batch.features.shape


def test_shallow_residual_starts_as_the_best_linear_code():
    """Before any training, the decoder gives most of the features back, and more at higher levels."""
    of = problem()
    settings = ShallowResidualSettings(encoder_macs="1M", channels=16, stride=4, levels=2, rate_weights=(0.01, 1.0))
    preset = PRESETS["shallow-residual"]
    net = preset.build(of, settings)
    preset.calibrate(net, of, settings, batches(of))
    batch = next(batches(of))
    errors = []
    with torch.no_grad():
        for level in (0, 1):
            at = torch.full((16,), level)
            restored = net.decode(net.encode(of.normalize(batch.images), at), at)
            errors.append(((restored - batch.features).square().mean() / batch.features.var()).item())
    assert errors[1] < errors[0]
    assert errors[1] < 0.2


@pytest.mark.parametrize("stage", [0, 1])
def test_a_stage_trains_its_parameters_and_nothing_else(stage):
    of = problem()
    settings = ShallowResidualSettings(
        encoder_macs="1M", channels=6, stride=4, levels=2, decoder_width=16, trunk="teacher"
    )
    preset = PRESETS["shallow-residual"]
    net = preset.build(of, settings)
    preset.calibrate(net, of, settings, batches(of))
    chosen = preset.stages(net, of, settings)[stage]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    teacher = {name: value.clone() for name, value in of.after.state_dict().items()}
    parameters = [p for group in chosen.groups for p in group.parameters]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    first = None
    for _, batch in zip(range(25), batches(of), strict=False):
        loss = chosen.loss(batch)
        first = first or loss.total.item()
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert loss.total.item() < first
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any(name.startswith("trunk.") for name in changed)
    assert all(torch.equal(value, teacher[name]) for name, value in of.after.state_dict().items())


@pytest.mark.parametrize("budget", ["600k", "1M", "5M"])
@pytest.mark.parametrize("trunk", ["new", "teacher"])
def test_the_encoder_stays_within_its_budget(budget, trunk):
    of = problem()
    settings = ShallowResidualSettings(encoder_macs=budget, channels=6, stride=4, trunk=trunk)
    net = PRESETS["shallow-residual"].build(of, settings)
    images = torch.zeros(1, 3, 32, 32)
    macs = count_macs(_Encode(net), images)
    assert macs <= settings.budget
    assert macs > 0.3 * min(settings.budget, 3e6)


class _Encode(torch.nn.Module):
    def __init__(self, net) -> None:
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net.encode(images, torch.zeros(1, dtype=torch.int64))


def test_budgets_that_cannot_be_met():
    preset = PRESETS["shallow-residual"]
    with pytest.raises(BottleneckError, match="cut earlier, raise it"):
        preset.build(problem(), ShallowResidualSettings(encoder_macs="10k", trunk="teacher"))
    with pytest.raises(BottleneckError, match="a new trunk takes at least"):
        preset.build(problem(), ShallowResidualSettings(encoder_macs="10k", trunk="new"))
    with pytest.raises(BottleneckError, match="with a neck takes at least"):
        stem = problem().cut.macs_before
        preset.build(problem(), ShallowResidualSettings(encoder_macs=stem + 1000, trunk="teacher"))


def test_tokens_have_a_bottleneck_too(timm):
    contract = InputContract(size=(224, 224))
    of = problem(timm.create_model("vit_tiny_patch16_224"), "blocks.1", contract)
    settings = ShallowResidualSettings(encoder_macs="300M", channels=8, levels=2, decoder_width=16)
    net = PRESETS["shallow-residual"].build(of, settings)
    with torch.no_grad():
        symbols = net.encode(torch.randn(2, 3, 224, 224), torch.tensor([0, 1]))
        assert symbols.shape == (2, 8, 14, 14)
        assert net.decode(symbols, torch.tensor([0, 1])).shape == (2, 197, 192)


@pytest.mark.parametrize("bits", [8, 4, 1])
def test_plain_keeps_the_features_within_half_a_step(bits):
    of = problem()
    settings = PlainSettings(bits=bits)
    preset = PRESETS["plain"]
    net = preset.build(of, settings)
    preset.calibrate(net, of, settings, batches(of))
    assert preset.stages(net, of, settings) == []
    batch = next(batches(of))
    level = torch.zeros(16, dtype=torch.int64)
    with torch.no_grad():
        symbols = net.encode(of.normalize(batch.images), level)
        assert symbols.max() < 2**bits
        apart = (net.decode(symbols, level) - batch.features).abs()
        assert (apart <= net.step * 0.5 + 1e-5).all()


def test_the_encoders_state_names_what_decides_the_symbols():
    of = problem()
    settings = ShallowResidualSettings(encoder_macs="1M", channels=6, stride=4, trunk="teacher")
    net = PRESETS["shallow-residual"].build(of, settings)
    state = net.encoder_state()
    assert "log_gain" in state
    assert any(name.startswith("trunk.") for name in state)
    assert not any("decoder" in name or "prior" in name or "restore" in name for name in state)
