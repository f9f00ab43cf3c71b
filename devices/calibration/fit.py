"""From measured operators to predicted ones.

Per kind of operator a roofline with its corners rounded off: time = overhead + multiply-accumulates / rate + bytes /
bandwidth + ..., no coefficient below 0, fitted by least squares of the relative error (S. Williams, A. Waterman and
D. Patterson, "Roofline", CACM 2009, for what bounds an operator). What remains is smoothed over the operators of the kind
that are near in size and shape (Nadaraya and Watson's kernel regression of the error's logarithm), drawn towards "no
correction" where none is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from narrowcast.devices.calibration.operations import Operation

Floats = npt.NDArray[np.float64]
# Of the kernel, in natural logarithms of size: operators half as large again count almost as the same.
WIDTH = 0.6
# How much "no correction" counts, in measured operators right beside.
SHRINK = 0.15
# What an operator of a kind that was never measured is taken for.
OTHER = "other"


class Kind(NamedTuple):
    """A kind's fit.

    Attributes:
        coefficients: microseconds per unit of each of :attr:`Operation.features`.
        coordinates: of the measured operators.
        residuals: natural logarithm of measured by fitted, of each.
    """

    coefficients: tuple[float, ...]
    coordinates: tuple[tuple[float, ...], ...]
    residuals: tuple[float, ...]

    def us(self, operation: Operation) -> float:
        """What an operator takes, microseconds."""
        plain = float(np.dot(self.coefficients, operation.features))
        return plain * float(np.exp(_smoothed(operation.coordinates, self.coordinates, self.residuals)))


def nearest(kinds: Mapping[str, Kind], name: str) -> Kind:
    """A kind by its name; of convolutions and matrix products that were never measured, the most alike; else any other.

    Raises:
        KeyError: there is not even :data:`OTHER`.
    """
    what, _, dtype = name.rpartition(" ")
    alike = [name]
    if what.startswith("conv"):
        alike += [f"conv dense {dtype}", f"{what} float", "conv dense float"]
    elif what.startswith("matmul"):
        alike += ["matmul float"]
    else:
        alike += [f"{what} float"]
    return next((kinds[one] for one in alike if one in kinds), None) or kinds[OTHER]


def fit(operations: Sequence[Operation], us: Sequence[float]) -> dict[str, Kind]:
    """Kinds by name, :data:`OTHER` among them where any operator is one on single numbers.

    Args:
        operations: measured ones.
        us: what each took; at least half of the clock's microsecond counts.
    """
    times = np.maximum(np.asarray(us, np.float64), 0.5)
    members: dict[str, list[int]] = {}
    for number, operation in enumerate(operations):
        members.setdefault(operation.kind, []).append(number)
        if operation.macs == 0 and operation.moved > 0:
            members.setdefault(OTHER, []).append(number)
    return {kind: _kind([operations[n] for n in which], times[which]) for kind, which in sorted(members.items())}


def _kind(operations: Sequence[Operation], times: Floats) -> Kind:
    features = np.array([operation.features for operation in operations])
    coefficients = nonnegative(features / times[:, None], np.ones(len(times)))
    fitted = np.maximum(features @ coefficients, 1e-3)
    coordinates = tuple(operation.coordinates for operation in operations)
    residuals = tuple(float(value) for value in np.clip(np.log(times / fitted), -1.5, 1.5))
    return Kind(tuple(float(c) for c in coefficients), coordinates, residuals)


def nonnegative(matrix: Floats, wanted: Floats) -> Floats:
    """The least-squares solution of ``matrix @ x = wanted`` with no ``x`` below 0.

    Of few unknowns: every set of them that may be above 0 is tried (the solution is an ordinary one on one of these).
    """
    unknowns = matrix.shape[1]
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-30)
    best, least = np.zeros(unknowns), float(wanted @ wanted)
    for count in range(1, unknowns + 1):
        for chosen in map(list, combinations(range(unknowns), count)):
            if len(chosen) > len(wanted):
                continue
            found = np.linalg.lstsq(matrix[:, chosen] / scale[chosen], wanted, rcond=None)[0]
            error = float(np.square(matrix[:, chosen] / scale[chosen] @ found - wanted).sum())
            if (found >= 0).all() and error < least * (1 - 1e-9):
                best, least = np.zeros(unknowns), error
                best[chosen] = found / scale[chosen]
    return best


def _smoothed(at: Sequence[float], places: Iterable[Sequence[float]], values: Sequence[float]) -> float:
    if not values:
        return 0.0
    apart = np.array([[a - b for a, b in zip(at, place, strict=False)] for place in places])
    weights = np.exp(-np.square(apart / WIDTH).sum(axis=1) / 2)
    return float(weights @ np.asarray(values) / (weights.sum() + SHRINK))
