"""Generalized divisive normalization: each channel divided by a learned measure of the activity of all channels.

Sources: the layer, Ballé, Laparra and Simoncelli, "Density modeling of images using a generalized normalization
transformation" (ICLR 2016, arXiv 1511.06281); its simplified form (absolute values, no root), Johnston, Eban, Gordon and
Ballé, "Computationally efficient neural image compression" (arXiv 1912.08771); the parametrisation that keeps ``beta``
and ``gamma`` from falling below their bounds, Ballé, "Efficient nonlinear transforms for lossy image compression" (PCS
2018, arXiv 1802.00847).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BETA_BOUND = 1e-6
GAMMA_START = 0.1
# Parameters are kept as roots of (value + PEDESTAL): at 0 the root's gradient would vanish otherwise.
PEDESTAL = 2.0**-36


class FoldedGDN(nn.Module):
    """The layer with fixed ``beta`` and ``gamma``: what is exported, plain operators only.

    ``x / (beta + gamma |x|)`` in the simplified form, else ``x / sqrt(beta + gamma x^2)``; the inverse multiplies.

    Attributes:
        beta: ``[C]``, above 0.
        gamma: ``[C, C]``, none below 0: row ``i`` weighs what channel ``i`` is divided by.
    """

    beta: Tensor
    gamma: Tensor

    def __init__(self, beta: Tensor, gamma: Tensor, *, inverse: bool, simplified: bool) -> None:
        super().__init__()
        self.inverse = inverse
        self.simplified = simplified
        self.register_buffer("beta", beta)
        self.register_buffer("gamma", gamma)

    def forward(self, x: Tensor) -> Tensor:
        """float32 ``[N, C, H, W]`` to the same shape."""
        return normalize(x, self.beta, self.gamma, inverse=self.inverse, simplified=self.simplified)


class GDN(nn.Module):
    """The layer as it is trained.

    Args:
        channels: in and out.
        inverse: the decoder's counterpart, which multiplies where this divides.
        simplified: absolute values instead of squares, and no root.
    """

    def __init__(self, channels: int, *, inverse: bool = False, simplified: bool = True) -> None:
        super().__init__()
        self.inverse = inverse
        self.simplified = simplified
        self.beta_root = nn.Parameter(_root(torch.ones(channels)))
        self.gamma_root = nn.Parameter(_root(GAMMA_START * torch.eye(channels)))

    def forward(self, x: Tensor) -> Tensor:
        """float32 ``[N, C, H, W]`` to the same shape."""
        beta, gamma = self._values()
        return normalize(x, beta, gamma, inverse=self.inverse, simplified=self.simplified)

    @torch.no_grad()
    def folded(self) -> FoldedGDN:
        """The same layer, its parametrisation worked out."""
        beta, gamma = self._values()
        return FoldedGDN(beta, gamma, inverse=self.inverse, simplified=self.simplified)

    def _values(self) -> tuple[Tensor, Tensor]:
        return _square(self.beta_root, BETA_BOUND), _square(self.gamma_root, 0.0)


def normalize(x: Tensor, beta: Tensor, gamma: Tensor, *, inverse: bool, simplified: bool) -> Tensor:
    """See :class:`FoldedGDN`."""
    activity = F.conv2d(x.abs() if simplified else x * x, gamma[:, :, None, None], beta)
    if not simplified:
        activity = torch.sqrt(activity)
    return x * activity if inverse else x / activity


def fold_gdn(module: nn.Module) -> None:
    """Replaces every :class:`GDN` within ``module`` by its :class:`FoldedGDN`; those that are folded stay."""
    for name, child in module.named_children():
        if isinstance(child, GDN):
            setattr(module, name, child.folded())
        else:
            fold_gdn(child)


class _LowerBound(torch.autograd.Function):
    """``max(x, bound)``, whose gradient also passes below the bound where a step would lead back above it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * ((x >= ctx.bound) | (gradient < 0)), None


def _root(value: Tensor) -> Tensor:
    return torch.sqrt(value + PEDESTAL)


def _square(root: Tensor, bound: float) -> Tensor:
    """The value, at least ``bound``, whose root is kept."""
    limited: Tensor = _LowerBound.apply(root, (bound + PEDESTAL) ** 0.5)  # type: ignore[no-untyped-call]
    return limited.square() - PEDESTAL
