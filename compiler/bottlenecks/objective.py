"""What the residual bottleneck is trained to do: give the teacher's features and answers back, with few bits.

Nothing here needs labels: the teacher's own features at the cut, further on, and its outputs are the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from narrowcast.compiler.bottlenecks.base import Batch, Loss, Problem, Targets
from narrowcast.compiler.bottlenecks.channels_last import pixel_by_pixel, runs_channels_last
from narrowcast.compiler.bottlenecks.crops import WHOLE, Cropper
from narrowcast.compiler.bottlenecks.exact import in_fp32
from narrowcast.compiler.bottlenecks.outputs import output_errors, relative_errors
from narrowcast.compiler.bottlenecks.saliency import saliency_weights
from narrowcast.compiler.cuts import find_cuts
from narrowcast.compiler.cuts.split import suffix

# The first stage has only one of the distortion's three terms, so bits weigh less in it.
FIRST_STAGE_RATE = 0.1


class Coded(NamedTuple):
    """A batch that went through encoder, quantizer and decoder.

    Attributes:
        features: restored, ``[N, *cut.shape]``.
        bits: estimated, per image, ``[N]``.
        level: int64 ``[N]``.
    """

    features: Tensor
    bits: Tensor
    level: Tensor


class Terms(NamedTuple):
    """Which parts the distortion has, beside the features at the cut, which weigh 1.

    Attributes:
        deep: weight of the features further on; 0 leaves them out.
        outputs: weight of the network's outputs; 0 leaves them out.
        saliency: cells at the cut count by what they mean for the outputs (see ``saliency.py``).
        balance: a level's loss counts by its weight of a bit to the power of minus this: 0 leaves the losses as they are,
            of which those of few bytes are the largest.
    """

    deep: float = 1.0
    outputs: float = 1.0
    saliency: bool = False
    balance: float = 0.25


class Objective:
    """Distortion plus weighted bits, at levels drawn at random.

    Args:
        code: puts a batch through the bottleneck.
        problem: what the bottleneck is for.
        weights: what a bit per input pixel weighs, per level.
        terms: of the distortion; None has those that :class:`Terms` has by itself.
        crop: what the first stage sees of a batch; None shows it whole.
    """

    def __init__(
        self,
        code: Callable[[Batch], Coded],
        problem: Problem,
        weights: Sequence[float],
        terms: Terms | None = None,
        crop: Cropper | None = None,
    ) -> None:
        self._code = code
        self._layout = problem.layout
        self._task = problem.task
        self._terms = terms = terms or Terms()
        self._crop = crop
        self._pixels = problem.contract.size[0] * problem.contract.size[1]
        self._weights = torch.tensor(weights, device=problem.device)
        taps = _deep_taps(problem) if terms.deep else []
        self._layers = suffix(problem.traced, problem.cut.node, taps).to(problem.device)
        self._taps = [tap.name for tap in taps]
        self._channels_last = runs_channels_last(self._layers, problem.device)

    def match_features(self, batch: Batch) -> Loss:
        """The features at the cut alone: cheap, since the tail does not run (but for the sake of saliency)."""
        saliency = self._teacher(batch).saliency if self._terms.saliency else None
        if self._crop is None:
            coded = self._code(batch)
            error = self._errors_at_cut(coded.features, batch.features, saliency)
            return self._loss(coded, {"features": error}, FIRST_STAGE_RATE, self._pixels)
        crop = self._crop(batch)
        coded = self._code(crop.batch)
        error = self._errors_at_cut(coded.features, crop.batch.features, crop.of(saliency), crop.inside)
        return self._loss(coded, {"features": error}, FIRST_STAGE_RATE, self._pixels * crop.part)

    def match_outputs(self, batch: Batch) -> Loss:
        """The features at the cut and behind it, and the outputs."""
        coded = self._code(batch)
        if not (self._terms.deep or self._terms.outputs):
            saliency = self._teacher(batch).saliency if self._terms.saliency else None
            error = self._errors_at_cut(coded.features, batch.features, saliency)
            return self._loss(coded, {"features": error}, FIRST_STAGE_RATE, self._pixels)
        wanted = self._teacher(batch)
        deep, outputs = self._deep(coded.features)
        errors = {"features": self._errors_at_cut(coded.features, batch.features, wanted.saliency)}
        if deep:
            each = [relative_errors(one, other) for one, other in zip(deep, wanted.deep, strict=True)]
            errors["deep"] = torch.stack(each).mean(0)
        if self._terms.outputs:
            errors["outputs"] = output_errors(outputs, wanted.outputs, self._task)
        return self._loss(coded, errors, 1.0, self._pixels)

    @property
    def targets(self) -> Targets | None:
        """What :meth:`match_outputs` asks of the teacher. None where it asks nothing, or for saliency's sake a gradient."""
        if self._terms.saliency or not (self._terms.deep or self._terms.outputs):
            return None
        return Targets(" ".join([*self._taps, "outputs"]), self._deep)

    def _teacher(self, batch: Batch) -> _Wanted:
        """What the teacher makes of a batch behind the cut."""
        if batch.targets is not None:
            deep, outputs = batch.targets
            return _Wanted(deep, outputs, None)
        if not self._terms.saliency:
            with torch.no_grad():
                deep, outputs = self._deep(batch.features)
            return _Wanted(deep, outputs, None)
        with torch.enable_grad():
            features = batch.features.detach().clone().requires_grad_()
            deep, outputs = self._deep(features)
            saliency = saliency_weights(features, outputs, self._layout)
        return _Wanted([one.detach() for one in deep], pytree.tree_map(_detached, outputs), saliency)

    def _deep(self, features: Tensor) -> tuple[Sequence[Tensor], Any]:
        """The features further on, and the outputs."""
        deep, outputs = self._layers(pixel_by_pixel(features) if self._channels_last else features)
        return deep, outputs

    @in_fp32
    def _errors_at_cut(
        self, got: Tensor, wanted: Tensor, saliency: Tensor | None, inside: tuple[slice, slice] = WHOLE
    ) -> Tensor:
        """Squared error per image ``[N]``, as a part of the wanted features' variance over the batch."""
        rows, columns = inside
        squared = self._layout.to_map(got - wanted).square()[:, :, rows, columns]
        if saliency is not None:
            squared = squared * saliency[:, :, rows, columns]
        return squared.flatten(1).mean(1) / wanted.var().clamp_min(1e-12)

    def _loss(self, coded: Coded, errors: dict[str, Tensor], rate: float, pixels: float) -> Loss:
        weight = self._weights[coded.level]
        weights = {"features": 1.0, "deep": self._terms.deep, "outputs": self._terms.outputs}
        distortion = torch.stack([weights[name] * error for name, error in errors.items()]).sum(0)
        cost = distortion + rate * weight * coded.bits / pixels
        # Without this the levels with few bytes, whose loss is mostly rate, would drown the others.
        balance = self._terms.balance
        importance = weight.pow(-balance) * self._weights.pow(balance).mean()
        figures = {name: error.mean().item() for name, error in errors.items()}
        return Loss((importance * cost).mean(), {"bytes": coded.bits.mean().item() / 8, **figures})


class _Wanted(NamedTuple):
    deep: Sequence[Tensor]
    outputs: Any
    saliency: Tensor | None


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _deep_taps(problem: Problem, count: int = 3) -> list[Any]:
    """Up to ``count`` later cuts, evenly spread over the work behind the cut."""
    later = [cut for cut in find_cuts(problem.traced) if cut.is_module and cut.macs_before > problem.cut.macs_before]
    if not later:
        return []
    first, last = problem.cut.macs_before, later[-1].macs_before
    wanted = [first + (last - first) * (k + 1) / (count + 1) for k in range(count)]
    chosen = {min(later, key=lambda cut: abs(cut.macs_before - macs)).node: None for macs in wanted}
    order = list(problem.traced.module.graph.nodes)
    return sorted(chosen, key=order.index)
