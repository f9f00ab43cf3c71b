"""The number of latent channels is found, not guessed: those that turn out to carry nothing are cut out of the network.

Source of the idea: Saha, Joshi and Whitaker, "ARD-VAE: a statistical formulation to find the relevant latent dimensions of
variational autoencoders" (arXiv 2501.10901). There each latent dimension has a Gaussian prior of its own variance, with
a Gamma hyper-prior on its inverse; dimensions whose estimated variance falls to nothing are dropped after training.

In a codec, the learned density of each channel and level is such a prior, of any shape and with its width learned, and its
negative logarithm is the bits that training pays for. What the paper adds is the hyper-prior. Integrated out, it turns the
prior of a channel's cells in an image into a Student t distribution, under which a channel with little energy is cheaper off
than on (:func:`hyper_bits`). After most of the training, channels that carry next to no information at any level are
switched off (:meth:`Relevance.settle`); the rest of the training goes on without them, and before export they are cut out of
the layers: the head is really smaller, and what it gives for the other channels is what it gave before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor, nn

from narrowcast.compiler.bottlenecks.exact import in_fp32

# A channel that carries less than this in bits a symbol, at every level, is switched off.
LEAST_BITS = 0.01
# The hyper-prior's weight: so much of its bits are paid for beside those of the learned densities.
HYPER_WEIGHT = 0.05
# Energy per cell, in steps squared, that counts as nothing: that of rounding.
ROUNDING_ENERGY = 1 / 12


@dataclass(frozen=True)
class Found:
    """What came of looking for relevant channels.

    Attributes:
        start: channels in training.
        kept: channels in the exported head.
        spent_bytes: by level: what the others had cost a frame before they were switched off, by their symbols' entropy.
    """

    start: int
    kept: int
    spent_bytes: Sequence[float]


class Relevance(nn.Module):
    """Which channels of a latent are in use; part of the checkpoint, so that a resumed run knows.

    Attributes:
        kept: float ``[C]``: 1 for channels in use, 0 for those switched off.
        spent: float ``[levels]``: see :class:`Found`.
        settled: bool: whether that is decided.
    """

    kept: Tensor
    spent: Tensor
    settled: Tensor

    def __init__(self, levels: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("kept", torch.ones(channels))
        self.register_buffer("spent", torch.zeros(levels))
        self.register_buffer("settled", torch.tensor(False))

    @torch.no_grad()
    def settle(self, entropy: Tensor, cells: int) -> None:
        """Switches off the channels that carry next to nothing at every level; the best one stays in any case.

        Args:
            entropy: of the channels' symbols ``[levels, C]``, in bits a symbol.
            cells: symbols of a channel in a frame.
        """
        most = entropy.amax(0)
        kept = (most >= LEAST_BITS) | (most == most.max())
        self.kept.copy_(kept)
        self.spent.copy_((entropy * ~kept).sum(1) * cells / 8)
        self.settled.fill_(True)

    def start_over(self) -> None:
        """All are in use again, and nothing is decided."""
        self.kept.fill_(1)
        self.spent.zero_()
        self.settled.fill_(False)

    def index(self) -> Tensor:
        """The numbers of the channels in use, int64."""
        return self.kept.nonzero()[:, 0]

    def found(self) -> Found:
        """What came of it."""
        return Found(len(self.kept), int(self.kept.sum()), [round(float(spent), 2) for spent in self.spent])


@in_fp32
def hyper_bits(scaled: Tensor) -> Tensor:
    """What the hyper-prior takes for a latent ``[N, C, H, W]`` in steps: bits per image, ``[N]``.

    The negative logarithm of ``prod N(x_i; 0, v)`` with an inverse-gamma ``v``, integrated over ``v``: but for a constant,
    ``cells / 2 * log(1 + energy / (cells * ROUNDING_ENERGY))``.
    """
    cells = scaled[0, 0].numel()
    energy = scaled.square().sum((2, 3)) / cells
    return HYPER_WEIGHT * cells / 2 * torch.log1p(energy / ROUNDING_ENERGY).sum(1) / log(2)


def entropy_of(symbols: Tensor) -> Tensor:
    """The empirical entropy of each channel of whole numbers ``[N, C, H, W]``, in bits a symbol: ``[C]``."""
    found = []
    for channel in symbols.transpose(0, 1):
        part = channel.unique(return_counts=True)[1].double() / channel.numel()
        found.append(-(part * part.log2()).sum())
    return torch.stack(found).to(symbols)


def keep_outputs(layer: nn.Conv2d, index: Tensor) -> None:
    """Cuts a convolution's output channels down to ``index``."""
    layer.weight = nn.Parameter(layer.weight.detach()[index])
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[index])
    layer.out_channels = len(index)


def keep_inputs(layer: nn.Conv2d, index: Tensor) -> None:
    """Cuts a convolution's input channels down to ``index``: the same result wherever the others are 0."""
    layer.weight = nn.Parameter(layer.weight.detach()[:, index])
    layer.in_channels = len(index)


def selecting(channels: int, index: Tensor) -> nn.Conv2d:
    """A 1x1 convolution from the channels in use to all, which puts each in its place; the others are 0."""
    layer = nn.Conv2d(len(index), channels, 1, bias=False)
    layer.weight = nn.Parameter(torch.eye(channels)[:, index, None, None])
    return layer
