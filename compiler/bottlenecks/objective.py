"""What the residual bottleneck is trained to do: give the teacher's features and answers back, with few bits.

Nothing here needs labels: the teacher's own features at the cut, further on, and its outputs are the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from narrowcast.compiler.bottlenecks.base import Batch, Loss, Problem
from narrowcast.compiler.bottlenecks.exact import in_fp32
from narrowcast.compiler.cuts import find_cuts
from narrowcast.compiler.cuts.split import suffix

# The first stage has only one of the distortion's three terms, so bits weigh less in it.
FIRST_STAGE_RATE = 0.1


class Coded(NamedTuple):
    """A batch that went through encoder, quantizer and decoder.

    Attributes:
        features: restored, ``[N, *cut.shape]``.
        bits: estimated, per image, ``[N]``.
        level: int64 ``[N]``.
    """

    features: Tensor
    bits: Tensor
    level: Tensor


class Objective:
    """Distortion plus weighted bits, at levels drawn at random.

    Args:
        code: puts a batch through the bottleneck.
        problem: what the bottleneck is for.
        weights: what a bit per input pixel weighs, per level.
    """

    def __init__(self, code: Callable[[Batch], Coded], problem: Problem, weights: Sequence[float]) -> None:
        self._code = code
        self._pixels = problem.contract.size[0] * problem.contract.size[1]
        self._weights = torch.tensor(weights, device=problem.device)
        self._deep = suffix(problem.traced, problem.cut.node, _deep_taps(problem)).to(problem.device)

    def match_features(self, batch: Batch) -> Loss:
        """The features at the cut alone: cheap, since the tail does not run."""
        coded = self._code(batch)
        error = _relative_errors(coded.features, batch.features)
        return self._loss(coded, {"features": error}, FIRST_STAGE_RATE)

    def match_outputs(self, batch: Batch) -> Loss:
        """The features at the cut and behind it, and the outputs."""
        coded = self._code(batch)
        with torch.no_grad():
            wanted_deep, wanted = self._deep(batch.features)
        deep, outputs = self._deep(coded.features)
        behind = torch.zeros_like(coded.bits)
        for one, other in zip(deep, wanted_deep, strict=True):
            behind = behind + _relative_errors(one, other) / len(deep)
        error = _relative_errors(coded.features, batch.features)
        return self._loss(coded, {"features": error, "deep": behind, "outputs": _output_errors(outputs, wanted)}, 1.0)

    def _loss(self, coded: Coded, errors: dict[str, Tensor], rate: float) -> Loss:
        weight = self._weights[coded.level]
        cost = torch.stack(list(errors.values())).sum(0) + rate * weight * coded.bits / self._pixels
        # Without this the levels with few bytes, whose loss is mostly rate, would drown the others.
        importance = weight.rsqrt() * self._weights.sqrt().mean()
        figures = {name: error.mean().item() for name, error in errors.items()}
        return Loss((importance * cost).mean(), {"bytes": coded.bits.mean().item() / 8, **figures})


@in_fp32
def _relative_errors(got: Tensor, wanted: Tensor) -> Tensor:
    """Squared error per image, as a part of the wanted tensor's variance over the batch."""
    return (got - wanted).square().flatten(1).mean(1) / wanted.var().clamp_min(1e-12)


@in_fp32
def _output_errors(got: Any, wanted: Any) -> Tensor:
    """Per image: Kullback-Leibler divergence for class scores ``[N, K]``, relative squared error for other float tensors."""
    errors = []
    for one, other in zip(pytree.tree_leaves(got), pytree.tree_leaves(wanted), strict=True):
        if not isinstance(other, Tensor) or not other.is_floating_point():
            continue
        if other.ndim == 2 and other.shape[1] > 1:
            divergence = F.kl_div(F.log_softmax(one, 1), F.log_softmax(other, 1), reduction="none", log_target=True)
            errors.append(divergence.sum(1))
        else:
            errors.append(_relative_errors(one, other))
    return torch.stack(errors).sum(0)


def _deep_taps(problem: Problem, count: int = 3) -> list[Any]:
    """Up to ``count`` later cuts, evenly spread over the work behind the cut."""
    later = [cut for cut in find_cuts(problem.traced) if cut.is_module and cut.macs_before > problem.cut.macs_before]
    if not later:
        return []
    first, last = problem.cut.macs_before, later[-1].macs_before
    wanted = [first + (last - first) * (k + 1) / (count + 1) for k in range(count)]
    chosen = {min(later, key=lambda cut: abs(cut.macs_before - macs)).node: None for macs in wanted}
    order = list(problem.traced.module.graph.nodes)
    return sorted(chosen, key=order.index)
