"""Tuning what runs on the server: decoder and the layers behind the cut, while encoder and tables stay as they are.

What boards and servers share about a model (its codec fingerprint) depends on the encoder, the quantizer and the tables
alone. A stage of this kind changes none of them: a fleet goes on sending the same packets to a better tail.

The teacher's answers are what it learns; where there are labels, these as well, mixed as BottleFit does (Matsubara et al.,
WoWMoM 2022: half and half at a temperature of 1).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from narrowcast.compiler.bottlenecks.base import Batch, Bottleneck, Group, Loss, Optimizer, Problem, Stage
from narrowcast.compiler.bottlenecks.exact import in_fp32, without_autocast
from narrowcast.compiler.bottlenecks.outputs import output_errors
from narrowcast.compiler.errors import DataError
from narrowcast.transport.tasks import DetectTask, SegmentTask, Task

LabelWeight = Annotated[float, msgspec.Meta(ge=0, le=1)]


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


class Answers(NamedTuple):
    """What a tail is tuned to answer.

    Attributes:
        temperature: see :func:`distillation`.
        label_weight: part of the loss, 0 to 1, that is cross-entropy with the batch's labels.
    """

    temperature: float = 1.0
    label_weight: float = 0.0

    def loss(self, got: Any, wanted: Any, labels: Tensor | None, task: Task | None = None) -> Loss:
        """How far outputs are from the teacher's, and from the labels int64 ``[N]``.

        Raises:
            DataError: the labels weigh something, and there are none, or the network gives no class scores.
        """
        error = distillation(got, wanted, self.temperature, task)
        if not self.label_weight:
            return Loss(error, {"outputs": error.item()})
        wrong = F.cross_entropy(class_scores(got).float(), labelled(labels))
        total = self.label_weight * wrong + (1 - self.label_weight) * error
        return Loss(total, {"outputs": error.item(), "labels": wrong.item()})


def tuning_stage(
    bottleneck: Bottleneck,
    problem: Problem,
    decoder: Sequence[nn.Module],
    answers: Answers,
    optimizer: Optimizer,
    *,
    share: float,
    speed: float = 1.0,
    name: str = "tail",
) -> Stage:
    """A stage that trains ``decoder``, and the tail where the bottleneck has one of its own.

    Args:
        bottleneck: encodes and decodes as it will when it is deployed; its encoder gets no gradient.
        problem: whose teacher is imitated.
        decoder: the bottleneck's modules that run on the server.
        answers: what it learns.
        optimizer: the stage's.
        share: of the recipe's images.
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
        return answers.loss(answer(bottleneck.decode(symbols, level)), wanted, batch.labels, problem.task)

    parameters = [p for module in trained for p in module.parameters() if p.requires_grad]
    return Stage(name, share, [Group(parameters, speed)], imitate, optimizer, server_only=True)


def class_scores(outputs: Any) -> Tensor:
    """The only output of a network that is ``[N, K]`` with several classes.

    Raises:
        DataError: there is none, or there are several.
    """
    found = [
        leaf
        for leaf in pytree.tree_leaves(outputs)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim == 2 and leaf.shape[1] > 1
    ]
    if len(found) != 1:
        raise DataError(f"label_weight wants a network with one vector of class scores; this one has {len(found)}")
    return found[0]


def labelled(labels: Tensor | None) -> Tensor:
    """The labels.

    Raises:
        DataError: there are none.
    """
    if labels is None:
        raise DataError(
            "label_weight wants labels, and these images have none: class folders, or a labels.csv beside them"
        )
    return labels


@in_fp32
def distillation(got: Any, wanted: Any, temperature: float, task: Task | None = None) -> Tensor:
    """How far a network's outputs are from the teacher's, the mean over the batch; a scalar.

    Class scores ``[N, K]``: the Kullback-Leibler divergence of their softened distributions times the temperature's square
    (Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015). Other float tensors: squared error as a
    part of their variance over the batch. The maps of a detector or segmenter: see
    :func:`~narrowcast.compiler.bottlenecks.outputs.output_errors`.
    """
    if isinstance(task, DetectTask | SegmentTask):
        return output_errors(got, wanted, task).mean()
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
