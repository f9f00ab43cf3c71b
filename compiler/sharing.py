"""What processes that train together agree on: the state they start a stage from, and each step's gradients.

Gradients are added up by hand, in one message a step, and not by DistributedDataParallel: a stage's loss is any function of
a batch, not one module's ``forward``, and may leave out parameters from step to step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn


@torch.no_grad()
def agree(fabric: Fabric, module: nn.Module) -> None:
    """Gives every process the parameters and buffers of process 0."""
    take_first(fabric, list(module.state_dict(keep_vars=True).values()))


@torch.no_grad()
def take_first(fabric: Fabric, values: Sequence[Tensor]) -> None:
    """Gives every process these tensors as process 0 has them."""
    if fabric.world_size == 1:
        return
    for value in values:
        whole = value.contiguous()
        torch.distributed.broadcast(whole, 0)
        if whole is not value:
            value.copy_(whole)


@torch.no_grad()
def add_up(fabric: Fabric, parameters: Sequence[nn.Parameter], figures: dict[str, float]) -> dict[str, float]:
    """Adds gradients (in place) and figures up over all processes; returns the figures' sums.

    A parameter that has a gradient nowhere keeps none: its optimizer leaves it alone, momentum and decay included.

    Args:
        fabric: knows the processes.
        parameters: in the same order everywhere.
        figures: with the same names everywhere.
    """
    if fabric.world_size == 1:
        return figures
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    has = torch.tensor([float(p.grad is not None) for p in parameters])
    told = torch.tensor(list(figures.values()))
    parts = [*gradients, has.to(fabric.device), told.to(fabric.device)]
    flat = torch.cat([part.flatten().float() for part in parts])
    total = fabric.all_reduce(flat, reduce_op="sum")
    assert isinstance(total, Tensor)
    *summed, has, told = torch.split(total, [part.numel() for part in parts])
    for parameter, gradient, count in zip(parameters, summed, has.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if count else None
    return dict(zip(figures, told.tolist(), strict=True))
