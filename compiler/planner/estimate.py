"""What a split at a cut will send: estimated from the features, known, or made where a preset learns nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from narrowcast.compiler.bottlenecks import Batch, Bottleneck, BottleneckSettings, Preset, Problem
from narrowcast.compiler.bottlenecks.base import TablesKind
from narrowcast.compiler.codec import fit_codec
from narrowcast.compiler.modules import flat
from narrowcast.compiler.planner.capture import BATCH, Captured
from narrowcast.compiler.planner.quantize import Code, PatchTransform, coarsest
from narrowcast.compiler.recipe import CodingSettings
from narrowcast.transport.codec import CodecSpec, open_codec
from narrowcast.transport.packed import PackedTables
from narrowcast.transport.packet import STREAM_HEADER_BYTES

# The range coder's own bytes of a frame: its lanes' states.
CODER_BYTES = 12
# Payloads of compiled bottlenecks, in units of the features' entropy at the same agreement: the median of the pairs of
# bench/planner.py, and the range that four fifths of them lie in (docs/planning.md).
LEARNED_RATIO = 1.4
LEARNED_RANGE = (0.35, 1.65)
# Input pixels per cell of the grid that features are transformed on, for presets without a stride of their own.
STRIDE = 16


class Estimate(NamedTuple):
    """Bytes of one packet.

    Attributes:
        packet_bytes: expected, headers included.
        low: four fifths of compiled bottlenecks lie between it and ``high``; all three are equal where packets were made, or
            have one size.
        high: see ``low``.
        kept: the part of the teacher's answers that stay right at ``feature_bytes``.
        feature_bytes: entropy of the features themselves, quantized as coarsely as the answers allow.
        information_bytes: an upper bound of what the features tell of the image, at that coarseness; None where packets
            were made.
        step: of the quantizer, in the units of :mod:`narrowcast.compiler.planner.quantize`; None where packets were made.
    """

    packet_bytes: float
    low: float
    high: float
    kept: float
    feature_bytes: float
    information_bytes: float | None
    step: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "packet_bytes": round(self.packet_bytes, 1),
            "packet_bytes_low": round(self.low, 1),
            "packet_bytes_high": round(self.high, 1),
            "kept": round(self.kept, 4),
            "feature_bytes": round(self.feature_bytes, 1),
            "information_bytes": None if self.information_bytes is None else round(self.information_bytes, 1),
            "step": self.step,
        }


def estimate(
    problem: Problem,
    bottleneck: Bottleneck,
    preset: Preset[Any],
    settings: BottleneckSettings,
    captured: Captured,
    frames: npt.NDArray[np.uint8],
    keep: float,
    tables: TablesKind | None = None,
) -> Estimate:
    """Bytes at a cut. Where every packet of a level has one size, that of the highest level, which sends all channels.

    Args:
        problem: the cut.
        bottleneck: the preset's, untrained.
        preset: whose it is.
        settings: the preset's.
        captured: features and answers of ``frames``.
        frames: uint8 ``[N, H, W, 3]``.
        keep: the part of the answers to keep, in (0, 1].
        tables: ``[coding] tables``; None takes the preset's default.
    """
    if not preset.stages(bottleneck, problem, settings):
        return _made(problem, bottleneck, preset, settings, captured, frames)
    found = from_code(code_at(problem, captured, keep, getattr(settings, "stride", STRIDE)))
    # Which channels are pruned is learned: that size is not known yet.
    if (tables or preset.tables[0]) != "none" or getattr(settings, "prune", False):
        return found
    channels, rows, columns = bottleneck.shape
    packed = PackedTables(bottleneck.alphabet, channels, (channels,))
    size = float(STREAM_HEADER_BYTES + packed.payload_bytes(0, rows * columns))
    return found._replace(packet_bytes=size, low=size, high=size)


@torch.no_grad()
def code_at(problem: Problem, captured: Captured, keep: float, stride: int = STRIDE) -> Code:
    """The features at a cut at the coarsest step that keeps ``keep`` of the answers."""

    def batches() -> Iterator[tuple[int, Tensor]]:
        return captured.batches(problem.cut)

    def kept(features: Tensor, start: int) -> float:
        return captured.answers.kept(flat(problem.after(features)), start)

    def gradients() -> Iterator[tuple[int, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for start, features in batches():
            yield start, _sensitivity(problem, features, generator)

    known = gradients if _is_differentiable(problem) else None
    transform = PatchTransform(batches, problem.layout, problem.contract.size[0], stride, known)
    return coarsest(batches, transform, kept, captured.images, keep)


def _is_differentiable(problem: Problem) -> bool:
    """Whether gradients come through the layers behind the cut."""
    try:
        gradient = _sensitivity(problem, torch.randn(2, *problem.cut.shape), torch.Generator())
    except RuntimeError:  # an operator without a derivative
        return False
    return bool(gradient.isfinite().all()) and bool(gradient.any())


def _sensitivity(problem: Problem, features: Tensor, generator: torch.Generator) -> Tensor:
    """Gradients of a random mixture of the outputs by the features: the mean of their products is ``J.T J``."""
    with torch.enable_grad():
        source = features.detach().requires_grad_()
        outputs = [output for output in flat(problem.after(source)) if output.is_floating_point()]
        total = torch.zeros(())
        for output in outputs:
            mixture = torch.randn(output.shape, generator=generator)
            total = total + (output * mixture).sum() / output.detach().std().clamp_min(1e-12)
        (gradient,) = torch.autograd.grad(total, source)
    return gradient


def from_code(code: Code) -> Estimate:
    """What a learned bottleneck will take, after a short training, where the features themselves take ``code``."""
    overhead = STREAM_HEADER_BYTES + CODER_BYTES
    expected, low, high = (overhead + ratio * code.entropy_bytes for ratio in (LEARNED_RATIO, *LEARNED_RANGE))
    return Estimate(expected, low, high, code.kept, code.entropy_bytes, code.information_bytes, code.step)


@torch.no_grad()
def _made(
    problem: Problem,
    bottleneck: Bottleneck,
    preset: Preset[Any],
    settings: BottleneckSettings,
    captured: Captured,
    frames: npt.NDArray[np.uint8],
) -> Estimate:
    """The packets themselves: calibrated on the images, tables fitted to one half of them, measured on the other."""
    preset.calibrate(bottleneck, problem, settings, _endless(problem, captured, frames))
    parts, right = [], 0.0
    for start in range(0, captured.images, BATCH):
        images = torch.from_numpy(np.array(frames[start : min(start + BATCH, captured.images)]))
        level = torch.zeros(len(images), dtype=torch.int64)
        symbols = bottleneck.encode(problem.normalize(images), level)
        right += captured.answers.kept(flat(problem.after(bottleneck.decode(symbols, level))), start)
        parts.append(symbols.to(torch.uint8).numpy())
    found = np.concatenate(parts)
    half = max(1, len(found) // 2)
    spec = CodecSpec(
        name=bottleneck.codec, shape=bottleneck.shape, alphabet=bottleneck.alphabet, levels=1, quantizer="0" * 64
    )
    spec, data = fit_codec(spec, found[None, :half], None, CodingSettings())
    codec = open_codec(spec, data)
    size = float(np.mean([len(codec.encode(one, 0)) + STREAM_HEADER_BYTES for one in found[half:]]))
    return Estimate(size, size, size, right / captured.images, size, None, None)


def _endless(problem: Problem, captured: Captured, frames: npt.NDArray[np.uint8]) -> Iterator[Batch]:
    for _ in itertools.count():
        for start, features in captured.batches(problem.cut):
            images = torch.from_numpy(np.array(frames[start : start + len(features)]))
            yield Batch(images, features, torch.Generator().manual_seed(0))
