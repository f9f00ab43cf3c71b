"""The models that a server has: one folder of bundles, the highest release of each name."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from narrowcast.tail.backends import TailBackend
from narrowcast.tail.backends.onnxruntime import OnnxRuntimeTail
from narrowcast.tail.errors import StoreError, TailBackendError
from narrowcast.transport.bundle import Bundle, Manifest, PublicKey
from narrowcast.transport.codec import Codec
from narrowcast.transport.errors import BundleError, NarrowcastError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """One loaded model."""

    manifest: Manifest
    codec: Codec
    backend: TailBackend

    @property
    def name(self) -> str:
        """What clients ask for."""
        return self.manifest.name


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
    outputs = backend.run(np.zeros((1, *codec.spec.shape), np.uint8), np.zeros(1, np.int64))
    promised = {output.name for output in bundle.manifest.outputs}
    if outputs.keys() != promised:
        raise TailBackendError(
            f"{bundle.path.name}: its tail gives {sorted(outputs)}; its manifest promises {sorted(promised)}"
        )
    return Model(bundle.manifest, codec, backend)
