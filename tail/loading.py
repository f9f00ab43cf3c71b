"""Bundles, loaded for the server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from narrowcast.tail.backends import Array, BackendSettings, ImageBackend, TailBackend, open_tail, open_whole
from narrowcast.tail.errors import ProviderError, StoreError, TailBackendError
from narrowcast.tail.folder import SUFFIX, Candidate, choose, look
from narrowcast.transport.bundle import Bundle, Manifest, PublicKey, TailSpec
from narrowcast.transport.codec import Codec
from narrowcast.transport.errors import BundleError, NarrowcastError
from narrowcast.transport.tasks import MAIN, finish
from narrowcast.transport.video import VideoCodec

log = logging.getLogger(__name__)
_B = TypeVar("_B")


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
        video: decodes frames by earlier ones; None where the bundle has no video tables.
    """

    manifest: Manifest
    codec: Codec
    backend: TailBackend
    further: Mapping[str, TailBackend] = field(default_factory=dict)
    whole: ImageBackend | None = None
    further_wholes: Mapping[str, ImageBackend] = field(default_factory=dict)
    video: VideoCodec | None = None

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

        return self._answers(wanted, run, self.manifest.input_size(symbols.shape[1:]))

    def answer_images(self, images: npt.NDArray[np.uint8], wanted: Sequence[frozenset[str]]) -> list[dict[str, Array]]:
        """What goes back for each image of a batch, as :meth:`answer` for symbols.

        Args:
            images: uint8 ``[N, H, W, 3]``, as the input contract gives them.
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

        return self._answers(wanted, run, (images.shape[1], images.shape[2]))

    def _answers(
        self,
        wanted: Sequence[frozenset[str]],
        run: Callable[[str, Sequence[int] | slice], dict[str, Array]],
        size: tuple[int, int],
    ) -> list[dict[str, Array]]:
        answers: list[dict[str, Array]] = [{} for _ in wanted]
        for spec in self.manifest.all_tails():
            rows = [row for row, names in enumerate(wanted) if spec.name in names]
            if not rows:
                continue
            outputs = run(spec.name, slice(None) if len(rows) == len(wanted) else rows)
            prefix = "" if spec.name == MAIN else f"{spec.name}/"
            for row, found in zip(rows, finish(spec.task, outputs, size), strict=True):
                answers[row] |= {prefix + name: values for name, values in found.items()}
        return answers


def load_model(bundle: Bundle, *, settings: BackendSettings | None = None, images: bool = True) -> Model:
    """Loads what is in a bundle for the server, and runs each network on its smallest and its largest batch.

    Libraries allocate, choose kernels and compile when they first see a size: frames are not to wait for that.

    Args:
        bundle: verified.
        settings: what runs it; ONNX Runtime on the CPU if None.
        images: load the uncut network as well, where there is one.

    Raises:
        BundleError: a part is damaged or missing.
        TailBackendError: a network does not load, fails on frames of the bundle's own shape, or gives other outputs than
            its manifest says.
    """
    settings = settings or BackendSettings()
    loader = _Loader(bundle, settings)
    codec = bundle.codec()
    tails = {spec.name: loader.tail(spec, codec) for spec in bundle.manifest.all_tails()}
    wholes = loader.wholes() if images else {}
    return Model(bundle.manifest, codec, tails.pop(MAIN), tails, wholes.pop(MAIN, None), wholes, bundle.video())


class _Loader:
    def __init__(self, bundle: Bundle, settings: BackendSettings) -> None:
        self._bundle = bundle
        self._settings = settings

    def tail(self, spec: TailSpec, codec: Codec) -> TailBackend:
        model = self._bundle.read("tail", tail=_part_of(spec))
        backend = self._open(open_tail, model, spec, "tail")
        for count, size in self._batches():
            # The last level, too: what reaches beyond a table of levels is to be found now.
            levels = np.arange(codec.spec.levels - 1, codec.spec.levels - 1 - count, -1, dtype=np.int64)
            shape = self._bundle.manifest.symbols_shape(size)
            outputs = backend.run(np.zeros((count, *shape), np.uint8), levels % codec.spec.levels)
            self._check(outputs, count, size, spec, "tail")
        return backend

    def wholes(self) -> dict[str, ImageBackend]:
        """The uncut networks that are in the bundle, by tail; of several precisions the first, fp32, is the exact one."""
        wholes: dict[str, ImageBackend] = {}
        for spec in self._bundle.manifest.all_tails():
            if not self._bundle.has("whole", tail=_part_of(spec)):
                continue
            model = self._bundle.read("whole", tail=_part_of(spec))
            whole = wholes[spec.name] = self._open(open_whole, model, spec, "whole network")
            for count, size in self._batches():
                outputs = whole.run_images(np.zeros((count, *size, 3), np.uint8))
                self._check(outputs, count, size, spec, "whole network")
        return wholes

    def _open(self, opener: Callable[[bytes, BackendSettings], _B], model: bytes, spec: TailSpec, what: str) -> _B:
        try:
            return opener(model, self._settings)
        except ProviderError:
            raise
        except TailBackendError as error:
            which = "" if spec.name == MAIN else f", {what} {spec.name!r}"
            raise TailBackendError(f"{self._bundle.path.name}{which}: {error}") from error

    def _batches(self) -> list[tuple[int, tuple[int, int]]]:
        """Frames and input size: the smallest and the largest batch; where sizes are free, the smallest size as well."""
        contract = self._bundle.manifest.input
        batches = [(count, contract.size) for count in sorted({1, self._settings.max_batch})]
        if contract.free is not None:
            batches.append((1, (contract.free.multiple, contract.free.multiple)))
        return batches

    def _check(
        self, outputs: Mapping[str, Array], count: int, size: tuple[int, int], spec: TailSpec, what: str
    ) -> None:
        """Compares what a network gives with the manifest."""
        name = self._bundle.path.name
        which = what if spec.name == MAIN else f"{what} {spec.name!r}"
        promised = {output.name for output in spec.outputs}
        if outputs.keys() != promised:
            raise TailBackendError(
                f"{name}: its {which} gives {sorted(outputs)}; its manifest promises {sorted(promised)}"
            )
        uncounted = sorted(key for key, values in outputs.items() if values.shape[:1] != (count,))
        if uncounted:
            shape = list(outputs[uncounted[0]].shape)
            raise TailBackendError(
                f"{name}: its {which} gives {uncounted[0]!r} of shape {shape} for {count} frames; the first axis counts them"
            )
        if spec.task is not None:  # what is made of outputs goes by their shapes
            shapes = {output.name: list(outputs[output.name].shape[1:]) for output in spec.outputs}
            fixed = self._bundle.manifest.input.size
            if shapes != {output.name: output.at(size, fixed).shape for output in spec.outputs}:
                raise TailBackendError(f"{name}: the {what} {spec.name!r} gives other shapes than its manifest says")


def _part_of(spec: TailSpec) -> str | None:
    """How a manifest's parts call the tail."""
    return None if spec.name == MAIN else spec.name


