"""Small teachers. The file is named as ``[teacher] model`` in test recipes, as a user's own file would be."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TinyNet(nn.Module):
    """[N, 3, 32, 32] -> [N, 4]."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(inplace=True))
        self.body = nn.Sequential(
            nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU()
        )
        self.classifier = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(self.stem(x)).mean((2, 3)))


def tiny(classes: int = 4) -> TinyNet:
    """Random weights, the same every time."""
    torch.manual_seed(0)
    return TinyNet(classes)


class Normalised(nn.Module):
    """With batch statistics that training mode would change: [N, 3, 32, 32] -> [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.classifier = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(self.stem(x)).mean((2, 3)))


def normalised() -> Normalised:
    """Random weights, the same every time."""
    torch.manual_seed(0)
    return Normalised()


class TwoOutputs(nn.Module):
    """A dictionary of outputs, as detectors and multi-task networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.mask = nn.Conv2d(8, 1, 1)
        self.scores = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = F.relu(self.stem(x))
        return {"mask": self.mask(features), "scores": self.scores(features.mean((2, 3)))}


def two_outputs() -> TwoOutputs:
    """Random weights, the same every time."""
    torch.manual_seed(0)
    return TwoOutputs()


class Uncuttable(nn.Module):
    """The input is needed to the very end."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.relu(x).mean((2, 3)), x.mean((2, 3))], 1)


def uncuttable() -> Uncuttable:
    """A network with no cut."""
    return Uncuttable()


def not_a_module() -> int:
    """What a user may name by mistake."""
    return 7


def failing() -> nn.Module:
    """A constructor that raises."""
    raise RuntimeError("no such file: secret.bin")
