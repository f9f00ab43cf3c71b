"""The three networks of a bundle, as torch modules: head, tail and the uncut whole."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from narrowcast.compiler.bottlenecks import Bottleneck
from narrowcast.compiler.nesting import flat, output_names
from narrowcast.compiler.normalize import Normalize

__all__ = ["Head", "Tail", "Whole", "flat", "output_names"]


class Head(nn.Module):
    """uint8 ``[N, H, W, 3]`` (and, with several levels, ``level`` int64 ``[N]``) to symbols uint8 ``[N, C, h, w]``."""

    def __init__(self, normalize: Normalize, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.normalize = normalize
        self.bottleneck = bottleneck

    def forward(self, image: Tensor, level: Tensor | None = None) -> Tensor:
        """See the class."""
        if level is None:
            level = torch.zeros(image.shape[0], dtype=torch.int64, device=image.device)
        return self.bottleneck.encode(self.normalize(image), level).to(torch.uint8)


class Tail(nn.Module):
    """Symbols uint8 ``[N, C, h, w]`` and ``level`` int64 ``[N]`` to the task's outputs, a flat tuple."""

    def __init__(self, bottleneck: Bottleneck, after: nn.Module) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.after = after

    def forward(self, symbols: Tensor, level: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return flat(self.after(self.bottleneck.decode(symbols.float(), level)))


class Whole(nn.Module):
    """The teacher behind the input contract: uint8 ``[N, H, W, 3]`` to the task's outputs, a flat tuple."""

    def __init__(self, normalize: Normalize, teacher: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.teacher = teacher

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return flat(self.teacher(self.normalize(image)))
