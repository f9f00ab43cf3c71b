"""Divisive normalization, and the density that Entropic Student learns with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from narrowcast.compiler.bottlenecks.factorized import FactorizedPrior
from narrowcast.compiler.bottlenecks.gdn import BETA_BOUND, GDN, FoldedGDN, fold_gdn


def stirred(layer: GDN) -> GDN:
    """With parameters of all sizes, some of them below their bounds."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("simplified", [False, True])
def test_it_does_what_the_papers_say(inverse, simplified):
    layer = stirred(GDN(5, inverse=inverse, simplified=simplified))
    x = torch.randn(2, 5, 3, 4)
    # The parametrisation, in NumPy: the square of what is kept, no root below that of the bound.
    roots = [parameter.detach().double().numpy() for parameter in (layer.beta_root, layer.gamma_root)]
    beta = np.maximum(roots[0], np.sqrt(BETA_BOUND + 2.0**-36)) ** 2 - 2.0**-36
    gamma = np.maximum(roots[1], 2.0**-18) ** 2 - 2.0**-36
    values = x.double().numpy()
    activity = np.abs(values) if simplified else values**2
    divisor = beta[:, None, None] + np.einsum("ij,njhw->nihw", gamma, activity)
    divisor = divisor if simplified else np.sqrt(divisor)
    expected = values * divisor if inverse else values / divisor
    assert np.allclose(layer(x).detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    folded = layer.folded()
    assert torch.equal(folded(x), layer(x))
    assert (folded.gamma >= 0).all()
    assert (folded.beta > 0).all()
    assert (gamma == 0).any()  # some were below the bound, or the test is idle


def test_it_starts_near_the_identity():
    x = torch.randn(1, 3, 2, 2)
    folded = GDN(3).folded()
    assert torch.allclose(folded.beta, torch.ones(3))
    assert torch.allclose(folded.gamma, 0.1 * torch.eye(3), atol=1e-6)
    assert torch.allclose(GDN(3)(x), x / (1 + 0.1 * x.abs()), atol=1e-6)


def test_a_parameter_below_its_bound_can_come_back_but_goes_no_lower():
    layer = GDN(2)
    with torch.no_grad():
        layer.beta_root.fill_(-1.0)
    x = torch.ones(1, 2, 1, 1)
    layer(x).sum().backward()  # more beta, less output: descending the output's sum wants more beta
    assert (layer.beta_root.grad < 0).all()
    layer.zero_grad()
    (-layer(x).sum()).backward()  # the other way: further below the bound, where there is nothing to gain
    assert (layer.beta_root.grad == 0).all()


def test_folding_replaces_every_layer_once():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), stirred(GDN(4)), nn.Sequential(GDN(4, inverse=True)))
    x = torch.randn(1, 3, 2, 2)
    before = net(x)
    fold_gdn(net)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    fold_gdn(net)
    assert torch.equal(net(x), before)
    assert isinstance(net[1], FoldedGDN)
    assert isinstance(net[2][0], FoldedGDN)
    assert not any(isinstance(module, GDN) for module in net.modules())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_the_factorized_prior_is_a_density_and_its_bits_are_its_logarithm():
    torch.manual_seed(0)
    prior = FactorizedPrior(3)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    density = prior.density(128, 64)
    assert density.shape == (1, 3, 128)
    assert np.allclose(density.sum(2), 1)
    values = torch.arange(-20, 21).float().expand(2, 3, 1, 41)
    bits = prior.bits(values)
    assert bits.shape == values.shape
    inner = density[0, :, 44:85]
    for found in bits[:, :, 0].detach().numpy():
        assert np.allclose(np.minimum(-np.log2(inner), 24), np.minimum(found, 24), atol=0.02)


def test_the_factorized_prior_starts_wide():
    density = FactorizedPrior(4).density(256, 128)[0]
    steps = np.abs(np.arange(256) - 128)
    assert (density[:, steps <= 10].sum(1) < 0.9).all()
    assert (density[:, steps <= 60].sum(1) > 0.9).all()


def test_the_factorized_prior_learns_a_density_with_two_peaks():
    torch.manual_seed(0)
    prior = FactorizedPrior(1)
    random = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(prior.parameters(), 3e-2)
    for _ in range(300):
        side = torch.randint(0, 2, (1, 1, 8, 8), generator=random) * 12.0 - 6
        values = side + torch.rand(side.shape, generator=random) - 0.5
        loss = prior.bits(values).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    density = prior.density(64, 32)[0, 0]
    assert density[26] > 0.2
    assert density[38] > 0.2
    assert density[32] < 0.05
    assert loss.item() < 2.3  # one bit says which peak, 0.7 of one where between two whole numbers
