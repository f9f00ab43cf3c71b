"""The last step of the input contract, inside the network: from bytes to what the teacher was trained on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from narrowcast.transport.contract import InputContract


class Normalize(nn.Module):
    """uint8 ``[N, H, W, 3]`` RGB to float32 ``[N, 3, H, W]`` in the contract's colour order, range, mean and std.

    Args:
        contract: the input contract.
        channels_last: leave the pixels in memory as they came. Otherwise the planes lie one behind the other, as networks
            see them that were trained elsewhere: convolutions keep the order that they get, and a ``view`` of their maps
            fails in the other one.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, contract: InputContract, *, channels_last: bool = False) -> None:
        super().__init__()
        self.channels_last = channels_last
        low, high = contract.range
        mean, std = torch.tensor(contract.mean, dtype=torch.float64), torch.tensor(contract.std, dtype=torch.float64)
        self.is_bgr = contract.color == "bgr"
        self.register_buffer("scale", ((high - low) / 255 / std).float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", ((low - mean) / std).float().view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        planes = images.float().permute(0, 3, 1, 2)  # TensorRT wants bytes cast before anything else is done to them
        if not self.channels_last:
            planes = planes.contiguous()
        if self.is_bgr:
            planes = planes.flip(1)
        return planes * self.scale + self.shift
