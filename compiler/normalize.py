"""The last step of the input contract, inside the network: from bytes to what the teacher was trained on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from narrowcast.transport.contract import InputContract


class Normalize(nn.Module):
    """uint8 ``[N, H, W, 3]`` RGB to float32 ``[N, 3, H, W]`` in the contract's colour order, range, mean and std.

    The planes lie one behind the other in memory.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, contract: InputContract) -> None:
        super().__init__()
        low, high = contract.range
        mean, std = torch.tensor(contract.mean, dtype=torch.float64), torch.tensor(contract.std, dtype=torch.float64)
        self.is_bgr = contract.color == "bgr"
        self.register_buffer("scale", ((high - low) / 255 / std).float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", ((low - mean) / std).float().view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        # TensorRT wants bytes cast before anything else is done to them. Convolutions keep the order in memory that they
        # get: in that of RGB bytes, which no network saw in its training, a ``view`` of their maps would fail.
        planes = images.float().permute(0, 3, 1, 2).contiguous()
        if self.is_bgr:
            planes = planes.flip(1)
        return planes * self.scale + self.shift
