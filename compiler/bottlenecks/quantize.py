"""Rounding that gradients pass through, and the learned density of what was rounded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from narrowcast.compiler.bottlenecks.exact import in_fp32

# Below this probability a symbol's cost no longer grows; the tables never go lower either (an escape costs about this).
FLOOR = 2.0**-24
# Of a density at the start; a channel that always rounds to the same symbol still needs a gradient.
LEAST_DEVIATION = 0.2


def round_through(x: Tensor) -> Tensor:
    """Rounds half to even; the gradient is the identity's (straight-through estimator, Theis et al. 2017)."""
    return x + (torch.round(x) - x).detach()


class LogisticMixturePrior(nn.Module):
    """A learned density per level and channel: a mixture of logistics, integrated over each symbol's unit interval.

    It is factorized (Ballé et al. 2018, section 6.1): symbols are independent given their channel and level. The mixture
    stands where that paper has a small network; it is as flexible here and has a closed form.
    """

    def __init__(self, levels: int, channels: int, components: int = 3) -> None:
        super().__init__()
        shape = (levels, channels, components)
        spread = torch.linspace(-1.0, 1.0, components).expand(shape)
        self.mean = nn.Parameter(spread.clone())
        self.log_scale = nn.Parameter(torch.linspace(-0.5, 0.5, components).expand(shape).clone())
        self.weight = nn.Parameter(torch.zeros(shape))

    @torch.no_grad()
    def start_from(self, deviation: Tensor) -> None:
        """Starts the densities at zero mean with the standard deviations ``[levels, C]``, in steps."""
        scale = (deviation.clamp_min(LEAST_DEVIATION) * 3**0.5 / torch.pi).log()[..., None]
        spread = torch.linspace(-0.7, 0.7, self.log_scale.shape[2], device=deviation.device)
        self.log_scale.copy_(scale + spread)
        self.mean.mul_(deviation.clamp(LEAST_DEVIATION, 1.0)[..., None] * 0.1)

    def keep(self, index: Tensor) -> None:
        """Forgets all channels but ``index``."""
        for name, parameter in list(self.named_parameters()):
            setattr(self, name, nn.Parameter(parameter.detach()[:, index]))

    @in_fp32
    def bits(self, values: Tensor, level: Tensor) -> Tensor:
        """The cost of values ``[N, C, H, W]`` (whole or noisy) at levels ``[N]``, in bits, of the same shape."""
        mean, log_scale, weight = (
            p[level].movedim(2, 0)[:, :, :, None, None] for p in (self.mean, self.log_scale, self.weight)
        )
        scale = torch.exp(-log_scale)
        # Symmetric about the mean: differences of sigmoids are taken in the lower tail, where they keep their precision.
        distance = -(values - mean).abs()
        inside = torch.sigmoid((distance + 0.5) * scale) - torch.sigmoid((distance - 0.5) * scale)
        probability = (F.softmax(weight, 0) * inside).sum(0)
        return -torch.log2(probability.clamp_min(FLOOR))

    @torch.no_grad()
    def density(self, alphabet: int, zero: int) -> npt.NDArray[np.float64]:
        """Probabilities float64 ``[levels, C, alphabet]``; symbol ``zero`` stands for the value 0.

        The outermost symbols get the tails: values beyond them are clipped to them.
        """
        mean, scale, weight = (
            p.detach().cpu().double() for p in (self.mean, torch.exp(-self.log_scale), F.softmax(self.weight, 2))
        )
        edges = torch.arange(1, alphabet, dtype=torch.float64) - 0.5 - zero
        cumulative = (weight[..., None] * torch.sigmoid((edges - mean[..., None]) * scale[..., None])).sum(2)
        padded = F.pad(F.pad(cumulative, (1, 0), value=0.0), (0, 1), value=1.0)
        probability = padded.diff(dim=2).clamp_min(0).numpy()
        result: npt.NDArray[np.float64] = probability / probability.sum(2, keepdims=True)
        return result
