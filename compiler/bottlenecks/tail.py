"""Tuning what runs on the server: decoder and the layers behind the cut, while encoder and tables stay as they are.

What boards and servers share about a model (its codec fingerprint) depends on the encoder, the quantizer and the tables
alone. A stage of this kind changes none of them: a fleet goes on sending the same packets to a better tail.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from narrowcast.compiler.bottlenecks.base import Batch, Bottleneck, Group, Loss, Optimizer, Problem, Stage
from narrowcast.compiler.bottlenecks.exact import in_fp32, without_autocast


class TunedTail(nn.Module):
    """A copy of the teacher's layers behind the cut, to be trained; the teacher itself stays as it is.

    Its normalisation layers keep the teacher's statistics, and dropout stays off, whatever mode the modules around it are
    in: batches here are small, and graphs that torch.export made cannot change their mode at all.
    """

    def __init__(self, after: fx.GraphModule) -> None:
        super().__init__()
        self.layers: fx.GraphModule = copy.deepcopy(after)
        for parameter in self.layers.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        self.train(False)

    def train(self, mode: bool = True) -> TunedTail:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, features: Tensor) -> Any:
        """Features ``[N, *cut.shape]`` to the network's outputs."""
        return self.layers(features)


def tuning_stage(
    bottleneck: Bottleneck,
    problem: Problem,
    decoder: Sequence[nn.Module],
    *,
    share: float,
    temperature: float,
    optimizer: Optimizer,
    speed: float = 1.0,
    name: str = "tail",
) -> Stage:
    """A stage that trains ``decoder``, and the tail where the bottleneck has one of its own, by distillation.

    Args:
        bottleneck: encodes and decodes as it will when it is deployed; its encoder gets no gradient.
        problem: whose teacher is imitated.
        decoder: the bottleneck's modules that run on the server.
        share: of the recipe's images.
        temperature: see :func:`distillation`.
        optimizer: the stage's.
        speed: of all it trains (see :class:`Group`).
        name: the stage's.
    """
    tail = bottleneck.tuned_tail()
    answer: nn.Module = problem.after if tail is None else tail
    trained = [*decoder] if tail is None else [*decoder, tail]

    def imitate(batch: Batch) -> Loss:
        bottleneck.eval()  # the statistics of the encoder's normalisation decide its symbols
        for module in decoder:
            module.train()
        level = batch.levels(bottleneck.levels)
        with torch.no_grad():
            with without_autocast(level.device):  # the symbols that a board will send, not those of another precision
                symbols = bottleneck.encode(problem.normalize(batch.images), level)
            wanted = problem.after(batch.features)
        error = distillation(answer(bottleneck.decode(symbols, level)), wanted, temperature)
        return Loss(error, {"outputs": error.item()})

    parameters = [p for module in trained for p in module.parameters() if p.requires_grad]
    return Stage(name, share, [Group(parameters, speed)], imitate, optimizer)


@in_fp32
def distillation(got: Any, wanted: Any, temperature: float) -> Tensor:
    """How far a network's outputs are from the teacher's, the mean over the batch; a scalar.

    Class scores ``[N, K]``: the Kullback-Leibler divergence of their softened distributions times the temperature's square
    (Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015). Other float tensors: squared error as a
    part of their variance over the batch.
    """
    errors = []
    for one, other in zip(pytree.tree_leaves(got), pytree.tree_leaves(wanted), strict=True):
        if not isinstance(other, Tensor) or not other.is_floating_point():
            continue
        if other.ndim == 2 and other.shape[1] > 1:
            soft, target = F.log_softmax(one / temperature, 1), F.log_softmax(other / temperature, 1)
            errors.append(temperature**2 * F.kl_div(soft, target, reduction="batchmean", log_target=True))
        else:
            errors.append((one - other).square().mean() / other.var().clamp_min(1e-12))
    return torch.stack(errors).sum()
