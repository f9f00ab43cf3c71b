"""How long a board takes for operators, measured there once, to predict networks from anywhere; see docs/planning.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

from narrowcast.devices.calibration.fit import OTHER, Kind, nearest
from narrowcast.devices.calibration.operations import Operation
from narrowcast.devices.errors import CalibrationError
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.files import replacing
from narrowcast.transport.structs import Settings, from_json, to_json

Positive = Annotated[float, msgspec.Meta(ge=0, le=1e15)]
MOST_BYTES = 16 << 20


class KindSettings(Settings, frozen=True):
    """One kind of operator; see :class:`narrowcast.devices.calibration.fit.Kind`."""

    coefficients: Annotated[list[Positive], msgspec.Meta(min_length=5, max_length=5)]
    coordinates: list[list[float]]
    residuals: list[Annotated[float, msgspec.Meta(ge=-10, le=10)]]

    def __post_init__(self) -> None:
        if len(self.coordinates) != len(self.residuals):
            raise ValueError(
                f"{len(self.coordinates)} coordinates, {len(self.residuals)} residuals; one belongs to one"
            )


class Machine(Settings, frozen=True):
    """Where it was measured."""

    target: str | None
    model: str | None
    cpu: str | None
    cpus: int
    architecture: str
    os: str | None
    kernel: str | None
    jetpack: str | None
    runtime: str


class PredictionError(Settings, frozen=True):
    """How far predictions are off, each graph predicted from a fit without it.

    Attributes:
        graphs: how many.
        median: of the error's size, as a part of what was measured.
        p90: nine of ten graphs are off by no more.
    """

    graphs: int
    median: Positive
    p90: Positive

    def __str__(self) -> str:
        """In words, for wherever a prediction is shown."""
        return (
            f"off by {100 * self.median:.0f} % in the middle and {100 * self.p90:.0f} % in nine of ten of {self.graphs} "
            "graphs that the fit had not seen"
        )


class MeasuredPower(Settings, frozen=True):
    """The board's power while it was calibrated; see the target's ``power.scope`` for what it covers.

    Attributes:
        idle_mw: before, doing nothing.
        busy_mw: while networks ran.
        samples: of the latter.
        scope: what was measured.
    """

    idle_mw: Positive
    busy_mw: Positive
    samples: int
    scope: str


class Predicted(NamedTuple):
    """What a network will take.

    Attributes:
        ms: its time.
        mj: its energy, all of the board's power in that time; None where power was not measured.
        net_mj: that without what the board takes doing nothing.
        unknown: kinds of operators that were never measured: taken for some other.
    """

    ms: float
    mj: float | None
    net_mj: float | None
    unknown: Sequence[str]


class Calibration(Settings, frozen=True, dict=True):
    """A board's times, as ``narrowcast probe --calibrate`` writes them.

    Attributes:
        format: always ``narrowcast-calibration``.
        version: of the format.
        machine: where it was measured.
        threads: that networks computed with.
        blocked: whether ONNX Runtime stores activations in blocks of channels there.
        graph_us: what a run of a network takes besides its operators.
        node_us: what each operator takes besides its own time (less than 0 is not possible).
        kinds: of operators.
        error: of predictions.
        power: None where it cannot be measured there.
    """

    format: Literal["narrowcast-calibration"]
    version: Literal[1]
    machine: Machine
    threads: Annotated[int, msgspec.Meta(ge=1)]
    blocked: bool
    graph_us: Positive
    node_us: Positive
    kinds: dict[str, KindSettings]
    error: PredictionError
    power: MeasuredPower | None = None

    def __post_init__(self) -> None:
        if OTHER not in self.kinds:
            raise ValueError(f"kinds has no {OTHER!r}: nothing to take unknown operators for")

    @cached_property
    def _fitted(self) -> Mapping[str, Kind]:
        return as_kinds(self.kinds)

    def predict(self, operations: Sequence[Operation]) -> Predicted:
        """What a network of these operators will take."""
        ms, unknown = predict_ms(self._fitted, operations, self.graph_us, self.node_us)
        if self.power is None:
            return Predicted(ms, None, None, unknown)
        net = max(0.0, self.power.busy_mw - self.power.idle_mw)
        return Predicted(ms, ms * self.power.busy_mw / 1e3, ms * net / 1e3, unknown)

    def __str__(self) -> str:
        """Where it is from."""
        return f"{self.machine.model or self.machine.cpu or self.machine.architecture}, {self.machine.runtime}"


def as_kinds(kinds: Mapping[str, KindSettings]) -> dict[str, Kind]:
    """Settings as what the fit works with."""
    return {
        name: Kind(tuple(kind.coefficients), tuple(map(tuple, kind.coordinates)), tuple(kind.residuals))
        for name, kind in kinds.items()
    }


def predict_ms(
    kinds: Mapping[str, Kind], operations: Sequence[Operation], graph_us: float, node_us: float
) -> tuple[float, list[str]]:
    """Milliseconds of a network, and the kinds of its operators that were never measured."""
    unknown = sorted({operation.kind for operation in operations} - kinds.keys())
    total = graph_us + sum(nearest(kinds, one.kind).us(one) + node_us for one in operations)
    return total / 1e3, unknown


def load_calibration(path: str | Path) -> Calibration:
    """A calibration from its file.

    Raises:
        CalibrationError: there is none, or it is none.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MOST_BYTES:
        raise CalibrationError(f"{path} has more than {MOST_BYTES} bytes: no calibration")
    try:
        return from_json(Calibration, data, str(path))
    except ConfigError as error:
        raise CalibrationError(f"{error}; narrowcast probe --calibrate FILE makes one") from error


def save_calibration(calibration: Calibration, path: str | Path) -> None:
    """Writes it, whole or not at all.

    Raises:
        CalibrationError: it cannot be written.
    """
    try:
        with replacing(Path(path)) as out:
            out.write(to_json(calibration, indent=1) + b"\n")
    except OSError as error:
        raise CalibrationError(f"{path} cannot be written: {error.strerror}") from error
