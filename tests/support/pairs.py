"""What two processes compute together in a test of ``compiler/sharing.py``."""

from __future__ import annotations

import torch
from torch import nn

from narrowcast.compiler.sharing import add_up, agree


def problem() -> tuple[nn.Linear, nn.Parameter, torch.Tensor]:
    """A layer, a parameter that nothing depends on, and five inputs."""
    torch.manual_seed(0)
    return nn.Linear(3, 2), nn.Parameter(torch.ones(2)), torch.randn(5, 3)


def gradients(fabric) -> dict:
    """Of the mean of squares over five inputs, of which one process has two and the other three."""
    layer, idle, inputs = problem()
    with torch.no_grad():
        layer.weight += fabric.global_rank  # what process 0 has is what counts
    agree(fabric, layer)
    mine = inputs[fabric.global_rank * 5 // 2 : (fabric.global_rank + 1) * 5 // 2]
    loss = layer(mine).square().sum(1).mean() * len(mine) / 5
    fabric.backward(loss)
    figures = add_up(fabric, [layer.weight, idle, layer.bias], {"loss": loss.item(), "images": float(len(mine))})
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    torch.distributed.destroy_process_group()  # left to the process's end, its threads may abort it
    # As lists: a tensor that is sent lies in memory that goes with the process.
    return {"weight": layer.weight.grad.tolist(), "bias": layer.bias.grad.tolist(), "idle": idle.grad, **figures}
