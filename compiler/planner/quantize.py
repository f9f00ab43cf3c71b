"""How many bytes the teacher's own features take: transformed, quantized as coarsely as its answers allow, entropy-coded.

Features are taken in patches of one cell of the latent's grid. Not all directions of a patch matter alike: their weight is
how much the outputs follow them, ``J.T J`` with the outputs' Jacobian ``J``, the mean over images and patches, estimated
from gradients of random mixtures of the outputs. In the units that weight gives, the patches are turned by their principal
components and rounded to multiples of one step, the same for all: for a squared error that is weighted so, this spends the
fewest bits (A. Gersho and R. Gray, "Vector quantization and signal compression", chapter 8). A bottleneck that is trained
through the tail learns as much. What is counted is the first-order entropy of each component's symbols, with the bias of
estimating it from few samples taken out (G. Miller, "Note on the bias of information estimates", 1955).

The second view asks how much the features carry at all, as the information-bottleneck analysis by lossy compression does
(I. Butakov et al., ICLR 2024, arXiv 2305.08013): the mutual information between the image and the features with Gaussian
noise added (Z. Goldfeld et al., ICML 2019), estimated on compressed features. Here they are compressed by the same
components, the noise is what the answers are known to bear (the quantizer's), and the estimator is a bound: a Gaussian has
the most entropy of all densities with the same variances, so it is at most ``sum 0.5 log2(1 + variance / noise)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from narrowcast.compiler.errors import CutError
from narrowcast.compiler.layout import Layout

MOST_DIMENSIONS = 1024
# Principal components of fewer patches than this per dimension would describe the patches, not the features.
LEAST_PATCHES = 4
# Of the mean sensitivity, added to all: directions that no output seems to follow are not free.
RIDGE = 1e-3
# Where the step is looked for, in octaves around the features' standard deviation, and how finely.
OCTAVES = (-9.0, 5.0)
RESOLUTION = 0.25


class Code(NamedTuple):
    """Features at the coarsest step that keeps the answers.

    Attributes:
        step: in the units that the outputs' sensitivity gives.
        kept: what part of the answers it keeps.
        entropy_bytes: of one image's symbols.
        information_bytes: an upper bound of what the features of one image tell of it, at the quantizer's noise.
        relative_error: squared error in those units, as a part of the variance.
    """

    step: float
    kept: float
    entropy_bytes: float
    information_bytes: float
    relative_error: float


Batches = Callable[[], Iterator[tuple[int, Tensor]]]
Kept = Callable[[Tensor, int], float]


class PatchTransform:
    """Features ``[N, *shape]`` to components ``[N, D, patches]`` and back.

    Args:
        batches: gives features, batch by batch.
        layout: of the features.
        rows: of the network's input, pixels.
        stride: of the latent's grid: input pixels per cell.
        gradients: gives gradients of random mixtures of the outputs by the features, batch by batch; without them all
            directions weigh alike.
    """

    def __init__(
        self, batches: Batches, layout: Layout, rows: int, stride: int, gradients: Batches | None = None
    ) -> None:
        self._layout = layout
        channels, height, width = layout.map_shape
        self.patch = _patch(layout, rows, stride)
        self._pad = (0, -width % self.patch, 0, -height % self.patch)
        dimensions = channels * self.patch**2
        count, mean, products = self._moments(batches, dimensions)
        covariance = products - torch.outer(mean, mean)
        weight = torch.eye(dimensions, dtype=torch.float64)
        if gradients is not None:
            weight = self._moments(gradients, dimensions)[2]
            weight = weight / weight.diagonal().mean().clamp_min(1e-30) + RIDGE * torch.eye(dimensions)
        if count < LEAST_PATCHES * dimensions:
            covariance, weight = covariance.diagonal().diag(), weight.diagonal().diag()
        root = torch.linalg.cholesky(weight)
        variance, turn = torch.linalg.eigh(root.T @ covariance @ root)
        self.variance = variance.clamp_min(0)
        self.patches = (height + self._pad[3]) // self.patch * ((width + self._pad[1]) // self.patch)
        self._mean = mean.float()[:, None]
        self._analysis = (turn.T @ root.T).float()
        self._synthesis = torch.linalg.solve_triangular(root.T, turn, upper=True).float()

    def _moments(self, batches: Batches, dimensions: int) -> tuple[int, Tensor, Tensor]:
        """How many patches there are, their mean ``[D]``, and the mean of their products ``[D, D]``."""
        count, total = 0, torch.zeros(dimensions, dtype=torch.float64)
        products = torch.zeros(dimensions, dimensions, dtype=torch.float64)
        for _, features in batches():
            rows = self._patches(features).transpose(1, 2).flatten(0, 1).double()
            count, total, products = count + len(rows), total + rows.sum(0), products + rows.T @ rows
        if not bool(products.isfinite().all()):
            raise CutError(
                "features, or the outputs' gradients by them, are no numbers: no bytes can be estimated here; check the "
                "weights, and mean and std of the input"
            )
        return count, total / count, products / count

    def forward(self, features: Tensor) -> Tensor:
        """``[N, *shape]`` to ``[N, D, patches]``."""
        components: Tensor = self._analysis @ (self._patches(features) - self._mean)
        return components

    def back(self, components: Tensor) -> Tensor:
        """``[N, D, patches]`` to ``[N, *shape]``, contiguous."""
        _, height, width = self._layout.map_shape
        size = height + self._pad[3], width + self._pad[1]
        patches = self._synthesis @ components + self._mean
        maps = F.fold(patches, size, self.patch, stride=self.patch)[..., :height, :width]
        return self._layout.from_map(maps).contiguous()

    def _patches(self, features: Tensor) -> Tensor:
        maps = self._layout.to_map(features)
        return F.unfold(
            F.pad(maps, self._pad, mode="replicate") if any(self._pad) else maps, self.patch, stride=self.patch
        )


def _patch(layout: Layout, rows: int, stride: int) -> int:
    """Cells of the features along one side of a cell of the latent's grid; 1 where there is no grid."""
    channels, height, width = layout.map_shape
    patch, cell = 1, max(1, round(rows / height))
    while (
        layout.kind in ("chw", "hwc")
        and cell * patch * 2 <= stride
        and patch * 2 <= min(height, width)
        and channels * (patch * 2) ** 2 <= MOST_DIMENSIONS
    ):
        patch *= 2
    return patch


