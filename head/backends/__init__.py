"""What runs a bundle's networks on the device: one file per library, imported only when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from narrowcast.head.errors import BackendError
from narrowcast.transport.structs import nearest

Array = npt.NDArray[Any]


class Library(NamedTuple):
    """A backend.

    Attributes:
        module: with a function ``load(model: bytes, *, threads: int, what: str) -> Network``.
        advice: how to get it.
    """

    module: str
    advice: str


BACKENDS = {
    "onnxruntime": Library("narrowcast.head.backends.onnxruntime", "pip install 'narrowcast[head]'"),
    "tensorrt": Library(
        "narrowcast.head.backends.tensorrt",
        "it comes with JetPack (apt install python3-libnvinfer, and a venv made with --system-site-packages)",
    ),
}


class Network(Protocol):
    """A loaded network.

    Attributes:
        name: of the backend, with its version.
        inputs: the names of its inputs.
    """

    name: str
    inputs: Sequence[str]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Inputs by name to outputs by name, arrays of the caller's own. Several threads may call it.

        Raises:
            BackendError: the inputs are not the network's, or the library failed.
        """


class HeadBackend(Protocol):
    """A loaded head.

    Attributes:
        name: of the backend, with its version.
    """

    name: str

    def run(self, image: npt.NDArray[np.uint8], level: int) -> npt.NDArray[np.uint8]:
        """uint8 ``[H, W, 3]`` RGB of the contract's size to symbols uint8 ``[C, h, w]``.

        Raises:
            BackendError: the library failed.
        """


class Head:
    """A head on any backend; see :class:`HeadBackend`."""

    def __init__(self, network: Network) -> None:
        self.name = network.name
        self._network = network

    def run(self, image: npt.NDArray[np.uint8], level: int) -> npt.NDArray[np.uint8]:
        """See :class:`HeadBackend`."""
        feed: dict[str, Array] = {"image": image[None]}
        if "level" in self._network.inputs:
            feed["level"] = np.array([level], np.int64)
        try:
            symbols: npt.NDArray[np.uint8] = self._network.run(feed)["symbols"][0]
        except BackendError as error:
            raise BackendError(f"the head failed on an image of shape {list(image.shape)}: {error}") from error
        return symbols


class Exit:
    """A local exit on any backend: symbols to the task's outputs, on the device alone."""

    def __init__(self, network: Network) -> None:
        self.name = network.name
        self._network = network

    def run(self, symbols: npt.NDArray[np.uint8], level: int) -> dict[str, Array]:
        """Symbols uint8 ``[C, h, w]`` of a level to the outputs by name, without the batch.

        Raises:
            BackendError: the library failed.
        """
        feed: dict[str, Array] = {"symbols": symbols[None]}
        if "level" in self._network.inputs:
            feed["level"] = np.array([level], np.int64)
        try:
            return {name: values[0] for name, values in self._network.run(feed).items()}
        except BackendError as error:
            raise BackendError(f"the local exit failed: {error}") from error


class Whole:
    """The uncut network on any backend: an image to the task's outputs, on the device alone."""

    def __init__(self, network: Network) -> None:
        self.name = network.name
        self._network = network

    def run(self, image: npt.NDArray[np.uint8]) -> dict[str, Array]:
        """uint8 ``[H, W, 3]`` RGB of the contract's size to the outputs by name, without the batch.

        Raises:
            BackendError: the library failed.
        """
        try:
            return {name: values[0] for name, values in self._network.run({"image": image[None]}).items()}
        except BackendError as error:
            raise BackendError(f"the whole network failed on an image of shape {list(image.shape)}: {error}") from error


def load_backend(name: str, model: bytes, *, threads: int) -> HeadBackend:
    """Loads a head.

    Args:
        name: a key of ``BACKENDS``.
        model: ONNX.
        threads: to use; 0 for the library's choice.

    Raises:
        BackendError: no such backend, its library is missing, or it refuses the model.
    """
    return Head(_load(name, model, threads, "head"))


def load_exit(name: str, model: bytes, *, threads: int) -> Exit:
    """Loads a local exit; see :func:`load_backend`."""
    return Exit(_load(name, model, threads, "local exit"))


def load_whole(name: str, model: bytes, *, threads: int) -> Whole:
    """Loads the uncut network; see :func:`load_backend`."""
    return Whole(_load(name, model, threads, "whole network"))


def load_profiler() -> tuple[Callable[..., Any], str]:
    """:func:`narrowcast.head.backends.profiling.profile`, and the library's name with its version.

    Raises:
        BackendError: ONNX Runtime is missing.
    """
    try:
        profiling = import_module("narrowcast.head.backends.profiling")
    except Exception as error:  # see _load
        advice = BACKENDS["onnxruntime"].advice
        raise BackendError(
            f"ONNX Runtime, which networks are measured with, cannot be used: {error}; {advice}"
        ) from error
    return profiling.profile, profiling.NAME


def _load(name: str, model: bytes, threads: int, what: str) -> Network:
    if name not in BACKENDS:
        raise BackendError(f"no backend {name!r}{nearest(name, sorted(BACKENDS))}")
    library = BACKENDS[name]
    try:
        load: Callable[..., Network] = import_module(library.module).load
    except Exception as error:  # a library for another machine fails in ways of its own
        raise BackendError(f"the backend {name} cannot be used: {error}; {library.advice}") from error
    return load(model, threads=threads, what=what)
