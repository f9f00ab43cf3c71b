"""A recipe's ``[task]`` held against the network that it is about."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from narrowcast.compiler.judges import judge_for
from narrowcast.compiler.nesting import named
from narrowcast.transport.bundle import OutputSpec
from narrowcast.transport.tasks import Task, check_outputs


def output_specs(outputs: Any) -> list[OutputSpec]:
    """A network's outputs for a batch, as a manifest lists them."""
    return [
        OutputSpec(name=name, dtype=str(tensor.cpu().numpy().dtype), shape=list(tensor.shape[1:]))
        for name, tensor in named(outputs).items()
    ]


@torch.no_grad()
def task_of(network: nn.Module, task: Task | None, size: tuple[int, int], where: str) -> Task | None:
    """The task with every output named.

    Args:
        network: on the CPU.
        task: the recipe's.
        size: height and width of its input.
        where: what to call the task in errors.

    Raises:
        ConfigError: the network has no such outputs.
        MissingDependencyError: what measures the task is not installed. It is asked for here, before hours of training.
    """
    if task is not None:
        judge_for(task, size)
    return named_task(network, task, size, where)


@torch.no_grad()
def named_task(network: nn.Module, task: Task | None, size: tuple[int, int], where: str) -> Task | None:
    """:func:`task_of` for those who measure nothing.

    Raises:
        ConfigError: the network has no such outputs.
    """
    if task is None:
        return None
    specs = output_specs(network(torch.zeros(1, 3, *size)))
    return check_outputs(task, {spec.name: spec.shape for spec in specs}, size, where)
