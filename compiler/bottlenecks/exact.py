"""What stays in fp32 when a run trains in mixed precision: rates, gains, rounding, and sums of losses.

bfloat16 has 8 significant bits. That serves convolutions; a probability, a difference of large numbers or a sum over a
million cells needs more. Under ``torch.autocast`` operations of the first kind give bfloat16 by themselves, and operations
between the two kinds give fp32; what is in this file is for the places where that does not suffice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

P = ParamSpec("P")
R = TypeVar("R")


def without_autocast(device: torch.device) -> torch.autocast:
    """A context in which operations on ``device`` keep the dtypes that they are given."""
    return torch.autocast(device.type, enabled=False)


def in_fp32(function: Callable[P, R]) -> Callable[P, R]:
    """The function with every floating-point tensor among its arguments taken as float32 at least, and autocast off.

    Tensors may lie in lists, tuples and dictionaries; modules (``self`` of a method) are left as they are. Without mixed
    precision nothing changes.
    """

    @wraps(function)
    def exactly(*args: P.args, **kwargs: P.kwargs) -> R:
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not given:
            return function(*args, **kwargs)
        cast_args, cast_kwargs = pytree.tree_map(_widened, (args, kwargs))
        with without_autocast(given[0].device):
            return function(*cast_args, **cast_kwargs)

    return exactly


def _widened(value: Any) -> Any:
    is_narrow = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_narrow else value
