"""The models that a server has: one folder of bundles, the highest release of each name."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from narrowcast.tail.backends import Array, TailBackend
from narrowcast.tail.backends.onnxruntime import OnnxRuntimeTail
from narrowcast.tail.errors import StoreError, TailBackendError
from narrowcast.transport.bundle import Bundle, Manifest, PublicKey, TailSpec
from narrowcast.transport.codec import Codec
from narrowcast.transport.errors import BundleError, NarrowcastError
from narrowcast.transport.tasks import MAIN, finish

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """One loaded model.

    Attributes:
        manifest: the bundle's.
        codec: of its symbols.
        backend: runs the main tail.
        further: run the further tails, by name.
    """

    manifest: Manifest
    codec: Codec
    backend: TailBackend
    further: Mapping[str, TailBackend] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What clients ask for."""
        return self.manifest.name

    @property
    def tails(self) -> list[str]:
        """Every tail, the main one first."""
        return [MAIN, *self.further]

    def answer(
        self, symbols: npt.NDArray[np.uint8], levels: npt.NDArray[np.int64], wanted: Sequence[frozenset[str]]
    ) -> list[dict[str, Array]]:
        """What goes back for each frame of a batch, by name (``docs/tasks.md``).

        Args:
            symbols: uint8 ``[N, C, h, w]``.
            levels: int64 ``[N]``.
            wanted: per frame, the tails to run.

        Raises:
            TailBackendError: a tail failed.
        """
        answers: list[dict[str, Array]] = [{} for _ in wanted]
        for spec in self.manifest.all_tails():
            rows = [row for row, names in enumerate(wanted) if spec.name in names]
            if not rows:
                continue
            backend = self.backend if spec.name == MAIN else self.further[spec.name]
            all_rows = len(rows) == len(wanted)
            outputs = backend.run(symbols if all_rows else symbols[rows], levels if all_rows else levels[rows])
            prefix = "" if spec.name == MAIN else f"{spec.name}/"
            for row, found in zip(rows, finish(spec.task, outputs, self.manifest.input.size), strict=True):
                answers[row] |= {prefix + name: values for name, values in found.items()}
        return answers


def load_models(
    folder: Path,
    *,
    trusted: Iterable[PublicKey] | None = None,
    allow_unsigned: bool = False,
    threads: int = 0,
) -> dict[str, Model]:
    """Loads every bundle in ``folder`` for the server; of several releases of a name, the highest.

    A bundle that must not be used is left out, with the reason in the log.

    Raises:
        StoreError: no folder, no bundle that can be used, or two of one name and release.
    """
    if not folder.is_dir():
        raise StoreError(f"no folder {folder}")
    files = sorted(folder.glob("*.ncb"))
    if not files:
        raise StoreError(f"no bundles (*.ncb) in {folder}")
    keys = None if trusted is None else list(trusted)
    chosen: dict[str, Bundle] = {}
    problems: list[NarrowcastError] = []
    for file in files:
        try:
            bundle = Bundle.open(file, "server", trusted=keys, allow_unsigned=allow_unsigned)
        except BundleError as error:
            log.error("not served: %s", error)
            problems.append(error)
            continue
        name, release = bundle.manifest.name, bundle.manifest.release
        other = chosen.get(name)
        if other is not None and other.manifest.release == release:
            raise StoreError(f"{other.path.name} and {file.name} are both {name!r} release {release}; remove one")
        if other is None or other.manifest.release < release:
            chosen[name] = bundle
    models = {}
    for name, bundle in chosen.items():
        try:
            models[name] = load_model(bundle, threads=threads)
        except (BundleError, TailBackendError) as error:
            log.error("not served: %s", error)
            problems.append(error)
    if not models:
        if problems and isinstance(problems[0], BundleError):
            raise problems[0]
        raise StoreError(f"no bundle in {folder} can be served: {problems[0]}")
    return models


def load_model(bundle: Bundle, *, threads: int = 0) -> Model:
    """Loads one bundle's tail, and runs it once, so that the first frame does not pay for it.

    Raises:
        BundleError: a part is damaged or missing.
        TailBackendError: the tail does not load, or fails on a frame of the bundle's own shape.
    """
    codec = bundle.codec()
    backend = OnnxRuntimeTail(bundle.read("tail"), threads=threads)
    further = {
        spec.name: OnnxRuntimeTail(bundle.read("tail", tail=spec.name), threads=threads)
        for spec in bundle.manifest.tails
    }
    for spec in bundle.manifest.all_tails():
        _try(bundle, codec, backend if spec.name == MAIN else further[spec.name], spec)
    return Model(bundle.manifest, codec, backend, further)


def _try(bundle: Bundle, codec: Codec, backend: TailBackend, spec: TailSpec) -> None:
    """Runs a tail once, and compares what it gives with the manifest."""
    outputs = backend.run(np.zeros((1, *codec.spec.shape), np.uint8), np.zeros(1, np.int64))
    promised = {output.name for output in spec.outputs}
    if outputs.keys() != promised:
        which = "tail" if spec.name == MAIN else f"tail {spec.name!r}"
        raise TailBackendError(
            f"{bundle.path.name}: its {which} gives {sorted(outputs)}; its manifest promises {sorted(promised)}"
        )
    if spec.task is not None:  # what is made of outputs goes by their shapes
        shapes = {output.name: list(outputs[output.name].shape[1:]) for output in spec.outputs}
        if shapes != {output.name: output.shape for output in spec.outputs}:
            raise TailBackendError(
                f"{bundle.path.name}: the tail {spec.name!r} gives other shapes than its manifest says"
            )
