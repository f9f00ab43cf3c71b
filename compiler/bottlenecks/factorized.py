"""The learned density of the variational image coders: one small monotone network per channel.

Source: Ballé, Minnen, Singh, Hwang and Johnston, "Variational image compression with a scale hyperprior" (ICLR 2018, arXiv
1802.01436), section 6.1 of its appendix, with its sizes: four layers, three units wide.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from math import expm1, log

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from narrowcast.compiler.bottlenecks.exact import in_fp32
from narrowcast.compiler.bottlenecks.quantize import FLOOR

UNITS = (1, 3, 3, 3, 1)
# At the start most of the probability lies within this many steps of 0, on either side: far wider than what an untrained
# encoder gives, so that bits cost nearly nothing until the encoder has learned to carry something.
START_WIDTH = 10.0


class FactorizedPrior(nn.Module):
    """A cumulative distribution per channel, any shape; symbols are independent given their channel.

    Layer ``k`` takes ``x`` to ``u = softplus(H) x + b`` and, but for the last, on to ``u + tanh(a) tanh(u)``: both grow with
    ``x``, so their composition under a sigmoid is a cumulative distribution.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.weights, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        scale = START_WIDTH ** (1 / (len(UNITS) - 1))
        for inside, out in pairwise(UNITS):
            start = log(expm1(1 / scale / out))  # softplus gives 1 / scale / out back
            self.weights.append(nn.Parameter(torch.full((channels, out, inside), start)))
            self.biases.append(nn.Parameter(torch.rand(channels, out, 1) - 0.5))
            if out != 1:
                self.factors.append(nn.Parameter(torch.zeros(channels, out, 1)))

    @in_fp32
    def bits(self, values: Tensor) -> Tensor:
        """The cost of values ``[N, C, H, W]`` (whole or noisy), in bits, of the same shape."""
        by_channel = values.transpose(0, 1)
        flat = by_channel.reshape(self.channels, 1, -1)
        parameters = list(self._layers())
        lower, upper = _logits(flat - 0.5, parameters), _logits(flat + 0.5, parameters)
        # Differences of sigmoids are taken in the lower tail, where they keep their precision.
        sign = -torch.sign(lower + upper).detach()
        inside = (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()
        cost = -torch.log2(inside.clamp_min(FLOOR))
        return cost.reshape(by_channel.shape).transpose(0, 1)

    @torch.no_grad()
    def density(self, alphabet: int, zero: int) -> npt.NDArray[np.float64]:
        """Probabilities float64 ``[1, C, alphabet]``; symbol ``zero`` stands for the value 0.

        The outermost symbols get the tails: values beyond them are clipped to them.
        """
        parameters = [
            (weight.detach().cpu().double(), bias.detach().cpu().double(), factor.detach().cpu().double())
            for weight, bias, factor in self._layers()
        ]
        edges = (torch.arange(1, alphabet, dtype=torch.float64) - 0.5 - zero).expand(self.channels, 1, -1)
        cumulative = torch.sigmoid(_logits(edges, parameters))[:, 0]
        padded = F.pad(F.pad(cumulative, (1, 0), value=0.0), (0, 1), value=1.0)
        probability = padded.diff(dim=1).clamp_min(0).numpy()[None]
        result: npt.NDArray[np.float64] = probability / probability.sum(2, keepdims=True)
        return result

    def _layers(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        none = torch.zeros((), device=self.weights[0].device)
        yield from zip(self.weights, self.biases, [*self.factors, none], strict=True)


def _logits(x: Tensor, layers: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The cumulative distribution before its sigmoid, at ``[C, 1, n]``."""
    for weight, bias, factor in layers:
        x = torch.matmul(F.softplus(weight), x) + bias
        x = x + torch.tanh(factor) * torch.tanh(x)  # a factor of 0 leaves the last layer as it is
    return x
