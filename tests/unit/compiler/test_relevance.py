"""Channels that carry nothing: found, switched off, cut out, with the same result for the others."""

from __future__ import annotations

import math

import pytest
import torch
from support.problems import batches, problem

from narrowcast.compiler.bottlenecks import PRESETS
from narrowcast.compiler.bottlenecks.blocks import Decoder, Neck, ResidualBlock, residual_stack
from narrowcast.compiler.bottlenecks.quantize import LogisticMixturePrior
from narrowcast.compiler.bottlenecks.relevance import LEAST_BITS, Relevance, entropy_of, hyper_bits
from narrowcast.compiler.bottlenecks.shallow_residual import ShallowResidualSettings
from narrowcast.compiler.training import _start_from

SETTINGS = {"encoder_macs": "1M", "channels": 6, "stride": 4, "levels": 2, "decoder_width": 16}
KEPT = torch.tensor([1.0, 0, 1, 0, 0, 1])


def built(**changes):
    of = problem()
    settings = ShallowResidualSettings(**{"prune": True, **SETTINGS, **changes})
    preset = PRESETS["shallow-residual"]
    torch.manual_seed(0)
    net = preset.build(of, settings)
    preset.calibrate(net, of, settings, batches(of))
    return of, net, settings, preset


def test_entropy_is_that_of_the_symbols():
    symbols = torch.tensor([[0.0, 0, 0, 0], [0, 0, 1, 1], [3, -1, 7, 2], [1, 0, 0, 0]]).reshape(1, 4, 2, 2)
    expected = [0, 1, 2, 0.25 * 2 + 0.75 * math.log2(4 / 3)]
    assert entropy_of(symbols).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_hyper_prior_is_what_its_integral_says():
    """Differences of ``hyper_bits`` against the integral over the variance, taken numerically."""
    torch.manual_seed(0)
    scaled = torch.randn(3, 1, 2, 2).double() * torch.tensor([0.1, 1.0, 4.0])[:, None, None, None]
    variance = torch.logspace(-5, 5, 200_001).double()
    energy = scaled.square().sum((1, 2, 3))[:, None]
    scale = 4 / 12 / 2  # so that its mode counts rounding as nothing
    density = variance ** (-4 / 2 - 1) * torch.exp(-(energy / 2 + scale) / variance)
    bits = -torch.log2(torch.trapezoid(density, variance))
    weight = float(hyper_bits(torch.full((1, 1, 2, 2), 1.0))[0]) / (2 * math.log2(13))
    found = hyper_bits(scaled) / weight
    assert (found - found[0]).tolist() == pytest.approx((bits - bits[0]).tolist(), rel=1e-3)
    assert hyper_bits(torch.zeros(2, 3, 4, 4)).tolist() == [0, 0]


def test_settling_keeps_what_carries_something_at_any_level():
    relevance = Relevance(2, 4)
    relevance.settle(torch.tensor([[0, 0.5, 0, LEAST_BITS / 2], [2.0, 0.5, 0, 0]]), 100)
    assert relevance.kept.tolist() == [1, 1, 0, 0]
    assert relevance.index().tolist() == [0, 1]
    found = relevance.found()
    assert (found.start, found.kept) == (4, 2)
    assert found.spent_bytes == [round(LEAST_BITS / 2 * 100 / 8, 2), 0]


def test_one_channel_stays_in_any_case():
    relevance = Relevance(1, 3)
    relevance.settle(torch.tensor([[0.0, LEAST_BITS / 3, LEAST_BITS / 4]]), 100)
    assert relevance.kept.tolist() == [0, 1, 0]


@pytest.mark.parametrize("trunk", ["new", "teacher"])
@pytest.mark.parametrize("width", [16, 6])
def test_cutting_out_changes_nothing_for_the_others(trunk, width):
    of, net, _, _ = built(trunk=trunk, decoder_width=max(8, width), channels=max(8, width) if width == 6 else 6)
    channels = net.shape[0]
    kept = KEPT if channels == 6 else torch.tensor([1.0, 0, 1, 0, 0, 1, 1, 0])
    net.relevance.kept.copy_(kept)
    net.eval()
    images = of.normalize(next(batches(of)).images)
    level = torch.tensor([0, 1] * 8)
    with torch.no_grad():
        for parameter in net.decoder.last.parameters():
            parameter.normal_(0, 0.1)  # so that the decoder's blocks have a say
        if trunk == "teacher":
            net.encoder.last.weight.normal_(0, 0.1)
        before, index = net.encode(images, level), kept.nonzero()[:, 0]
        decoded = net.decode(before, level)
        assert (before[:, kept == 0] == 128).all()
        state, whole = net.encoder_state(), sum(value.numel() for value in net.encoder.parameters())
        density = net.density()
        net.fold()
        after = net.encode(images, level)
        assert after.shape[1:] == net.shape == (len(index), 8, 8)
        assert torch.equal(after, before[:, index])
        assert torch.allclose(net.decode(after, level), decoded, atol=1e-5)
    assert (net.density() == density[:, index]).all()
    assert sum(value.numel() for value in net.encoder.parameters()) < whole
    folded = net.encoder_state()  # its hash names the codec, and may be asked for before and after
    assert folded.keys() == state.keys()
    assert all(torch.equal(folded[name], value) for name, value in state.items())
    assert net.figures()["channels"]["kept"] == len(index)


