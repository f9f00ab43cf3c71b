"""The demo's teacher: a small network that reads one digit in a photograph.

It stands for your own trained network. The demo copies this file beside its recipe, which names it as any user would:
``model = "teacher.py:load"``. Nothing in it knows of narrowcast.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

Advance = Callable[[int, dict[str, float]], None]
BATCH = 32
CROP = 48


class Block(nn.Module):
    """A residual block of stride 2."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(cin, cout, 3, 2, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(cout, cout, 3, 1, 1, bias=False), nn.BatchNorm2d(cout))
        self.skip = nn.Sequential(nn.Conv2d(cin, cout, 1, 2, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, cin, H, W]`` to ``[N, cout, H / 2, W / 2]``."""
        return F.relu(self.second(self.first(x)) + self.skip(x))


class DigitNet(nn.Module):
    """Images ``[N, 3, 96, 96]``, pixel values 0..1, to scores ``[N, 10]``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.stages = nn.Sequential(Block(16, 32), Block(32, 64), Block(64, 96))
        self.classifier = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.stages(self.stem(x))
        scores: Tensor = self.classifier(x.amax((2, 3)))
        return scores


def load() -> DigitNet:
    """The network; its weights come from the recipe."""
    return DigitNet()


def train(frames: Any, labels: Any, centres: Any, *, epochs: tuple[int, int], seed: int, advance: Advance) -> DigitNet:
    """Trains the network, first on crops around the digits (cheaper, and it finds out sooner what matters), then on all.

    Args:
        frames: uint8 ``[N, 96, 96, 3]``.
        labels: int64 ``[N]``.
        centres: where the digits are, y and x, int64 ``[N, 2]``.
        epochs: on crops, and on whole frames.
        seed: of everything random.
        advance: told how many images were seen, and the loss.
    """
    torch.manual_seed(seed)
    net, truth = DigitNet(), torch.from_numpy(labels)
    _fit(net, torch.from_numpy(_crops(frames, centres, seed)), truth, epochs[0], 3e-3, advance)
    _fit(net, torch.from_numpy(frames), truth, epochs[1], 1.5e-3, advance)
    net.eval()
    return net


def _crops(frames: Any, centres: Any, seed: int) -> Any:
    random = np.random.default_rng(seed)
    corners = centres - CROP // 2 + random.integers(-6, 7, centres.shape)
    corners = np.clip(corners, 0, frames.shape[1] - CROP)
    return np.stack([f[y : y + CROP, x : x + CROP] for f, (y, x) in zip(frames, corners, strict=True)])


def _fit(net: DigitNet, images: Tensor, truth: Tensor, epochs: int, rate: float, advance: Advance) -> None:
    steps = math.ceil(len(images) / BATCH) * epochs
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=0.2)
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for rows in (order[start : start + BATCH] for start in range(0, len(order), BATCH)):
            planes = images[rows].permute(0, 3, 1, 2).float() / 255
            loss = F.cross_entropy(net(planes), truth[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            advance(len(rows), {"loss": loss.item()})
