"""A small teacher's problem, and batches for it, for tests of presets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import nn

from narrowcast.compiler.bottlenecks import Batch, Problem
from narrowcast.compiler.cuts import find_cut
from narrowcast.compiler.cuts.trace import trace
from narrowcast.transport.contract import InputContract
from support import networks

CONTRACT = InputContract(size=(32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def problem(network: nn.Module | None = None, cut: str = "stem", contract: InputContract = CONTRACT) -> Problem:
    """A small teacher, cut; by itself the smallest, behind its stem: features ``[8, 16, 16]``."""
    traced = trace((network or networks.tiny()).eval().requires_grad_(False), contract.size)
    return Problem(traced, find_cut(traced, cut), contract, torch.device("cpu"))


def batches(of: Problem, count: int = 16) -> Iterator[Batch]:
    """Endless batches of smooth random images."""
    for seed in itertools.count():
        generator = torch.Generator().manual_seed(seed)
        rough = torch.rand(count, 3, 5, 5, generator=generator)
        images = (torch.nn.functional.interpolate(rough, of.contract.size, mode="bicubic").clamp(0, 1) * 255).byte()
        images = images.permute(0, 2, 3, 1).contiguous()
        with torch.no_grad():
            features = of.before(of.normalize(images))
        yield Batch(images, features, generator)
