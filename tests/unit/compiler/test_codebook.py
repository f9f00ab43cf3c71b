"""Codebooks: nearest codewords, gradients to both sides, none of them dead, and sizes that follow from the level."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.problems import batches, problem

from narrowcast.compiler.bottlenecks import PRESETS
from narrowcast.compiler.bottlenecks.codebook import CodebookSettings
from narrowcast.compiler.bottlenecks.kmeans import k_means
from narrowcast.compiler.codec import fit_codec
from narrowcast.compiler.errors import DataError
from narrowcast.compiler.recipe import CodingSettings, recipe_from
from narrowcast.transport.codec import CodecSpec, open_codec
from narrowcast.transport.errors import ConfigError

SETTINGS = {
    "encoder_macs": "1M", "stride": 4, "levels": 2, "decoder_width": 16, "codebooks": 3, "codewords": 8, "dimensions": 2,
}  # fmt: skip


def built(of=None, **changes):
    of = of or problem()
    settings = CodebookSettings(**{**SETTINGS, **changes})
    preset = PRESETS["codebook"]
    torch.manual_seed(0)
    net = preset.build(of, settings)
    preset.calibrate(net, of, settings, batches(of))
    return of, net, settings, preset


def test_levels_send_more_and_more_codebooks():
    for books, levels, sent in [(8, 4, (2, 4, 6, 8)), (3, 2, (2, 3)), (5, 5, (1, 2, 3, 4, 5)), (7, 1, (7,))]:
        assert CodebookSettings(codebooks=books, levels=levels).sent == sent
    with pytest.raises(ValueError, match="at least one of 3 codebooks more"):
        CodebookSettings(codebooks=3, levels=4)


@pytest.mark.parametrize("trunk", ["new", "teacher"])
def test_symbols_are_the_nearest_codewords(trunk):
    of, net, _, _ = built(trunk=trunk)
    batch = next(batches(of))
    level = torch.tensor([0, 1] * 8)
    source = batch.features if trunk == "teacher" else of.normalize(batch.images)
    with torch.no_grad():
        symbols = net.encode(of.normalize(batch.images), level)
        latent = net.latent(source).reshape(16, 3, 2, 8, 8)
    assert symbols.shape == (16, 3, 8, 8)
    assert (symbols[0::2, 2] == 0).all()
    apart = (latent[:, :, None] - net.codewords.detach()[None, :, :, :, None, None]).square().sum(3)
    wanted = apart.argmin(2)
    assert (symbols[1::2] == wanted[1::2]).float().mean() > 0.999  # but for ties
    with torch.no_grad():
        vectors = net.vectors(symbols.long())[1].reshape(3, 2, 8, 8)
    for book in range(3):
        assert torch.equal(vectors[book, :, 5, 6], net.codewords.detach()[book, int(symbols[1, book, 5, 6])])


def test_codebooks_that_are_not_sent_do_not_matter():
    of, net, _, _ = built()
    symbols = torch.randint(8, (2, 3, 8, 8)).float()
    other = symbols.clone()
    other[:, 2] = 0
    with torch.no_grad():
        for level, same in ((0, True), (1, False)):
            at = torch.full((2,), level)
            assert torch.equal(net.decode(symbols, at), net.decode(other, at)) is same
            assert net.decode(symbols, at).shape == (2, *of.cut.shape)


@pytest.mark.parametrize(("stage", "trunk"), [(0, "new"), (1, "teacher")])
def test_a_stage_trains_encoder_codewords_and_decoder(stage, trunk):
    of, net, settings, preset = built(trunk=trunk)
    chosen = preset.stages(net, of, settings)[stage]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.Adam([p for group in chosen.groups for p in group.parameters], lr=3e-3)
    losses = []
    for _, batch in zip(range(16), batches(of), strict=False):
        loss = chosen.loss(batch)
        losses.append(loss.total.item())
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert loss.figures["bytes"] <= 3 * 64 * 3 / 8
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert {"codewords", "usage"} < changed
    assert any(name.startswith("encoder.") for name in changed)
    assert any(name.startswith("decoder.") for name in changed)
    assert not any(name.startswith("trunk.") for name in changed)


def test_training_takes_images_plane_by_plane():
    """In the order of RGB bytes torch's convolutions write past their buffers in the backward pass (``encoder.sources``)."""
    of, net, settings, preset = built(trunk="new")
    seen = []
    net.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    batch = next(batches(of))
    for stage in preset.stages(net, of, settings):
        stage.loss(batch)
    assert seen
    assert all(seen)


