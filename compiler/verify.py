"""Whether the exported parts do what the trained network does, on real frames, at every level."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from narrowcast.compiler.errors import VerificationError
from narrowcast.compiler.modules import Head, Tail

# fp32 libraries add up in different orders: a latent within 1e-6 of a rounding boundary may fall on either side of it.
MAX_MOVED_SYMBOLS = 1e-4
# Largest difference of an output, as a part of the largest value that it has on that frame.
MAX_OUTPUT_DIFFERENCE = 1e-3


@dataclass(frozen=True)
class Verified:
    """How close the exported parts are.

    Attributes:
        moved_symbols: part of the symbols that differ (by one; more is an error, unless symbols have no order).
        output_difference: the largest, as a part of the output's largest value.
    """

    moved_symbols: float
    output_difference: float


class OnnxNetwork:
    """An ONNX network of bytes, on ONNX Runtime."""

    def __init__(self, model: bytes, threads: int = 0) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        try:
            self._session: Any = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise VerificationError(f"ONNX Runtime does not load an exported network: {error}") from error
        self.inputs = [entry.name for entry in self._session.get_inputs()]
        self.outputs = [entry.name for entry in self._session.get_outputs()]

    def __call__(self, **inputs: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name; inputs that the network does not have are left out."""
        feed = {name: value for name, value in inputs.items() if name in self.inputs}
        return dict(zip(self.outputs, self._session.run(self.outputs, feed), strict=True))


def verify(
    head: Head,
    tail: Tail,
    head_onnx: bytes,
    tail_onnx: bytes,
    batches: Sequence[npt.NDArray[np.uint8]],
    levels: int,
) -> Verified:
    """Compares torch with ONNX Runtime on batches of frames uint8 ``[N, H, W, 3]``, each of a size, at every level.

    Raises:
        VerificationError: too many symbols moved, one moved by more than a step, or an output is too far off.
    """
    exported_head, exported_tail = OnnxNetwork(head_onnx), OnnxNetwork(tail_onnx)
    moved, total = 0, 0
    apart: list[float] = []
    for level, frames in itertools.product(range(levels), batches):
        at = np.full(len(frames), level, np.int64)
        with torch.no_grad():
            wanted = head(torch.from_numpy(frames), torch.from_numpy(at)).numpy()
        got = np.concatenate([exported_head(image=f[None], level=at[:1])["symbols"] for f in frames])
        if got.shape != wanted.shape or got.dtype != np.uint8:
            raise VerificationError(f"the exported head gives {got.dtype} {list(got.shape)}, not {list(wanted.shape)}")
        steps = np.abs(got.astype(int) - wanted.astype(int))
        if steps.max() > 1 and head.bottleneck.ordered:
            raise VerificationError(f"level {level}: the exported head is {steps.max()} steps off in a symbol")
        moved, total = moved + int((steps > 0).sum()), total + steps.size
        apart.append(outputs_apart(tail, exported_tail, wanted, at))
    if moved > MAX_MOVED_SYMBOLS * total:
        raise VerificationError(
            f"{moved} of {total} symbols of the exported head differ; {MAX_MOVED_SYMBOLS} are allowed"
        )
    worst = float(np.max(apart))  # NaN where one is, unlike Python's own max
    check_outputs_apart(worst, "tail")
    return Verified(moved / total, worst)


def check_outputs_apart(difference: float, what: str) -> None:
    """Checks what :func:`outputs_apart` gave; ``what`` names the network.

    Raises:
        VerificationError: it is too much, or no number.
    """
    if math.isnan(difference):
        raise VerificationError(
            f"an output of the exported {what} is no number, or should be none: check the teacher's weights, and [input] "
            "range, mean and std"
        )
    if not difference <= MAX_OUTPUT_DIFFERENCE:
        raise VerificationError(
            f"an output of the exported {what} is {difference:.2g} of its largest value off; "
            f"{MAX_OUTPUT_DIFFERENCE} is allowed"
        )


def outputs_apart(
    tail: Tail, exported: OnnxNetwork, symbols: npt.NDArray[np.uint8], level: npt.NDArray[np.int64]
) -> float:
    """The largest difference of any output on the same symbols; NaN where there is one in any."""
    with torch.no_grad():
        wanted = tail(torch.from_numpy(symbols), torch.from_numpy(level))
    got = exported(symbols=symbols, level=level)
    pairs = zip(wanted, exported.outputs, strict=True)
    return float(np.max([largest_difference(got[name], reference.numpy()) for reference, name in pairs]))


def largest_difference(got: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """The largest difference of an output, as a part of the largest finite value that is wanted.

    Equal infinities, as of masks, are no difference; with a NaN anywhere it is NaN.
    """
    values, found = wanted.astype(np.float64), got.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.where(found == values, 0.0, np.abs(found - values)).max(initial=0)
    return float(apart / max(np.abs(values[np.isfinite(values)]).max(initial=0), 1e-6))
