"""Where in an image the features matter: cells that carry the teacher's answer are worth more bytes than the rest.

FrankenSplit (Furutanpey et al., IEEE TMC 2024) weighs the squared error of a cell by ``(1 + map) / 2`` with a class
activation map of the teacher. The map here is the teacher's own gradient at the cut times its features, summed over
channels cell by cell (Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations", arXiv 2011.08891): to
first order, by how much the answer changes when the cell is lost. Either direction counts, so it is the absolute value; the
largest cell of each image is 1.

Computed batch by batch: one backward pass through the teacher's layers behind the cut, and none through its weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from narrowcast.compiler.layout import Layout


def answer_strength(outputs: Any) -> Tensor:
    """What the gradient is taken of, a scalar: each image's highest of class scores ``[N, K]``, else half of all squares."""
    strength: Tensor = torch.zeros(())
    for output in pytree.tree_leaves(outputs):
        if not isinstance(output, Tensor) or not output.is_floating_point():
            continue
        scores = output.ndim == 2 and output.shape[1] > 1
        strength = strength + (output.amax(1).sum() if scores else output.square().sum() / 2)
    return strength


def saliency_weights(features: Tensor, outputs: Any, layout: Layout) -> Tensor:
    """Weights from 0.5 to 1 of a squared error at the cut, ``[N, 1, H, W]`` on the layout's map; no gradient.

    Args:
        features: the teacher's at the cut, ``[N, *layout.shape]``, requiring a gradient.
        outputs: what the teacher's layers behind the cut make of them.
        layout: of the features.
    """
    (gradient,) = torch.autograd.grad(answer_strength(outputs), features)
    strength = layout.to_map((gradient.float() * features.float()).detach()).sum(1, keepdim=True).abs()
    largest = strength.amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(strength.dtype).tiny)
    return (1 + strength / largest) / 2