def test_gradients_reach_the_latent_as_if_nothing_had_been_rounded():
    of, net, _, _ = built()
    batch = next(batches(of))
    coded, apart, _ = net.code(batch.features, torch.ones(16, dtype=torch.int64))
    wanted = torch.autograd.grad(coded.features.sum(), [net.encoder.linear.bias, net.codewords], retain_graph=True)
    latent = net.latent(batch.features).detach()
    chosen = net.vectors(net.nearest(latent)).detach().requires_grad_()
    (at_latent,) = torch.autograd.grad(net.restore(chosen, torch.ones(16, dtype=torch.int64)).sum(), chosen)
    assert torch.allclose(wanted[0], at_latent.sum((0, 2, 3)), rtol=1e-3, atol=1e-3)
    assert wanted[1].abs().sum() > 0
    assert torch.autograd.grad(apart, [net.encoder.linear.bias], retain_graph=True)[0].abs().sum() > 0
    assert torch.autograd.grad(apart, [net.codewords])[0].abs().sum() > 0


def test_dead_codewords_come_back_to_where_latents_are():
    of, net, _, _ = built()
    batch = next(batches(of))
    with torch.no_grad():
        net.codewords[:, 3:] = 1e6
        net.usage[:, 3:] = 0.0
        index = net.nearest(net.latent(batch.features))
        assert index.max() < 3
        assert net.revive(batch.features, index, torch.Generator().manual_seed(0)) == pytest.approx(3 / 8)
        assert net.codewords.abs().max() < 1e3
        assert len(net.nearest(net.latent(batch.features)).unique()) > 4
        usage = net.usage.clone()
        assert net.revive(batch.features, index, torch.Generator().manual_seed(0)) == 1.0
    assert not torch.equal(usage, net.usage)


def test_clusters_of_clustered_points():
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10], [-10, -10]])
    points = centres.repeat_interleave(200, 0) + torch.randn(800, 2) * 0.1
    found = k_means(points, 8, seed=0)
    assert torch.equal(found, k_means(points, 8, seed=0))
    nearest = (points[:, None] - found[None]).square().sum(2).amin(1)
    assert nearest.mean() < 0.1
    assert k_means(points[:3], 16, seed=0).shape == (16, 2)
    assert torch.isfinite(k_means(torch.zeros(5, 2), 4, seed=0)).all()


def test_the_density_is_the_codewords_use():
    _, net, _, _ = built()
    with torch.no_grad():
        net.usage[0] = torch.tensor([0.5, 0.5, 0, 0, 0, 0, 0, 0])
    density = net.density()
    assert density.shape == (2, 3, 8)
    assert np.allclose(density.sum(2), 1)
    assert density[0, 0, :2] == pytest.approx([0.5, 0.5], abs=1e-6)
    assert density[0, 2].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert density[1, 2, 1] > 0


@pytest.mark.parametrize("tables", ["none", "channel"])
def test_codecs_for_codebooks(tables):
    """Packed: one size. With tables: channels that a level leaves out cost next to nothing."""
    _, net, _, _ = built()
    spec = CodecSpec(name="rans", shape=(3, 8, 8), alphabet=8, levels=2, quantizer="0" * 64)
    symbols = np.random.default_rng(0).integers(0, 8, (2, 40, 3, 8, 8)).astype(np.uint8)
    symbols[0, :, 2] = 0
    codec = open_codec(*fit_codec(spec, symbols, net.density(), CodingSettings(tables=tables), net.sent))
    sizes = [{len(codec.encode(frame, level)) for frame in symbols[level]} for level in range(2)]
    if tables == "none":
        assert sizes == [{2 * 64 * 3 // 8}, {3 * 64 * 3 // 8}]
    else:
        assert max(sizes[0]) <= 2 * 64 * 3 / 8 * 1.1 + 4
    decoded, errors = codec.decode_batch([codec.encode(frame, 0) for frame in symbols[0]], [0] * 40)
    assert errors == [None] * 40
    assert np.array_equal(decoded, symbols[0])


def recipe(preset: str, **coding):
    mapping = {
        "teacher": {"model": "x:y"}, "data": {"train": "."}, "cut": {"at": "stem"},
        "input": {"size": [32, 32], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        "bottleneck": {"preset": preset}, "coding": coding,
    }  # fmt: skip
    return recipe_from(mapping, "test.toml", "test", None)


def test_recipes_default_to_what_the_preset_is_for():
    assert recipe("codebook").coding.tables == "none"
    assert recipe("shallow-residual").coding.tables == "context"
    assert recipe("codebook", tables="channel", images=7).coding.tables == "channel"
    assert recipe("shallow-residual", tables="none").coding.tables == "none"
    with pytest.raises(ConfigError, match="tables is 'context'; codebook takes none or channel"):
        recipe("codebook", tables="context")


def test_its_tail_may_learn_labels_too():
    of, net, settings, preset = built(tune_tail=True, label_weight=1.0)
    *_, tail = preset.stages(net, of, settings)
    batch = next(batches(of))
    wanted = replace(batch, labels=torch.zeros(len(batch.images), dtype=torch.int64))
    others = replace(batch, labels=torch.ones(len(batch.images), dtype=torch.int64))
    assert tail.loss(wanted).total.item() != pytest.approx(tail.loss(others).total.item())
    with pytest.raises(DataError, match="class folders, or a labels.csv"):
        tail.loss(batch)
    with pytest.raises(ValueError, match="set tune_tail = true"):
        CodebookSettings(label_weight=0.5)
