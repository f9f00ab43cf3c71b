"""The manifest: what is in a bundle, and under which rules it may be used (``docs/bundle-format.md``)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from narrowcast.transport.codec import CodecSpec
from narrowcast.transport.contract import InputContract
from narrowcast.transport.errors import (
    ConfigError,
    ManifestError,
    NewerSchemaError,
    SymbolsError,
    UnsafePathError,
)
from narrowcast.transport.structs import Settings, from_json
from narrowcast.transport.tasks import MAIN, Task, check_outputs

SCHEMA = 1
MAX_MANIFEST_BYTES = 8 * 1024 * 1024  # tasks' class names are in it twice: as they are, and in the recipe
MAX_PART_BYTES = 2**31 - 1  # what protobuf can hold
MAX_PARTS = 64
MAX_TAILS = 16

Role = Literal["device", "server"]
PartKind = Literal["head", "tail", "whole", "tables", "dictionary", "labels", "selfcheck", "exit", "video"]
Precision = Literal["fp32", "fp16", "int8"]
NETWORKS = frozenset({"head", "tail", "whole", "exit"})

# Patterns end in \Z: before a line break at the very end, "$" is content.
_Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
_PART_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


class Part(Settings, frozen=True):
    """One part of a bundle; see ``docs/bundle-format.md``."""

    name: str
    kind: PartKind
    roles: list[Role]
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_PART_BYTES)]
    sha256: _Sha256
    optional: bool = False
    precision: Precision | None = None
    tail: str | None = None


class OutputSpec(Settings, frozen=True):
    """One output of the task, per frame.

    Attributes:
        name: what it is called.
        dtype: by NumPy's name.
        shape: for an input of the contract's ``size``.
        follows: where inputs differ in size, what each side grows in step with; missing where they do not.
    """

    name: str
    dtype: str
    shape: list[int]
    follows: list[Literal["nothing", "height", "width"]] | msgspec.UnsetType = msgspec.UNSET

    def at(self, size: tuple[int, int], reference: tuple[int, int]) -> OutputSpec:
        """The same output for an input of ``size``; its ``shape`` is the one for ``reference``."""
        if isinstance(self.follows, msgspec.UnsetType) or size == reference:
            return self
        grown = {"nothing": (1, 1), "height": (size[0], reference[0]), "width": (size[1], reference[1])}
        sides = [side * grown[f][0] // grown[f][1] for side, f in zip(self.shape, self.follows, strict=True)]
        return msgspec.structs.replace(self, shape=sides)


TailName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}\Z")]


class TailSpec(Settings, frozen=True):
    """A further tail on the same symbols: what it is called, what it gives and what that means."""

    name: TailName
    outputs: list[OutputSpec]
    task: Task | None = None


class Manifest(Settings, frozen=True):
    """What a bundle holds; see ``docs/bundle-format.md`` for every key."""

    schema: int
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
    release: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    created: str
    tool: str
    input: InputContract
    codec: CodecSpec
    fingerprint: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    outputs: list[OutputSpec]
    parts: Annotated[list[Part], msgspec.Meta(max_length=MAX_PARTS)]
    targets: list[str] = []
    figures: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    task: Task | None = None
    tails: Annotated[list[TailSpec], msgspec.Meta(max_length=MAX_TAILS)] = []

    def find(self, kind: PartKind, precision: Precision | None = None, tail: str | None = None) -> Part | None:
        """The part of this kind (and precision, where given); of the further tail ``tail``, where that is given."""
        return next(
            (
                part
                for part in self.parts
                if part.kind == kind and part.tail == tail and (precision is None or part.precision == precision)
            ),
            None,
        )

    def all_tails(self) -> list[TailSpec]:
        """Every tail, the main one first."""
        return [TailSpec(name=MAIN, outputs=self.outputs, task=self.task), *self.tails]

    def symbols_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """The shape ``(C, h, w)`` of the symbols of an input of ``size`` (height and width).

        Raises:
            SymbolsError: inputs are not of that size.
        """
        free = self.input.free
        if free is None:
            return self.codec.shape
        if any(side % free.multiple for side in size):
            raise SymbolsError(f"an input of {size[0]} x {size[1]}; both are multiples of {free.multiple}")
        return self.codec.shape_of([side // free.multiple for side in size])

    def input_size(self, symbols: Sequence[int]) -> tuple[int, int]:
        """Height and width of the input whose symbols have the shape ``(C, h, w)``, which the codec takes."""
        free, step = self.input.free, self.codec.step
        if free is None or isinstance(step, msgspec.UnsetType):
            return self.input.size
        return symbols[1] // step[0] * free.multiple, symbols[2] // step[1] * free.multiple


class _SchemaOnly(msgspec.Struct):
    schema: int


def parse_manifest(data: bytes, name: str) -> Manifest:
    """The manifest in ``data``.

    Raises:
        NewerSchemaError: it is of a later schema.
        UnsafePathError: a part's name is more than a name.
        ManifestError: it is no valid manifest.
    """
    try:
        schema = msgspec.json.decode(data, type=_SchemaOnly).schema
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"{name}: its manifest is not JSON with a schema: {error}") from error
    if schema > SCHEMA:
        raise NewerSchemaError(
            f"{name} has a manifest of schema {schema}; this release reads {SCHEMA}: update narrowcast"
        )
    try:
        manifest = from_json(Manifest, data, name)
    except ConfigError as error:
        raise ManifestError(str(error)) from error
    if schema != SCHEMA:
        raise ManifestError(f"{name}: there is no manifest schema {schema}")
    for part in manifest.parts:
        if not _PART_NAME.fullmatch(part.name):
            raise UnsafePathError(f"{name}: a part is called {part.name!r}; names have no paths in them")
    names = [part.name for part in manifest.parts]
    if len(set(names)) != len(names):
        raise ManifestError(f"{name}: two parts have the same name")
    _check_sizes(manifest, name)
    _check_tails(manifest, name)
    return manifest


def _check_sizes(manifest: Manifest, name: str) -> None:
    """Whether inputs differ in size is said three times: by the contract, the codec and the outputs."""
    free, step = manifest.input.free, manifest.codec.step
    if (free is None) != isinstance(step, msgspec.UnsetType):
        raise ManifestError(f"{name}: only one of its input and its codec is for images of any size")
    outputs = [output for tail in manifest.all_tails() for output in tail.outputs]
    if free is None or isinstance(step, msgspec.UnsetType):
        if any(not isinstance(output.follows, msgspec.UnsetType) for output in outputs):
            raise ManifestError(f"{name}: an output's shape follows the input's, which has one size")
        return
    most = tuple(side // free.multiple * cells for side, cells in zip(free.most, step, strict=True))
    if manifest.codec.shape[1:] != most:
        raise ManifestError(
            f"{name}: its codec has {list(manifest.codec.shape[1:])} rows and columns; an input of {list(free.most)} "
            f"gives {list(most)}"
        )
    for output in outputs:
        if isinstance(output.follows, msgspec.UnsetType) or len(output.follows) != len(output.shape):
            raise ManifestError(f"{name}: its output {output.name!r} does not say what each of its sides follows")


def _check_tails(manifest: Manifest, name: str) -> None:
    """Tasks must fit the outputs, and further tails be told apart."""
    names = [tail.name for tail in manifest.all_tails()]
    if len(set(names)) != len(names):
        raise ManifestError(f"{name}: two tails have the same name ({MAIN!r} is the first one's)")
    unknown = sorted({part.tail for part in manifest.parts if part.tail is not None} - set(names[1:]))
    if unknown:
        raise ManifestError(f"{name}: a part belongs to the tail {unknown[0]!r}, which it does not list")
    for tail in manifest.all_tails():
        if tail.task is not None:
            shapes = {output.name: output.shape for output in tail.outputs}
            try:
                checked = check_outputs(tail.task, shapes, manifest.input.size, f"{name}: the task of {tail.name!r}")
            except ConfigError as error:
                raise ManifestError(str(error)) from error
            if checked != tail.task:
                raise ManifestError(f"{name}: the task of {tail.name!r} does not name its outputs")
