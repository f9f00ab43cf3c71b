"""The models that a server has: one folder of bundles, the highest release of each name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from narrowcast.tail.backends import Array, ImageBackend, TailBackend
from narrowcast.tail.backends.onnxruntime import OnnxRuntimeTail, OnnxRuntimeWhole
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
        whole: runs the uncut network, on images that were sent as such; None where the bundle has none.
        further_wholes: run the uncut networks of the further tails that have one, by the tail's name.
    """

    manifest: Manifest
    codec: Codec
    backend: TailBackend
    further: Mapping[str, TailBackend] = field(default_factory=dict)
    whole: ImageBackend | None = None
    further_wholes: Mapping[str, ImageBackend] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What clients ask for."""
        return self.manifest.name

    @property
    def tails(self) -> list[str]:
        """Every tail, the main one first."""
        return [MAIN, *self.further]

    @property
    def image_tails(self) -> list[str]:
        """The tails that can be had of images; none where the bundle has no whole network."""
        return [name for name in self.tails if self._whole(name) is not None]

    def _whole(self, tail: str) -> ImageBackend | None:
        return self.whole if tail == MAIN else self.further_wholes.get(tail)

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

        def run(tail: str, rows: Sequence[int] | slice) -> dict[str, Array]:
            backend = self.backend if tail == MAIN else self.further[tail]
            return backend.run(symbols[rows], levels[rows])

        return self._answers(wanted, run)

    def answer_images(self, images: npt.NDArray[np.uint8], wanted: Sequence[frozenset[str]]) -> list[dict[str, Array]]:
        """What goes back for each image of a batch, as :meth:`answer` for symbols.

        Args:
            images: uint8 ``[N, H, W, 3]``, of the input contract's size.
            wanted: per image, the tails whose outputs are asked for, all of :attr:`image_tails`.

        Raises:
            TailBackendError: a network failed, or the bundle has no whole network for a tail.
        """

        def run(tail: str, rows: Sequence[int] | slice) -> dict[str, Array]:
            whole = self._whole(tail)
            if whole is None:
                raise TailBackendError(
                    f"{self.name!r} has no whole network for the tail {tail!r}; send symbols instead"
                )
            return whole.run_images(images[rows])

        return self._answers(wanted, run)

    def _answers(
        self, wanted: Sequence[frozenset[str]], run: Callable[[str, Sequence[int] | slice], dict[str, Array]]
    ) -> list[dict[str, Array]]:
        answers: list[dict[str, Array]] = [{} for _ in wanted]
        for spec in self.manifest.all_tails():
            rows = [row for row, names in enumerate(wanted) if spec.name in names]
            if not rows:
                continue
            outputs = run(spec.name, slice(None) if len(rows) == len(wanted) else rows)
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
    wholes = _load_wholes(bundle, threads)
    return Model(bundle.manifest, codec, backend, further, wholes.pop(MAIN, None), wholes)


def _load_wholes(bundle: Bundle, threads: int) -> dict[str, ImageBackend]:
    """The uncut networks that are in the bundle, by tail; its first precision (fp32) is the exact one."""
    wholes: dict[str, ImageBackend] = {}
    for spec in bundle.manifest.all_tails():
        tail = None if spec.name == MAIN else spec.name
        if bundle.has("whole", tail=tail):
            whole = wholes[spec.name] = OnnxRuntimeWhole(bundle.read("whole", tail=tail), threads=threads)
            outputs = whole.run_images(np.zeros((1, *bundle.manifest.input.size, 3), np.uint8))
            _check_outputs(bundle, outputs, spec, "whole network")
    return wholes


def _try(bundle: Bundle, codec: Codec, backend: TailBackend, spec: TailSpec) -> None:
    """Runs a tail once, and compares what it gives with the manifest."""
    outputs = backend.run(np.zeros((1, *codec.spec.shape), np.uint8), np.zeros(1, np.int64))
    _check_outputs(bundle, outputs, spec, "tail")


def _check_outputs(bundle: Bundle, outputs: Mapping[str, Array], spec: TailSpec, what: str) -> None:
    promised = {output.name for output in spec.outputs}
    if outputs.keys() != promised:
        which = what if spec.name == MAIN else f"{what} {spec.name!r}"
        raise TailBackendError(
            f"{bundle.path.name}: its {which} gives {sorted(outputs)}; its manifest promises {sorted(promised)}"
        )
    if spec.task is not None:  # what is made of outputs goes by their shapes
        shapes = {output.name: list(outputs[output.name].shape[1:]) for output in spec.outputs}
        if shapes != {output.name: output.shape for output in spec.outputs}:
            raise TailBackendError(
                f"{bundle.path.name}: the {what} {spec.name!r} gives other shapes than its manifest says"
            )