def load_models(
    folder: Path,
    *,
    trusted: Iterable[PublicKey] | None = None,
    allow_unsigned: bool = False,
    threads: int = 0,
) -> dict[str, Model]:
    """Loads the highest release of every model in ``folder``, once: for those who do without a :class:`ModelStore`.

    Raises:
        StoreError, BundleError: see :func:`load_codecs`.
    """
    models = load_codecs(folder, trusted=trusted, allow_unsigned=allow_unsigned, threads=threads, keep=1)
    return {model.name: model for model in models}


def load_codecs(
    folder: Path,
    *,
    trusted: Iterable[PublicKey] | None = None,
    allow_unsigned: bool = False,
    threads: int = 0,
    keep: int | None = None,
) -> list[Model]:
    """Loads what a :class:`ModelStore` would serve of ``folder``, once: of each model and codec the highest release.

    A bundle that must not be used, or is in another's way, is left out, with the reason in the log.

    Args:
        folder: of bundles.
        trusted: whose bundles may be used; None: those of the keys folder.
        allow_unsigned: take bundles that carry no signature, too.
        threads: for each model; 0: the library's choice.
        keep: of one model, codecs that are served at once, the highest releases first; None for all.

    Raises:
        StoreError: no folder, or no bundle that can be used.
        BundleError: none can be used, and that is what is wrong with the first one.
    """
    files = sorted(look(folder))
    if not files:
        raise StoreError(f"no bundles (*{SUFFIX}) in {folder}")
    keys = None if trusted is None else list(trusted)
    found: list[Candidate] = []
    problems: list[NarrowcastError] = []
    for file in files:
        try:
            found.append(Candidate.read(file, trusted=keys, allow_unsigned=allow_unsigned))
        except BundleError as error:
            log.error("not served: %s", error)
            problems.append(error)
    choice = choose(found, [], keep)
    for clash in choice.clashes.values():
        log.error("not served: %s", clash)
        problems.append(clash)
    models: list[Model] = []
    for one in choice.serve.values():
        try:
            models.append(load_model(one.bundle, settings=BackendSettings(threads=threads)))
        except (BundleError, TailBackendError) as error:
            log.error("not served: %s", error)
            problems.append(error)
    if not models:
        if problems and isinstance(problems[0], BundleError):
            raise problems[0]
        raise StoreError(f"no bundle in {folder} can be served: {problems[0]}")
    return models
