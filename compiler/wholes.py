"""The uncut network, as a board would run it alone: in each precision of the recipe, with what that costs.

The fp32 network is the teacher itself, as ONNX; the others are compared with it on held-out frames, and left out of the
bundle where they lose too much.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from narrowcast.compiler.errors import VerificationError, first_line
from narrowcast.compiler.heads import agreement_of, output_error_of
from narrowcast.compiler.progress import Progress
from narrowcast.compiler.recipe import ExportSettings
from narrowcast.compiler.verify import OnnxNetwork
from narrowcast.compiler.ways import Outputs
from narrowcast.head.choice import LEAST_RUNS, MEASURING_MS, MOST_RUNS, WARM_RUNS
from narrowcast.transport.bundle.manifest import Precision

CHUNK = 16


def try_wholes(
    wholes: Mapping[Precision, bytes], frames: npt.NDArray[np.uint8], progress: Progress
) -> dict[Precision, dict[str, float | None]]:
    """Agreement and output error of each, against the one in fp32 (which has none of its own).

    Args:
        wholes: ONNX by precision, fp32 first.
        frames: uint8 ``[N, H, W, 3]``, not trained on.
        progress: told where it is.

    Raises:
        VerificationError: a network does not run; names the precision.
    """
    found: dict[Precision, dict[str, float | None]] = {}
    exact: Outputs = {}
    with progress.task("comparing precisions of the whole network", len(wholes), "networks") as task:
        for name, model in wholes.items():
            network = OnnxNetwork(model)
            try:
                chunks = [network(image=frames[at : at + CHUNK]) for at in range(0, len(frames), CHUNK)]
            except Exception as error:  # ONNX Runtime raises exceptions of its own C++ kind
                raise VerificationError(f"the {name} whole network does not run: {first_line(error)}") from error
            outputs = {key: np.concatenate([chunk[key] for chunk in chunks]) for key in network.outputs}
            exact = exact or outputs
            found[name] = {"agreement": agreement_of(outputs, exact), "output_error": output_error_of(outputs, exact)}
            task.advance(1)
    return found


def wholes_too_lossy(
    trials: Mapping[Precision, Mapping[str, float | None]], settings: ExportSettings
) -> dict[Precision, str]:
    """The precisions that lose more than the recipe allows, each with how much. What is no number is too much."""
    reasons: dict[Precision, str] = {}
    for name, trial in trials.items():
        if (agreement := trial["agreement"]) is not None:
            if not agreement >= 1 - settings.max_agreement_loss - 1e-9:  # not a hair's breadth of floats
                reasons[name] = (
                    f"it agrees with fp32 on {100 * agreement:.3g} % of the frames; "
                    f"[export] max_agreement_loss is {settings.max_agreement_loss}"
                )
        elif not (error := trial["output_error"] or 0.0) <= settings.max_error_growth:
            reasons[name] = (
                f"its output error is {100 * error:.3g} % of the variance of fp32's outputs; "
                f"[export] max_error_growth is {settings.max_error_growth}"
            )
    return reasons


def whole_times(wholes: Mapping[Precision, bytes], frame: npt.NDArray[np.uint8]) -> dict[Precision, float]:
    """Median milliseconds of one frame uint8 ``[H, W, 3]`` on ONNX Runtime here, by precision, in turns."""
    networks = {name: OnnxNetwork(model) for name, model in wholes.items()}
    samples: dict[Precision, list[float]] = {name: [] for name in wholes}
    started = 0
    for number in range(WARM_RUNS + MOST_RUNS):
        if number == WARM_RUNS:
            started = perf_counter_ns()
        if number >= WARM_RUNS + LEAST_RUNS and (perf_counter_ns() - started) / 1e6 > MEASURING_MS:
            break
        for name, network in networks.items():
            before = perf_counter_ns()
            network(image=frame[None])
            if number >= WARM_RUNS:
                samples[name].append((perf_counter_ns() - before) / 1e6)
    return {name: round(float(np.median(times)), 3) for name, times in samples.items()}


def whole_figures(
    times: Mapping[Precision, float],
    trials: Mapping[Precision, Mapping[str, float | None]],
    left_out: dict[Precision, str],
) -> dict[str, Any]:
    """For the manifest."""
    rows = {name: {"ms": times[name], **trials.get(name, {})} for name in times}
    return {"precisions": rows, "left_out": left_out}