def coarsest(batches: Batches, transform: PatchTransform, kept: Kept, count: int, keep: float) -> Code:
    """The coarsest step, to a quarter of an octave, that keeps ``keep`` of the answers, and what features take then.

    Args:
        batches: gives features, batch by batch.
        transform: of the features.
        kept: how many answers of a batch (its features, its first image's number) stay right.
        count: how many images there are.
        keep: the part of the answers to keep, in (0, 1].
    """
    spread = math.sqrt(max(float(transform.variance.mean()), 1e-30))
    fine, coarse = OCTAVES
    if _part_kept(batches, transform, kept, spread * 2**fine, count, keep) < keep:
        return _code(
            batches, transform, kept, spread * 2**fine, count
        )  # nothing here is coarse enough to be worth more
    while coarse - fine > RESOLUTION:
        middle = (fine + coarse) / 2
        enough = _part_kept(batches, transform, kept, spread * 2**middle, count, keep) >= keep
        fine, coarse = (middle, coarse) if enough else (fine, middle)
    return _code(batches, transform, kept, spread * 2**fine, count)


def _part_kept(batches: Batches, transform: PatchTransform, kept: Kept, step: float, count: int, keep: float) -> float:
    """The part of the answers that a step keeps; some part below ``keep`` as soon as that is out of reach."""
    lost = 0.0
    for start, features in batches():
        restored = transform.back(torch.round(transform.forward(features) / step) * step)
        lost += len(features) - kept(restored, start)
        if lost > (1 - keep) * count + 1e-9:
            return min(1 - lost / count, keep - 1e-9)
    return 1 - lost / count


def _code(batches: Batches, transform: PatchTransform, kept: Kept, step: float, count: int) -> Code:
    symbols, right, error = [], 0.0, 0.0
    for start, features in batches():
        components = transform.forward(features)
        rounded = torch.round(components / step)
        restored = transform.back(rounded * step)
        right += kept(restored, start)
        error += float((components - rounded * step).square().mean()) * len(features)
        symbols.append(rounded.clamp(-32768, 32767).to(torch.int16))
    noise = max(error / count, 1e-30)
    bits = sum(
        entropy_bits(torch.cat([part[:, row] for part in symbols]).flatten()) for row in range(len(transform.variance))
    )
    information = 0.5 * float(torch.log2(1 + transform.variance / noise).sum())
    return Code(
        step=step,
        kept=right / count,
        entropy_bytes=bits * transform.patches / 8,
        information_bytes=information * transform.patches / 8,
        relative_error=noise / max(float(transform.variance.mean()), 1e-30),
    )


def entropy_bits(symbols: Tensor | Sequence[int]) -> float:
    """The first-order entropy of whole numbers, bits each, with Miller's correction for few samples.

    Never more than the logarithm of their number: so much any samples tell.
    """
    values = torch.as_tensor(symbols).flatten().long()
    if not len(values):
        return 0.0
    counts = torch.bincount(values - values.min())
    counts = counts[counts > 0].double()
    part = counts / len(values)
    plain = float(-(part * part.log2()).sum())
    return min(
        plain + (len(counts) - 1) / (2 * math.log(2) * len(values)), math.log2(len(values)) if len(values) > 1 else 0
    )
