"""How far a network's outputs are from the teacher's, by what they mean: the last term of every distillation.

No labels: what the teacher says is the target, and how sure it is says where a difference matters. A detector's maps are
nearly all background; their plain squared error would be spent on cells that no box comes from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from narrowcast.compiler.bottlenecks.exact import in_fp32
from narrowcast.compiler.nesting import flat, named
from narrowcast.transport.tasks import DetectTask, SegmentTask, Task


@in_fp32
def output_errors(got: Any, wanted: Any, task: Task | None) -> Tensor:
    """Per image, float32 ``[N]``.

    ==============  ==================================================================================================
    task            error
    ==============  ==================================================================================================
    detection       see :func:`detection_errors`
    segmentation    see :func:`segmentation_errors`
    other           Kullback-Leibler divergence for class scores ``[N, K]``, relative squared error for other float tensors
    ==============  ==================================================================================================
    """
    if isinstance(task, DetectTask):
        return detection_errors(named(got), named(wanted), task)
    if isinstance(task, SegmentTask):
        assert task.output is not None
        return segmentation_errors(named(got)[task.output], named(wanted)[task.output])
    errors = []
    for one, other in zip(flat(got), flat(wanted), strict=True):
        if not other.is_floating_point():
            continue
        if other.ndim == 2 and other.shape[1] > 1:
            divergence = F.kl_div(F.log_softmax(one, 1), F.log_softmax(other, 1), reduction="none", log_target=True)
            errors.append(divergence.sum(1))
        else:
            errors.append(relative_errors(one, other))
    return torch.stack(errors).sum(0)


@in_fp32
def relative_errors(got: Tensor, wanted: Tensor) -> Tensor:
    """Squared error per image, as a part of the wanted tensor's variance over the batch."""
    return (got - wanted).square().flatten(1).mean(1) / wanted.var().clamp_min(1e-12)


def segmentation_errors(got: Tensor, wanted: Tensor) -> Tensor:
    """The divergence of the classes' distributions, ``[N, K, h, w]`` logits, per image ``[N]``.

    Pixels are weighed so that every class of the teacher's map has the same part in it, as it has in a mean IoU.
    """
    divergence = F.kl_div(F.log_softmax(got, 1), F.log_softmax(wanted, 1), reduction="none", log_target=True).sum(1)
    top = wanted.argmax(1)
    counts = torch.bincount(top.flatten(), minlength=wanted.shape[1]).to(divergence.dtype)
    weights = counts.sum() / (counts * (counts > 0).sum()).clamp_min(1)  # one on average
    return (divergence * weights[top]).flatten(1).mean(1)


def detection_errors(got: dict[str, Tensor], wanted: dict[str, Tensor], task: DetectTask) -> Tensor:
    """Of a detector's maps, per image ``[N]``: classes, boxes and centerness, per box that the teacher sees.

    Classes count everywhere. Distances (their sum, as a part of the box's) and centerness count where the teacher sees
    something, as much as it is sure of it.
    """
    total, mass = torch.zeros(()), torch.zeros(())
    for k in range(len(task.strides)):
        name = task.names("scores")[k]
        truth, log = _parts(wanted[name], task), _divergence(got[name], wanted[name], task)
        sure = truth.amax(1)
        error = log.sum(1)
        boxes = task.names("boxes")[k]
        apart = (got[boxes] - wanted[boxes]).abs().sum(1) / wanted[boxes].sum(1).clamp_min(1e-3)
        error = error + sure * apart
        if task.names("centerness"):
            centre = task.names("centerness")[k]
            error = error + sure * _divergence(got[centre], wanted[centre], task)[:, 0]
        total = total + error.flatten(1).sum(1)
        mass = mass + sure.sum()
    return total * len(total) / mass.clamp_min(1.0)


def _parts(values: Tensor, task: DetectTask) -> Tensor:
    return values.sigmoid() if task.activation == "sigmoid" else values.clamp(0, 1)


def _divergence(got: Tensor, wanted: Tensor, task: DetectTask) -> Tensor:
    """Kullback-Leibler divergence of yes-or-no distributions, element by element."""
    target = _parts(wanted, task)
    if task.activation == "sigmoid":
        cross = F.binary_cross_entropy_with_logits(got, target, reduction="none")
        return cross - F.binary_cross_entropy_with_logits(wanted, target, reduction="none")
    limited = got.clamp(1e-6, 1 - 1e-6)
    certain = target.clamp(1e-6, 1 - 1e-6)
    cross = F.binary_cross_entropy(limited, target, reduction="none")
    return cross - F.binary_cross_entropy(certain, target, reduction="none")
