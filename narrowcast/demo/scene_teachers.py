"""A detector and a segmenter for the scenes of :mod:`narrowcast.demo.scenes`; small, of one backbone's kind.

They stand for your own trained networks, and are named as any user would: ``model = "scene_teachers.py:detector"``. Nothing
in this file knows of cuts or bottlenecks.

The detector is after FCOS (Tian et al., "FCOS: Fully convolutional one-stage object detection", ICCV 2019): no anchors; each
cell of two feature maps (strides 8 and 16) tells the classes, the distances from its centre to the box's sides, and how
central it lies. It gives dense maps; the choice of boxes is left to whoever uses them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from narrowcast.demo.teacher import Advance, Block

BATCH = 16
CLASSES = 5
STRIDES = (8, 16)
# A digit whose longer side is below this (pixels) is found at stride 8, any other at stride 16.
SIDE_BETWEEN = 36.0
# Cells this near to a box's centre, in strides, are asked for it (centre sampling).
CENTRE = 1.5


class Backbone(nn.Module):
    """Images ``[N, 3, H, W]``, pixel values 0..1, to features at strides 4, 8 and 16: 32, 64 and 96 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        first = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.stages = nn.Sequential(first, Block(32, 64), Block(64, 96))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        at4 = self.stages[0](self.stem(x))
        at8 = self.stages[1](at4)
        return at4, at8, self.stages[2](at8)


