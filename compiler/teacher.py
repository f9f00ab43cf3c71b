"""The teacher: the user's trained network, loaded and never modified.

A ``MODEL`` is one of

=============================  ==============================================================
``timm:NAME``                  a timm architecture
``torchvision:NAME``           a torchvision architecture
``package.module:function``    a function that returns the network, from an importable module
``file.py:function``           the same, from a file
``FILE.pt2``                   a program saved by torch.export
=============================  ==============================================================

Python files, modules and ``.pt2`` programs are code that runs with your rights: use them only where you trust their origin.
Weights are read without running code (safetensors, or ``torch.load`` restricted to tensors).
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from narrowcast.compiler.errors import TeacherError, WeightsError, first_line
from narrowcast.transport.errors import MissingDependencyError
from narrowcast.transport.structs import nearest


def load_teacher(
    model: str,
    *,
    weights: str | None = None,
    options: dict[str, Any] | None = None,
    folder: Path | None = None,
    part: str | None = None,
) -> nn.Module:
    """The network named by ``model``, in eval mode, its parameters frozen.

    Args:
        model: see the module's documentation.
        weights: a ``.safetensors``, ``.pt`` or ``.pth`` file with the network's state.
        options: keyword arguments for the function that builds the network (``num_classes`` and the like).
        folder: what relative file names are relative to; the working folder where it is None.
        part: the module of it that is wanted, by its path (``backbone``); weights are the whole network's.

    Raises:
        TeacherError: no such model, or building it failed.
        WeightsError: the weights do not fit it.
        MissingDependencyError: timm or torchvision is not installed.
    """
    folder = folder or Path.cwd()
    network = _build(model, options or {}, folder)
    if not isinstance(network, nn.Module):
        raise TeacherError(f"{model} gives a {type(network).__name__}, not a torch.nn.Module")
    if weights is not None:
        _load_weights(network, folder / weights, model)
    if not model.endswith(".pt2"):  # an exported program has its mode built in
        network.eval()
    _must_be_in_eval_mode(network, model)
    network.requires_grad_(False)
    return network if part is None else _part(network, part, model)


def _part(network: nn.Module, part: str, model: str) -> nn.Module:
    modules = dict(network.named_modules())
    if part not in modules or not part:
        known = [name for name in modules if name and (name.count(".") == part.count(".") or "." not in name)]
        raise TeacherError(f"{model} has no part {part!r}{nearest(part, known)}")
    found: nn.Module = modules[part]
    return found


def _build(model: str, options: dict[str, Any], folder: Path) -> Any:
    if model.endswith(".pt2"):
        return _load_program(folder / model, options)
    origin, colon, name = model.rpartition(":")
    if not colon or not origin or not name:
        raise TeacherError(
            f"{model!r} names no model; use timm:NAME, torchvision:NAME, package.module:function, "
            "file.py:function or FILE.pt2"
        )
    if origin == "timm":
        return _from_zoo("timm", "create_model", name, {"pretrained": False, **options})
    if origin == "torchvision":
        return _from_zoo("torchvision.models", "get_model", name, {"weights": None, **options})
    module = _load_file(folder / origin) if origin.endswith(".py") else _import(origin, model)
    function = getattr(module, name, None)
    if not callable(function):
        raise TeacherError(f"{origin} has no function {name!r}")
    try:
        return function(**options)
    except Exception as error:
        raise TeacherError(f"{model} failed: {type(error).__name__}: {error}") from error


def _from_zoo(package: str, function: str, name: str, options: dict[str, Any]) -> Any:
    zoo = package.partition(".")[0]
    try:
        module = importlib.import_module(package)
    except Exception as error:  # a torchvision that does not fit its torch raises RuntimeError
        hint = f"pip install {zoo}, in a version that fits this torch ({torch.__version__})"
        raise MissingDependencyError(f"{zoo}:{name}", zoo, hint, error) from error
    try:
        return getattr(module, function)(name, **options)
    except Exception as error:
        raise TeacherError(f"{zoo} has no model {name!r} with these options: {error}") from error


def _import(name: str, model: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise TeacherError(f"{model}: importing {name} failed: {type(error).__name__}: {error}") from error


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise TeacherError(f"no file {path}")
    spec = importlib.util.spec_from_file_location(f"narrowcast_teacher_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise TeacherError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses and pickling look a module up by its name
    sys.path.insert(0, str(path.resolve().parent))  # as if the file were run: it may import its neighbours
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise TeacherError(f"{path} failed on import: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _load_program(path: Path, options: dict[str, Any]) -> nn.Module:
    if options:
        raise TeacherError(f"{path.name} is a finished program; it takes no options ({', '.join(options)})")
    if not path.is_file():
        raise TeacherError(f"no file {path}")
    try:
        return torch.export.load(path).module()
    except Exception as error:
        raise TeacherError(f"{path} is no program saved by torch.export: {error}") from error


def _load_weights(network: nn.Module, path: Path, model: str) -> None:
    if not path.is_file():
        raise WeightsError(f"no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(f"{path} cannot be read as weights: {first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        inner = [key for key, value in state.items() if isinstance(value, dict)] if isinstance(state, dict) else []
        hint = f"; its {inner[0]!r} may be one: save that alone" if inner else ""
        raise WeightsError(f"{path} holds a {type(state).__name__} that is no state_dict of tensors{hint}")
    expected = network.state_dict()
    missing, surplus = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = [
        f"{k} {list(state[k].shape)} instead of {list(expected[k].shape)}"
        for k in expected.keys() & state.keys()
        if expected[k].shape != state[k].shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for names, what in ((missing, "missing"), (surplus, "surplus"), (shapes, "of another shape"))
        if names
    ]
    if problems:
        raise WeightsError(f"{path} does not fit {model}: {', '.join(problems)}")
    broken = [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise WeightsError(
            f"{path} holds values that are no numbers, in {', '.join(broken[:3])}: its training went wrong"
        )
    network.load_state_dict(state)


def _must_be_in_eval_mode(network: nn.Module, model: str) -> None:
    """Batch statistics and dropout would make the teacher's answers depend on what else is in a batch, and on chance."""
    stubborn = [] if model.endswith(".pt2") else [name for name, module in network.named_modules() if module.training]
    if stubborn:
        raise TeacherError(
            f"{model} is still in training mode after eval() (in {stubborn[0] or 'the network itself'}): an overridden "
            "train() must hand its mode on"
        )
    graph = getattr(network, "graph", None)
    for node in [] if graph is None else graph.nodes:
        trains = _TRAINS.get(str(node.target))
        if trains is not None and trains(node.args):
            raise TeacherError(
                f"{model} was exported in training mode ({node.target} in {node.name!r}): call eval() on the network before "
                "torch.export.export"
            )


# Operators of exported programs that have their mode built in, and whether that is training, by their arguments.
_TRAINS: dict[str, Callable[[Sequence[Any]], bool]] = {
    "aten.batch_norm.default": lambda args: bool(args[5]),
    "aten.dropout.default": lambda args: bool(args[2]) and args[1] != 0,
    "aten.dropout_.default": lambda args: bool(args[2]) and args[1] != 0,
    "aten.feature_dropout.default": lambda args: bool(args[2]) and args[1] != 0,
    "aten.native_batch_norm.default": lambda args: bool(args[5]),
    "aten._native_batch_norm_legit.default": lambda args: bool(args[5]),
    "aten._native_batch_norm_legit_functional.default": lambda args: bool(args[5]),
    "aten.native_dropout.default": lambda args: bool(args[2]) and args[1] != 0,
}
