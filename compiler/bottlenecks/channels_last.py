"""In which order images and features lie in memory while training runs a network's layers.

On a CPU, oneDNN's convolutions are quicker pixel by pixel (channels last) than channel by channel: MobileNetV2's answers
took 41 % less, and a training step of its layers behind ``features.10``, forward and backward, 31 %.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

# The backward pass of a 1x1 convolution of a larger stride from fewer such channels writes past its buffer (torch 2.13).
FEWEST_CHANNELS = 8
MAP_DIMENSIONS = 4
# Operations that ask how a tensor lies in memory: they fail on another order, or give other values.
LOOKS_AT_MEMORY = ("view", "as_strided")


def runs_channels_last(layers: fx.GraphModule, device: torch.device) -> bool:
    """Whether ``layers`` may be given images or features pixel by pixel on ``device``: never where one could trip over it.

    Only convolutions that are modules can be looked at; with others, as in graphs of torch.export, the answer is no. So it
    is with a ``view`` that could not become a ``reshape`` (:func:`narrowcast.compiler.cuts.split.suffix`).
    """
    if device.type != "cpu" or any(map(_may_trip, layers.graph.nodes)):
        return False
    convolutions = [module for module in layers.modules() if isinstance(module, nn.Conv2d)]
    return bool(convolutions) and all(map(_is_safe, convolutions))


def _may_trip(node: fx.Node) -> bool:
    if node.op == "call_function" and "conv" in str(node.target):
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and name.startswith(LOOKS_AT_MEMORY)


def _is_safe(convolution: nn.Conv2d) -> bool:
    strided = max(convolution.stride) > 1 and max(convolution.kernel_size) == 1
    return not strided or convolution.in_channels // convolution.groups >= FEWEST_CHANNELS


def pixel_by_pixel(features: Tensor) -> Tensor:
    """Maps ``[N, C, H, W]`` with their channels last in memory; other features (tokens) as they are."""
    return features.contiguous(memory_format=torch.channels_last) if features.ndim == MAP_DIMENSIONS else features
