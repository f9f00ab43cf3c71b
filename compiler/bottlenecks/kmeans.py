"""Clusters to start codebooks from: Lloyd's algorithm (IEEE Trans. Information Theory 1982), on a sample."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_POINTS = 16_384
ROUNDS = 10
# What copies of one point are moved apart by, as a part of the points' deviation.
JITTER = 0.01


@torch.no_grad()
def k_means(points: Tensor, count: int, seed: int) -> Tensor:
    """``count`` cluster centres ``[count, d]`` of points ``[n, d]``; any n above 0.

    A cluster that loses all its points is put onto a point drawn anew.
    """
    generator = torch.Generator().manual_seed(seed)
    points = points[torch.randperm(len(points), generator=generator)[:MOST_POINTS]]
    drawn = torch.arange(count) % len(points)
    noise = torch.randn(count, points.shape[1], generator=generator)
    centres = points[drawn] + JITTER * noise * points.std(0, correction=0)
    for _ in range(ROUNDS):
        owner = (centres.square().sum(1) - 2 * points @ centres.T).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, owner, points)
        members = torch.bincount(owner, minlength=count)
        anew = points[torch.randint(len(points), (count,), generator=generator)]
        centres = torch.where(members[:, None] > 0, sums / members[:, None].clamp_min(1), anew)
    return centres
