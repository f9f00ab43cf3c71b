"""The three networks of a bundle, as torch modules: head, tail and the uncut whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from narrowcast.compiler.bottlenecks import Bottleneck
from narrowcast.compiler.errors import TeacherError
from narrowcast.compiler.normalize import Normalize


class Head(nn.Module):
    """uint8 ``[N, H, W, 3]`` (and, with several levels, ``level`` int64 ``[N]``) to symbols uint8 ``[N, C, h, w]``."""

    def __init__(self, normalize: Normalize, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.normalize = normalize
        self.bottleneck = bottleneck

    def forward(self, image: Tensor, level: Tensor | None = None) -> Tensor:
        """See the class."""
        if level is None:
            level = torch.zeros(image.shape[0], dtype=torch.int64, device=image.device)
        return self.bottleneck.encode(self.normalize(image), level).to(torch.uint8)


class Tail(nn.Module):
    """Symbols uint8 ``[N, C, h, w]`` and ``level`` int64 ``[N]`` to the task's outputs, a flat tuple."""

    def __init__(self, bottleneck: Bottleneck, after: nn.Module) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        self.after = after

    def forward(self, symbols: Tensor, level: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return flat(self.after(self.bottleneck.decode(symbols.float(), level)))


class Whole(nn.Module):
    """The teacher behind the input contract: uint8 ``[N, H, W, 3]`` to the task's outputs, a flat tuple."""

    def __init__(self, normalize: Normalize, teacher: nn.Module) -> None:
        super().__init__()
        self.normalize = normalize
        self.teacher = teacher

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        return flat(self.teacher(self.normalize(image)))


def flat(outputs: Any) -> tuple[Tensor, ...]:
    """The tensors in a network's (nested) outputs, in order."""
    return tuple(leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor))


def output_names(outputs: Any) -> list[str]:
    """Names for the tensors of :func:`flat`: their path, ``boxes``, ``features_0``; ``output`` where there is but one.

    Raises:
        TeacherError: there is no tensor.
    """
    leaves, _ = pytree.tree_flatten_with_path(outputs)
    names = ["_".join(_step(key) for key in path) for path, leaf in leaves if isinstance(leaf, Tensor)]
    if not names:
        raise TeacherError("the network has no tensor among its outputs")
    return [name if name and not name.isdigit() else f"output{'_' * bool(name)}{name}" for name in names]


def _step(key: Any) -> str:
    value = getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))
    return "".join(c if c.isalnum() else "_" for c in str(value))
