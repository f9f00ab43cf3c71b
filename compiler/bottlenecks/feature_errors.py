"""The first stage of BottleFit and Entropic Student: give back the features at the cut and those of every stage behind it.

"Generalized head network distillation": Matsubara and Levorato, "Neural compression and filtering for edge-assisted
real-time object detection in challenged networks" (ICPR 2020), taken over by both papers.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from narrowcast.compiler.bottlenecks.base import Batch, Problem
from narrowcast.compiler.bottlenecks.exact import in_fp32
from narrowcast.compiler.cuts import find_cuts
from narrowcast.compiler.cuts.split import suffix
from narrowcast.compiler.layout import layout_of

BLOCK_DEPTH = 1  # ``layers.3``, ``features.5``


class FeatureErrors:
    """Squared errors at the cut and at the end of each stage behind it, summed over cells, channels and images.

    The teacher's layers between them are frozen: gradients pass through, none of them changes.
    """

    def __init__(self, problem: Problem) -> None:
        ends = stage_ends(problem)
        self.names = [problem.cut.name, *(name for name, _ in ends)]
        nodes = [node for _, node in ends]
        self._behind = suffix(problem.traced, problem.cut.node, nodes).to(problem.device)

    def __call__(self, restored: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The sum over all places, a scalar, and the error at each as a part of its features' variance.

        Args:
            restored: features at the cut, ``[N, *cut.shape]``.
            batch: holds the teacher's.
        """
        with torch.no_grad():
            wanted = [batch.features, *self._behind(batch.features)[0]]
        got = [restored, *self._behind(restored)[0]]
        errors, parts = zip(*(_squared_error(one, other) for one, other in zip(got, wanted, strict=True)), strict=True)
        return torch.stack(errors).sum(), dict(zip(self.names, (part.item() for part in parts), strict=True))


@in_fp32
def _squared_error(got: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Summed over everything, and as a part of the wanted tensor's variance."""
    error = (got - wanted).square().sum()
    return error, error.detach() / (wanted.var() * wanted.numel()).clamp_min(1e-12)


def stage_ends(problem: Problem) -> list[tuple[str, fx.Node]]:
    """Where the stages behind the cut end: the last cut of each size of grid, as (name, node), in order of execution.

    For a ResNet that is cut after ``layer2`` these are ``layer3`` and ``layer4``, as in the papers. Cuts inside a block
    (named deeper than ``stage.block`` and than the cut itself) end no stage, nor do pooled vectors.
    """
    found = find_cuts(problem.traced)
    order = [cut.node for cut in found]
    deepest = max(BLOCK_DEPTH, problem.cut.name.count("."))
    ends: dict[tuple[int, int], tuple[str, fx.Node]] = {}
    for cut in found[order.index(problem.cut.node) + 1 :]:
        if not cut.is_module or cut.name.count(".") > deepest or not 1 < len(cut.shape) <= 3:
            continue
        grid = layout_of(cut.shape, problem.contract.size).map_shape[1:]
        if grid != (1, 1):
            ends.pop(grid, None)  # so that the order stays that of the last cuts
            ends[grid] = cut.name, cut.node
    return list(ends.values())