def test_without_a_channel_to_cut_out_nothing_changes():
    of, net, _, _ = built()
    images = of.normalize(next(batches(of)).images)
    with torch.no_grad():
        before = net.encode(images, torch.zeros(16, dtype=torch.int64))
        net.fold()
        assert torch.equal(net.encode(images, torch.zeros(16, dtype=torch.int64)), before)
    assert net.figures()["channels"] == {"start": 6, "kept": 6, "spent_bytes": [0, 0]}


def test_channels_that_are_off_cost_no_bits_and_stay_off():
    of, net, settings, preset = built()
    stage = preset.stages(net, of, settings)[-1]
    assert stage.name == "relevant channels"
    with torch.no_grad():
        net.log_gain[:, 1:3] = -20.0  # whatever the encoder gives, the symbols are constant
    stage.prepare(batches(of))
    assert net.relevance.settled
    assert net.relevance.kept.tolist() == [1, 0, 0, 1, 1, 1]
    batch = next(batches(of))
    with torch.no_grad():
        net.prior.log_scale[:, 1:3] = 10.0  # bits for anything at all there would be many
        free = net.code(batch.features, torch.zeros(16, dtype=torch.int64), torch.zeros_like).bits
        net.prior.log_scale[:, 1:3] = 0.0
        assert torch.equal(net.code(batch.features, torch.zeros(16, dtype=torch.int64), torch.zeros_like).bits, free)
    again = PRESETS["shallow-residual"].build(of, settings)
    again.load_state_dict(net.state_dict())
    assert again.relevance.settled
    assert again.relevance.kept.tolist() == net.relevance.kept.tolist()


def test_the_hyper_prior_is_paid_until_channels_are_settled():
    of, net, _, _ = built()
    batch = next(batches(of))
    level = torch.zeros(16, dtype=torch.int64)
    with torch.no_grad():
        searching = net.code(batch.features, level, torch.zeros_like).bits
        net.relevance.settled.fill_(True)
        settled = net.code(batch.features, level, torch.zeros_like).bits
        scaled = net.scaled(net.latent(batch.features), level)
    assert torch.allclose(searching - settled, hyper_bits(scaled), rtol=1e-3)


def test_without_pruning_there_is_no_search():
    of, net, settings, preset = built(prune=False)
    assert net.relevance is None
    assert [stage.name for stage in preset.stages(net, of, settings)] == ["features", "outputs"]
    net.fold()
    assert net.figures() == {}


@pytest.mark.parametrize(("cin", "cout", "stride"), [(5, 5, 1), (5, 8, 1), (8, 8, 2)])
def test_blocks_without_some_channels(cin, cout, stride):
    torch.manual_seed(0)
    block = ResidualBlock(cin, cout, stride)
    x, index = torch.randn(2, cin, 7, 7), torch.tensor([0, 3, 4])
    with torch.no_grad():
        wanted = block(x)
        block.keep_outputs(index)
        assert torch.allclose(block(x), wanted[:, index], atol=1e-6)
        inside = torch.zeros_like(x)
        inside[:, index] = x[:, index]
        block = ResidualBlock(cin, cout, stride)
        wanted = block(inside)
        block.keep_inputs(index)
        assert torch.allclose(block(x[:, index]), wanted, atol=1e-6)


def test_layers_on_either_side_of_the_latent():
    torch.manual_seed(0)
    index = torch.tensor([1, 2, 5])
    neck, features = Neck((4, 9, 9), 2, 6, 8), torch.randn(2, 4, 9, 9)
    stack, images = residual_stack([3, 8, 6], [2, 2]), torch.randn(2, 3, 16, 16)
    decoder = Decoder((6, 4, 4), (4, 8, 8), 6)
    prior = LogisticMixturePrior(2, 6)
    with torch.no_grad():
        wanted = neck(features)[:, index]
        neck.keep_outputs(index)
        assert torch.allclose(neck(features), wanted, atol=1e-6)
        wanted = stack(images)[:, index]
        stack[-1].keep_outputs(index)
        assert torch.allclose(stack(images), wanted, atol=1e-6)
        latent = torch.zeros(2, 6, 4, 4)
        latent[:, index] = torch.randn(2, 3, 4, 4)
        wanted = decoder(latent)
        decoder.keep_inputs(index)
        assert torch.allclose(decoder(latent[:, index]), wanted, atol=1e-6)
        values = torch.randn(2, 6, 3, 3)
        wanted = prior.bits(values, torch.tensor([0, 1]))[:, index]
        prior.keep(index)
        assert torch.allclose(prior.bits(values[:, index], torch.tensor([0, 1])), wanted)


def test_another_run_that_begins_from_these_weights_chooses_anew(tmp_path):
    """A point of a sweep whose bits are dear would decide for all behind it."""
    _, net, _, _ = built()
    net.relevance.kept.copy_(KEPT)
    net.relevance.spent.fill_(7.0)
    net.relevance.settled.fill_(True)
    _, other, _, _ = built()
    _start_from(other, net.state_dict(), tmp_path / "checkpoint.pt")
    assert other.relevance.kept.tolist() == [1.0] * 6
    assert other.relevance.spent.tolist() == [0.0, 0.0]
    assert not other.relevance.settled
