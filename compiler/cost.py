"""What a network costs, in multiply-accumulates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def count_macs(module: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products when ``module`` runs on ``inputs``."""
    counter = FlopCounterMode(display=False)
    with counter:
        module(*inputs)
    return counter.get_total_flops() // 2


def macs_of_layers(layers: nn.Module, shape: Sequence[int]) -> int:
    """The same for one input of ``shape`` (without the batch), without computing anything; empties ``layers``."""
    return count_macs(layers.to("meta"), torch.empty(1, *shape, device="meta"))
