"""A bundle's heads, one per precision: made, compared with the fp32 head on held-out frames, and kept or left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowcast.compiler.codec import symbols_of
from narrowcast.compiler.errors import ExportError
from narrowcast.compiler.evaluate import CHUNK
from narrowcast.compiler.precision import to_fp16, to_int8
from narrowcast.compiler.progress import Progress
from narrowcast.compiler.recipe import ExportSettings
from narrowcast.compiler.verify import MAX_MOVED_SYMBOLS, OnnxNetwork
from narrowcast.compiler.ways import Outputs, top_class
from narrowcast.head.backends import load_backend
from narrowcast.head.choice import PRECISIONS, measure
from narrowcast.transport.bundle.manifest import Precision
from narrowcast.transport.codec import Codec, CodecSpec, Symbols
from narrowcast.transport.packet import STREAM_HEADER_BYTES
from narrowcast.transport.selfcheck import SelfCheck, SymbolBound, reference_frames

CHECK_FRAMES = 2
MAX_STEP = 255
# What another machine may add to the part of the symbols that a precision moves here: libraries add up in other orders.
BOUND_FACTOR, BOUND_FLOOR = 1.25, 2e-3


@dataclass
class Trial:
    """A head on the held-out frames, by level.

    Attributes:
        symbols: uint8 ``[N, C, h, w]`` each.
        agreement: part of the frames with the teacher's top class; None for networks without class scores.
        output_error: squared error of the outputs as a part of the teacher's variance.
        moved_symbols: part of the symbols that differ from the fp32 head's.
        largest_step: by how much at most.
    """

    symbols: list[Symbols] = field(default_factory=list)
    agreement: list[float | None] = field(default_factory=list)
    output_error: list[float] = field(default_factory=list)
    moved_symbols: list[float] = field(default_factory=list)
    largest_step: list[int] = field(default_factory=list)

    def figures(self, codec: Codec) -> list[dict[str, Any]]:
        """For the manifest: one entry per level."""
        sizes = [
            np.mean([len(codec.encode(one, level)) + STREAM_HEADER_BYTES for one in symbols])
            for level, symbols in enumerate(self.symbols)
        ]
        return [
            {
                "level": level,
                "mean_packet_bytes": round(float(sizes[level]), 1),
                "agreement": self.agreement[level],
                "output_error": self.output_error[level],
                "moved_symbols": self.moved_symbols[level],
                "largest_step": self.largest_step[level],
            }
            for level in range(len(sizes))
        ]


def make_heads(
    fp32: bytes,
    settings: ExportSettings,
    frames: npt.NDArray[np.uint8],
    *,
    symmetric: bool,
    progress: Progress,
    what: str = "head",
) -> tuple[dict[Precision, bytes], dict[Precision, str]]:
    """The head (or another network that takes images) in every precision of the recipe.

    Args:
        fp32: as it was exported.
        settings: the recipe's.
        frames: uint8 ``[N, H, W, 3]`` to calibrate INT8 with.
        symmetric: see :func:`narrowcast.compiler.precision.to_int8`.
        progress: told where it is.
        what: it is.

    Returns:
        the networks, fp32 first; and why a precision is left out.
    """
    heads: dict[Precision, bytes] = {"fp32": fp32}
    left_out: dict[Precision, str] = {}
    wanted = [name for name in PRECISIONS if name in settings.precisions and name != "fp32"]
    if not wanted:
        return heads, left_out
    with progress.task(f"lower precisions of the {what}", len(wanted), "networks") as task:
        for name in wanted:
            try:
                heads[name] = (
                    to_fp16(fp32, what) if name == "fp16" else to_int8(fp32, frames, symmetric=symmetric, what=what)
                )
            except ExportError as error:
                left_out[name] = str(error)
            task.advance(1)
    return heads, left_out


def try_heads(
    heads: Mapping[Precision, bytes],
    tail: bytes,
    spec: CodecSpec,
    frames: npt.NDArray[np.uint8],
    teacher: Outputs,
    progress: Progress,
) -> dict[Precision, Trial]:
    """Runs every head, and the tail behind it, on ``frames``.

    Args:
        heads: ONNX by precision, fp32 first.
        tail: ONNX.
        spec: what symbols are.
        frames: uint8 ``[N, H, W, 3]``, not trained on.
        teacher: its outputs on the same frames.
        progress: told where it is.

    Raises:
        VerificationError: a head does not run, or gives no symbols of the spec; names the precision.
    """
    tail_network = OnnxNetwork(tail)
    trials: dict[Precision, Trial] = {}
    with progress.task("comparing precisions", len(heads) * spec.levels, "levels") as task:
        for name, model in heads.items():
            network, trial = OnnxNetwork(model), Trial()
            for level in range(spec.levels):
                symbols = symbols_of(network, name, spec, frames, level)
                outputs = _tail_outputs(tail_network, symbols, level)
                steps = np.abs(symbols.astype(int) - (symbols if name == "fp32" else trials["fp32"].symbols[level]))
                trial.symbols.append(symbols)
                trial.agreement.append(agreement_of(outputs, teacher))
                trial.output_error.append(output_error_of(outputs, teacher))
                trial.moved_symbols.append(float((steps > 0).mean()))
                trial.largest_step.append(int(steps.max()))
                task.advance(1)
            trials[name] = trial
    return trials


def too_lossy(trials: Mapping[Precision, Trial], settings: ExportSettings) -> dict[Precision, str]:
    """The precisions that lose more than the recipe allows, each with how much."""
    exact, reasons = trials["fp32"], {}
    for name, trial in trials.items():
        pairs = list(zip(exact.agreement, trial.agreement, strict=True))
        losses = [before - after for before, after in pairs if before is not None and after is not None]
        if losses:
            loss = float(np.mean(losses))
            if not loss <= settings.max_agreement_loss:  # what is no number is too much
                reasons[name] = (
                    f"it agrees with the teacher on {100 * loss:.2g} points fewer of the frames than fp32; "
                    f"[export] max_agreement_loss is {settings.max_agreement_loss}"
                )
            continue
        growth = float(np.mean(trial.output_error) / max(float(np.mean(exact.output_error)), 1e-12) - 1)
        if not growth <= settings.max_error_growth:
            reasons[name] = (
                f"its output error is {100 * growth:.2g} % above that of fp32; "
                f"[export] max_error_growth is {settings.max_error_growth}"
            )
    return reasons


def make_self_check(
    heads: Mapping[Precision, bytes], codec: Codec, size: tuple[int, int], *, ordered: bool = True
) -> SelfCheck:
    """What boards compare their symbols with: the fp32 head's on the reference frames, and how far each precision may be.

    Where symbols have no order (``ordered``), how far one moves means nothing, and is not bounded.

    Raises:
        VerificationError: see :func:`symbols_of`.
    """
    spec, frames = codec.spec, reference_frames(size, CHECK_FRAMES)
    networks = {name: OnnxNetwork(model) for name, model in heads.items()}
    payloads: list[list[bytes]] = []
    bounds: dict[Precision, list[SymbolBound]] = {name: [] for name in heads}
    for level in range(spec.levels):
        exact = symbols_of(networks["fp32"], "fp32", spec, frames, level)
        payloads.append([codec.encode(one, level) for one in exact])
        for name, network in networks.items():
            steps = np.abs(symbols_of(network, name, spec, frames, level).astype(int) - exact)
            moved = float((steps > 0).mean())
            # Of few symbols, a single one is more than the part that verification allows of many.
            floor = max(MAX_MOVED_SYMBOLS, 3 / steps.size) if name == "fp32" else BOUND_FLOOR
            step = min(MAX_STEP, int(steps.max()) + 1) if ordered else MAX_STEP
            bounds[name].append(SymbolBound(moved=min(1.0, BOUND_FACTOR * moved + floor), step=step))
    return SelfCheck(payloads=payloads, bounds=bounds)


def head_times(
    heads: Mapping[Precision, bytes], size: tuple[int, int], levels: int
) -> tuple[dict[Precision, float], str]:
    """Median milliseconds of a frame on this machine by precision, measured side by side; and what ran them."""
    loaded = {name: load_backend("onnxruntime", model, threads=0) for name, model in heads.items()}
    return measure(loaded, size, levels - 1), loaded["fp32"].name


def _tail_outputs(tail: OnnxNetwork, symbols: Symbols, level: int) -> Outputs:
    chunks = [symbols[start : start + CHUNK] for start in range(0, len(symbols), CHUNK)]
    found = [tail(symbols=chunk, level=np.full(len(chunk), level, np.int64)) for chunk in chunks]
    return {name: np.concatenate([outputs[name] for outputs in found]) for name in tail.outputs}


def agreement_of(outputs: Outputs, teacher: Outputs) -> float | None:
    """The part of the frames with the teacher's top class; None without class scores."""
    top, wanted = top_class(outputs), top_class(teacher)
    return None if top is None or wanted is None else float((top == wanted).mean())


def output_error_of(outputs: Outputs, teacher: Outputs) -> float:
    """The squared error of all outputs as a part of the teacher's variance; 0 where no output is of floats."""
    errors: Sequence[float] = [
        float(np.square(outputs[name] - wanted.astype(np.float64)).mean() / max(float(wanted.var()), 1e-12))
        for name, wanted in teacher.items()
        if wanted.dtype.kind == "f"
    ]
    return float(np.mean(errors)) if errors else 0.0
