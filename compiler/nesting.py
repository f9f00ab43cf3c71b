"""A network's outputs, however nested, as a flat list of tensors with names."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from narrowcast.compiler.errors import TeacherError


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


def named(outputs: Any) -> dict[str, Tensor]:
    """The tensors by name."""
    return dict(zip(output_names(outputs), flat(outputs), strict=True))


def _step(key: Any) -> str:
    value = getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))
    return "".join(c if c.isalnum() else "_" for c in str(value))