def _layer(cin: int, cout: int, size: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, size, 1, size // 2, bias=False), nn.BatchNorm2d(cout), nn.ReLU())


class Detector(nn.Module):
    """Images ``[N, 3, H, W]`` to dense maps, one of each kind per stride.

    ``scores`` ``[N, 5, h, w]`` (logits), ``boxes`` ``[N, 4, h, w]`` (distances to the left, upper, right and lower side, in
    strides) and ``centerness`` ``[N, 1, h, w]`` (logits).
    """

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.top = _layer(96, width, 1)
        self.side = _layer(64, width, 1)
        self.smooth = _layer(width, width)
        self.towers = nn.ModuleList([_layer(width, width) for _ in STRIDES])
        self.scores = nn.Conv2d(width, CLASSES, 3, 1, 1)
        self.boxes = nn.Conv2d(width, 4, 3, 1, 1)
        self.centerness = nn.Conv2d(width, 1, 3, 1, 1)
        nn.init.constant_(self.scores.bias, -math.log(99.0))  # type: ignore[arg-type]  # few cells hold a digit

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        """See the class."""
        _, at8, at16 = self.backbone(x)
        top = self.top(at16)
        fine = self.smooth(self.side(at8) + F.interpolate(top, scale_factor=2.0, mode="nearest"))
        maps = [tower(features) for tower, features in zip(self.towers, (fine, top), strict=True)]
        return {
            "scores": [self.scores(features) for features in maps],
            "boxes": [F.softplus(self.boxes(features) + 1.0) for features in maps],
            "centerness": [self.centerness(features) for features in maps],
        }


class Segmenter(nn.Module):
    """Images ``[N, 3, H, W]`` to ``{"mask": [N, 6, H, W]}``: logits of the background and the five kinds of digit."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.at16 = _layer(96, width, 1)
        self.at8 = _layer(64, width, 1)
        self.at4 = _layer(32, width, 1)
        self.deep = _layer(width, width)
        self.middle = _layer(width, width)
        self.fine = _layer(width, width)
        self.last = nn.Conv2d(width, 4 * (CLASSES + 1), 3, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See the class."""
        at4, at8, at16 = self.backbone(x)
        deep = self.deep(self.at16(at16))
        middle = self.middle(self.at8(at8) + F.interpolate(deep, scale_factor=2.0, mode="nearest"))
        fine = self.fine(self.at4(at4) + F.interpolate(middle, scale_factor=2.0, mode="nearest"))
        half = F.pixel_shuffle(self.last(fine), 2)
        return {"mask": F.interpolate(half, scale_factor=2.0, mode="bilinear", align_corners=False)}


def detector() -> Detector:
    """The detector; its weights come from the recipe."""
    return Detector()


def segmenter() -> Segmenter:
    """The segmenter; its weights come from the recipe."""
    return Segmenter()


def train_detector(scenes: Any, *, epochs: int, seed: int, advance: Advance) -> Detector:
    """Trains a detector.

    Args:
        scenes: with ``frames`` uint8 ``[N, H, W, 3]``, and per scene ``boxes`` ``[K, 4]`` and ``labels`` ``[K]``.
        epochs: how often each scene is shown.
        seed: of everything random.
        advance: told how many images were seen, and the loss.
    """
    torch.manual_seed(seed)
    net = Detector()
    side = scenes.frames.shape[1]
    targets = [targets_of(boxes, labels, side) for boxes, labels in zip(scenes.boxes, scenes.labels, strict=True)]
    classes = torch.from_numpy(np.stack([c for c, _ in targets]))
    boxes = torch.from_numpy(np.stack([b for _, b in targets]))

    def loss(images: Tensor, rows: Tensor) -> Tensor:
        return detection_loss(net(images), classes[rows], boxes[rows])

    _fit(net, scenes.frames, loss, epochs, 2e-3, seed, advance)
    return net


def train_segmenter(
    scenes: Any, *, epochs: int, seed: int, advance: Advance, start: Backbone | None = None
) -> Segmenter:
    """Trains a segmenter.

    Args:
        scenes: with ``frames`` uint8 ``[N, H, W, 3]`` and ``masks`` uint8 ``[N, H, W]``.
        epochs: how often each scene is shown.
        seed: of everything random.
        advance: told how many images were seen, and the loss.
        start: a trained backbone whose weights it begins with.
    """
    torch.manual_seed(seed)
    net = Segmenter()
    if start is not None:
        net.backbone.load_state_dict(start.state_dict())
    masks = torch.from_numpy(scenes.masks)
    # Nine tenths of the pixels are background: weighed as they come, the digits would wait long for their turn.
    weight = torch.ones(CLASSES + 1)
    weight[0] = 0.3

    def loss(images: Tensor, rows: Tensor) -> Tensor:
        return F.cross_entropy(net(images)["mask"], masks[rows].long(), weight)

    _fit(net, scenes.frames, loss, epochs, 2e-3, seed, advance)
    return net


def cells(side: int) -> tuple[Any, Any]:
    """Of all cells of both maps, those of stride 8 first: centres float64 ``[M, 2]`` (x, y) in pixels, strides ``[M]``."""
    centres, strides = [], []
    for stride in STRIDES:
        steps = (np.arange(side // stride) + 0.5) * stride
        y, x = np.meshgrid(steps, steps, indexing="ij")
        centres.append(np.stack([x.ravel(), y.ravel()], 1))
        strides.append(np.full(x.size, stride, np.float64))
    return np.concatenate(centres), np.concatenate(strides)


def targets_of(boxes: Any, labels: Any, side: int) -> tuple[Any, Any]:
    """What each cell should say of a scene: class int64 ``[M]`` (-1: none), distances float32 ``[M, 4]`` in strides."""
    centres, strides = cells(side)
    classes = np.full(len(centres), -1, np.int64)
    distances = np.ones((len(centres), 4), np.float32)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for k in np.argsort(-areas):  # where two boxes want a cell, the smaller one gets it
        x1, y1, x2, y2 = boxes[k]
        wanted = STRIDES[0] if max(x2 - x1, y2 - y1) < SIDE_BETWEEN else STRIDES[1]
        sides = np.stack([centres[:, 0] - x1, centres[:, 1] - y1, x2 - centres[:, 0], y2 - centres[:, 1]], 1)
        middle = np.array([(x1 + x2) / 2, (y1 + y2) / 2])
        near = (np.abs(centres - middle) <= CENTRE * strides[:, None]).all(1) & (sides > 0).all(1)
        mine = near & (strides == wanted)
        classes[mine] = labels[k]
        distances[mine] = (sides / strides[:, None])[mine]
    return classes, distances


def detection_loss(maps: dict[str, list[Tensor]], classes: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss on the classes, GIoU loss on the boxes, cross-entropy on the centerness; all per cell that holds a digit.

    Args:
        maps: the detector's.
        classes: int64 ``[N, M]``, -1 where there is none.
        wanted: distances float32 ``[N, M, 4]``.
    """
    scores, boxes, centre = (_joined(maps[name]) for name in ("scores", "boxes", "centerness"))
    there = classes >= 0
    count = there.sum().clamp_min(1)
    truth = torch.zeros_like(scores)
    truth[there] = F.one_hot(classes[there], CLASSES).float()
    entropy = F.binary_cross_entropy_with_logits(scores, truth, reduction="none")
    missed = (scores.sigmoid() - truth).abs()
    focal = ((0.25 * truth + 0.75 * (1 - truth)) * missed.square() * entropy).sum() / count
    got, goal = boxes[there], wanted[there]
    low, high = torch.minimum(goal[:, :2], goal[:, 2:]), torch.maximum(goal[:, :2], goal[:, 2:])
    centrality = (low / high.clamp_min(1e-6)).prod(1).sqrt()
    giou = ((1 - _giou(got, goal)) * centrality).sum() / centrality.sum().clamp_min(1e-6)
    central = F.binary_cross_entropy_with_logits(centre[there][:, 0], centrality)
    return focal + giou + central


def _joined(maps: Sequence[Tensor]) -> Tensor:
    """``[N, C, h, w]`` each to ``[N, M, C]``."""
    return torch.cat([one.flatten(2).transpose(1, 2) for one in maps], 1)


def _giou(got: Tensor, goal: Tensor) -> Tensor:
    """Generalised IoU of boxes given by distances from one centre, ``[K, 4]`` each (Rezatofighi et al., CVPR 2019)."""
    inside, outside = torch.minimum(got, goal), torch.maximum(got, goal)

    def area(sides: Tensor) -> Tensor:
        return (sides[:, 0] + sides[:, 2]) * (sides[:, 1] + sides[:, 3])

    union = area(got) + area(goal) - area(inside)
    hull = area(outside).clamp_min(1e-6)
    return area(inside) / union.clamp_min(1e-6) - (hull - union) / hull


def _fit(
    net: nn.Module,
    frames: Any,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    epochs: int,
    rate: float,
    seed: int,
    advance: Advance,
) -> None:
    images = torch.from_numpy(frames)
    generator = torch.Generator().manual_seed(seed)
    steps = math.ceil(len(images) / BATCH) * epochs
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=0.2)
    net.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for rows in (order[start : start + BATCH] for start in range(0, len(order), BATCH)):
            loss = loss_of(images[rows].permute(0, 3, 1, 2).float() / 255, rows)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            advance(len(rows), {"loss": loss.item()})
    net.eval()
