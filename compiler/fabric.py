"""Where a run trains and how exactly: device and precision, through Lightning Fabric.

Weights, gradients and optimizer states are float32 in every precision. ``bf16`` lets torch.autocast run convolutions and
matrix products in bfloat16; what does not bear that says so (``bottlenecks/exact.py``).
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment

from narrowcast.compiler.errors import CompilerError, first_line

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces itself on stderr at INFO
Computed = Literal["fp32", "bf16"]
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")


def resolve_device(name: str) -> torch.device:
    """The device that a recipe names; ``auto`` is a GPU where there is one.

    Raises:
        CompilerError: torch cannot use it here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CompilerError(f"[train] device {name!r} cannot be used: {first_line(error)}") from error
    return device


def resolve_precision(name: Literal["auto", "fp32", "bf16"], device: torch.device) -> Computed:
    """What a recipe's precision comes to on a device: ``auto`` is bf16 on GPUs that have it, fp32 elsewhere."""
    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" and has_bf16(device) else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; without, torch computes it by way of fp32, which is slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return True  # no way to ask
    ask: Any = getattr(torch.cpu, "get_capabilities", None)  # torch 2.11
    return ask is None or any(bool(ask().get(name)) for name in BF16_INSTRUCTIONS)


def fabric_precision(precision: Computed) -> Literal["bf16-mixed", "32-true"]:
    """What Fabric calls it."""
    return "bf16-mixed" if precision == "bf16" else "32-true"


def open_fabric(device: torch.device, precision: Computed) -> Fabric:
    """Fabric for one process that computes on ``device``."""
    fabric = Fabric(
        accelerator=device.type,
        devices=1 if device.index is None or device.type == "cpu" else [device.index],
        precision=fabric_precision(precision),
        plugins=[LightningEnvironment()],  # a scheduler's variables around us are not meant for us
    )
    fabric.launch()
    return fabric
