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


class Branching(nn.Module):
    """[N, 3, 32, 32] -> [N, 4]; looks at its input's shape, which torch.fx cannot follow and torch.export can."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.classifier = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] < 16:
            raise ValueError("too small")
        return self.classifier(self.body(self.stem(x)).mean((2, 3)))


def branching() -> Branching:
    """Random weights, the same every time."""
    torch.manual_seed(0)
    return Branching()


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


class DenseNet(nn.Module):
    """A one-stage detector's maps at strides 4 and 8, as FCOS gives them: three classes, [N, 3, 32, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.fine = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.scores, self.boxes, self.centerness = (nn.Conv2d(16, count, 1) for count in (3, 4, 1))

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        fine = self.fine(self.stem(x))
        maps = [fine, self.coarse(fine)]
        return {
            "scores": [4 * self.scores(m) for m in maps],
            "boxes": [1 + F.softplus(self.boxes(m)) for m in maps],
            "centerness": [self.centerness(m) for m in maps],
        }


def dense() -> DenseNet:
    """Random weights, the same every time."""
    torch.manual_seed(0)
    return DenseNet()


class MapNet(nn.Module):
    """A segmenter of two classes at half resolution: [N, 3, 32, 32] -> ([N, 2, 16, 16],); for detector and all, a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        scores = self.last(self.body(self.stem(x)))
        return (8 * (scores - scores.mean((2, 3), keepdim=True)),)


def maps() -> MapNet:
    """Random weights, the same every time."""
    torch.manual_seed(1)
    return MapNet()
