"""What names a state and a network: the keys of runs and caches."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from narrowcast.compiler.cuts.trace import Traced


def digest_of_state(state: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex of named tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.ascontiguousarray(state[name].detach().cpu().numpy())
        digest.update(f"{name} {array.dtype} {list(array.shape)}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def digest_of_network(network: nn.Module, traced: Traced, options: Mapping[str, Any]) -> str:
    """SHA-256 in hex of what a network computes, not of its weights alone: its code may change under the same weights.

    The same in every process.

    Args:
        network: as it was loaded.
        traced: the same network; its modules are those that take part.
        options: what it was made with. They say what of a module nobody can see here.
    """
    tensors = {name: value for name, value in _attributes(traced) if isinstance(value, Tensor)}
    settings = [f"{name} = {value}" for name, value in _attributes(traced) if isinstance(value, str)]
    parts = [
        digest_of_state(network.state_dict()),
        traced.module.code,
        str(network),
        digest_of_state(tensors),
        *sorted(settings),
        json.dumps(msgspec.to_builtins(options), sort_keys=True),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _attributes(traced: Traced) -> Iterator[tuple[str, Tensor | str]]:
    """What the traced modules hold beside their state, by path: tensors, buffers that no state has, and settings as text.

    ``nhead`` and ``norm_first`` of torch's own layers are neither in their state nor in their text.
    """
    for path, module in traced.module.named_modules():
        if isinstance(
            module, torch.fx.GraphModule
        ):  # its settings are its code; beside them torch.fx keeps its own affairs
            held = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
        else:
            held = {name: value for name, value in vars(module).items() if not name.startswith("_")}
        for name, value in {**held, **dict(module.named_buffers(recurse=False))}.items():
            if name == "training":  # networks are loaded in evaluation mode
                continue
            if isinstance(value, Tensor):
                if value.layout is torch.strided:
                    yield f"{path}.{name}", value.float() if value.dtype is torch.bfloat16 else value
            elif (text := _as_text(value)) is not None:
                yield f"{path}.{name}", text


def _as_text(value: Any) -> str | None:
    """A plain setting as text that is the same in every process; None for other objects."""
    if value is None or isinstance(value, bool | int | float | complex | str | torch.dtype):
        return repr(value)
    if isinstance(value, tuple | list):
        parts = [_as_text(entry) for entry in value]
        return None if None in parts else f"({', '.join(map(str, parts))})"
    if inspect.isroutine(value):  # an activation, say
        return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', None)}"
    return None
