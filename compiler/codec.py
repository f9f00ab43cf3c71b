"""The codec of a model, fitted to the symbols that its exported head really gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec
import numpy as np
import numpy.typing as npt
import zstandard

from narrowcast.compiler.contexts import context_bits, fit_contexts
from narrowcast.compiler.errors import VerificationError, first_line
from narrowcast.compiler.progress import SILENT, Progress
from narrowcast.compiler.recipe import CodingSettings
from narrowcast.compiler.tables import fit_tables, lanes_for
from narrowcast.compiler.verify import OnnxNetwork
from narrowcast.transport.bundle.manifest import Precision
from narrowcast.transport.codec import CodecSpec, open_codec
from narrowcast.transport.contexts import ContextTables
from narrowcast.transport.packed import PackedTables
from narrowcast.transport.tables import Tables

Symbols = npt.NDArray[np.uint8]

DICTIONARY_BYTES = 16 * 1024


def symbols_of(
    network: OnnxNetwork, name: Precision, spec: CodecSpec, frames: npt.NDArray[np.uint8], level: int
) -> Symbols:
    """The symbols uint8 ``[N, C, h, w]`` that a head gives.

    Raises:
        VerificationError: they are not of the spec.
    """
    found = []
    for frame in frames:
        try:
            symbols = network(image=frame[None], level=np.array([level]))["symbols"][0]
        except Exception as error:  # ONNX Runtime raises exceptions of its own C++ kind
            raise VerificationError(f"the {name} head does not run: {first_line(error)}") from error
        if symbols.dtype != np.uint8 or not spec.takes(symbols.shape) or int(symbols.max()) >= spec.alphabet:
            raise VerificationError(
                f"the {name} head gives {symbols.dtype} {list(symbols.shape)} up to {symbols.max()}; symbols are uint8 "
                f"{list(spec.shape)} below {spec.alphabet}"
            )
        found.append(symbols)
    return np.stack(found)


def collect_symbols(
    heads: Mapping[Precision, bytes], frames: npt.NDArray[np.uint8], spec: CodecSpec, progress: Progress = SILENT
) -> Symbols:
    """What heads give for frames uint8 ``[N, H, W, 3]``, one head's behind the other's: ``[levels, heads * N, C, h, w]``.

    Raises:
        VerificationError: see :func:`symbols_of`.
    """
    levels: list[list[Symbols]] = [[] for _ in range(spec.levels)]
    with progress.task("fitting the codec", len(heads) * spec.levels, "levels") as task:
        for name, model in heads.items():
            network = OnnxNetwork(model)
            for level, found in enumerate(levels):
                found.append(symbols_of(network, name, spec, frames, level))
                task.advance(1)
    return np.stack([np.concatenate(found) for found in levels])


def fit_codec(
    spec: CodecSpec,
    symbols: Symbols,
    density: npt.NDArray[np.float64] | None,
    coding: CodingSettings,
    sent: Sequence[int] | None = None,
) -> tuple[CodecSpec, bytes]:
    """The codec and its data: tables, or a zstandard dictionary (perhaps none).

    Args:
        spec: the codec that the preset wants: ``rans`` becomes ``rans-context`` or ``packed`` where the recipe says so.
        symbols: uint8 ``[levels, N, C, h, w]`` of training images.
        density: the learned density ``[levels, C, alphabet]``, which fills in for symbols that were not seen.
        coding: the recipe's.
        sent: see :class:`narrowcast.compiler.bottlenecks.base.Bottleneck`.
    """
    if spec.name == "zstd":
        return spec, _train_dictionary(spec, symbols.reshape(-1, *symbols.shape[2:]))
    if coding.tables == "none":
        packed = PackedTables(spec.alphabet, spec.shape[0], tuple(sent or [spec.shape[0]] * spec.levels))
        return msgspec.structs.replace(spec, name="packed"), packed.to_bytes()
    if coding.tables == "context":
        return msgspec.structs.replace(spec, name="rans-context"), _fit_contexts(spec, symbols).to_bytes()
    return spec, _fit_channels(spec, symbols, density).to_bytes()


def _fit_channels(spec: CodecSpec, symbols: Symbols, density: npt.NDArray[np.float64] | None) -> Tables:
    counts = np.zeros((spec.levels, spec.shape[0], spec.alphabet), np.int64)
    for level, channel in np.ndindex(counts.shape[:2]):
        counts[level, channel] = np.bincount(symbols[level, :, channel].ravel(), minlength=spec.alphabet)
    tables = fit_tables(density, counts)
    return replace(tables, lanes=_lanes(float((tables.bits() * counts).sum()), symbols))


def _fit_contexts(spec: CodecSpec, symbols: Symbols) -> ContextTables:
    tables = fit_contexts(symbols, spec.alphabet)
    bits = sum(context_bits(symbols[level], tables, level) for level in range(spec.levels))
    return replace(tables, bank=replace(tables.bank, lanes=_lanes(bits, symbols)))


def _lanes(bits: float, symbols: Symbols) -> int:
    """As many lanes as suit the mean payload."""
    return lanes_for(bits / 8 / (symbols.shape[0] * symbols.shape[1]))


def _train_dictionary(spec: CodecSpec, frames: Symbols) -> bytes:
    """A zstandard dictionary, or nothing where it does not make frames smaller that it was not trained on."""
    seen, unseen = frames[: len(frames) * 3 // 4], frames[len(frames) * 3 // 4 :]
    try:
        dictionary = zstandard.train_dictionary(DICTIONARY_BYTES, [frame.tobytes() for frame in seen]).as_bytes()
    except zstandard.ZstdError:  # too few samples, or nothing in common
        return b""
    sizes = []
    for data in (b"", dictionary):
        codec = open_codec(spec, data)
        sizes.append(sum(len(codec.encode(frame, 0)) for frame in unseen))
    return dictionary if sizes[1] < sizes[0] else b""
