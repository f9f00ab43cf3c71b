"""A network's digest names what it computes, wherever in the network that is written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from narrowcast.compiler.cuts.trace import trace
from narrowcast.compiler.digests import digest_of_network
from narrowcast.compiler.job import Job
from narrowcast.compiler.progress import SILENT

SIZE = (8, 8)


class Attending(nn.Module):
    def __init__(self, *, heads: int = 2, norm_first: bool = False, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.layer = nn.TransformerEncoderLayer(8, heads, 8, batch_first=True, norm_first=norm_first)
        self.scale = torch.tensor(scale)  # no buffer: in no state
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def forward(self, x):
        return self.layer(self.stem(x * self.scale + self.shift).flatten(2).transpose(1, 2)).mean(1)


class Exported(nn.Module):
    def __init__(self, *, scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.scale = torch.tensor(scale)
        self.register_buffer("shift", torch.tensor(shift), persistent=False)

    def forward(self, x):
        if x.shape[2] < 4:  # torch.fx cannot follow it
            raise ValueError("too small")
        return self.stem(x * self.scale + self.shift)


def digest(kind=Attending, options=None, **settings) -> str:
    network = kind(**settings).eval().requires_grad_(False)
    return digest_of_network(network, trace(network, SIZE), options or {})


def test_the_same_network_has_the_same():
    assert digest() == digest()


@pytest.mark.parametrize(
    "settings", [{"heads": 4}, {"norm_first": True}, {"scale": 2.0}, {"shift": 1.0}, {"options": {"heads": 4}}]
)
def test_other_settings_under_the_same_weights_have_another(settings):
    assert digest(**settings) != digest()


def test_so_have_those_of_exported_graphs():
    assert len({digest(Exported, **settings) for settings in ({}, {"scale": 2.0}, {"shift": 1.0})}) == 3


def test_a_run_is_another_with_other_options(recipe_for, tmp_path):
    folders = {
        Job(recipe_for(teacher={"options": options}), tmp_path, SILENT).folder for options in ({}, {"classes": 4})
    }
    assert len(folders) == 2
