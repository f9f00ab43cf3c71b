"""The best linear code for features: where a learned bottleneck starts from.

The Karhunen-Loeve transform of patches (their principal components) packs most of the variance into few channels, and
reverse water-filling tells which step to quantize them with for a wanted distortion (Cover and Thomas, "Elements of
Information Theory", section 10.3).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Transform(NamedTuple):
    """Principal components of patches of features.

    Attributes:
        mean: of a patch, ``[C * patch * patch]``, in the order channel, row, column.
        basis: one component a row, orthonormal, ``[channels, C * patch * patch]``.
        variance: of each component, ``[channels]``, falling.
        total: variance of a patch in all.
    """

    mean: Tensor
    basis: Tensor
    variance: Tensor
    total: float

    def step_for(self, distortion: float) -> float:
        """The quantization step whose squared error is about ``distortion`` of the total variance.

        Components below the water level are dropped whole, the others err by step squared / 12. What lies outside the
        basis is lost at any step; where that alone is too much, half of ``distortion`` is allowed within the basis.
        """
        kept = float(self.variance.sum())
        allowed = max(distortion * self.total - (self.total - kept), distortion / 2 * kept)
        low, high = 0.0, float(self.variance.max())
        for _ in range(60):
            level = (low + high) / 2
            error = float(self.variance.clamp(max=level).sum())
            low, high = (level, high) if error < allowed else (low, level)
        return math.sqrt(12 * high)


def principal_components(batches: list[Tensor], patch: int, channels: int) -> Transform:
    """The transform of features ``[N, C, H, W]`` (several batches) in patches of ``patch`` x ``patch``.

    Where a patch has fewer numbers than ``channels``, the components beyond are zero.
    """
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for features in batches:
        rows = F.unfold(features.double(), patch, stride=patch).transpose(1, 2).flatten(0, 1)
        count, total, products = count + len(rows), total + rows.sum(0), products + rows.T @ rows
    mean = total / count
    covariance = products / count - torch.outer(mean, mean)
    variance, vectors = torch.linalg.eigh(covariance)
    variance, basis = variance.flip(0).clamp_min(0), vectors.flip(1).T
    kept = min(channels, len(basis))
    padded = torch.zeros(channels, basis.shape[1], dtype=basis.dtype)
    padded[:kept] = basis[:kept]
    shown = torch.zeros(channels, dtype=basis.dtype)
    shown[:kept] = variance[:kept]
    return Transform(mean.float(), padded.float(), shown.float(), float(variance.sum()))
