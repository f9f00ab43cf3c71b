"""What an evaluation found: scores with their intervals, and the split beside the best that image codecs can do.

``docs/evaluation.md`` says how each figure is computed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from narrowcast.compiler.bootstrap import CONFIDENCE, RESAMPLES, SEED, Interval
from narrowcast.compiler.curves import Curve, cheapest, front, pareto
from narrowcast.compiler.errors import DataError
from narrowcast.compiler.samples import Samples
from narrowcast.transport.files import replacing
from narrowcast.transport.tasks import MAIN

Floats = npt.NDArray[np.float64]
By = Literal["accuracy", "agreement"]
BY: tuple[By, ...] = ("accuracy", "agreement")
BEST = "best"  # the best of the lossy codecs, as a way of its own
LOSSY = ("jpeg", "webp", "avif")


@dataclass
class Score:
    """One way of getting answers, on the same images.

    Attributes:
        way: ``teacher``, ``split``, ``exit`` (the local exit), ``local`` (the uncut network on the device, in the precision
            that was asked for, where that is not the teacher's own), ``png``, ``jpeg``, ``webp``, ``avif``.
        setting: the level or the quality; None where there is none.
        mean_bytes: per frame: a packet with its header, or an image file; None where nothing is sent.
        accuracy: the task's figure, 0..1: part of the images with the right top class, mAP50 or mIoU; None without labels
            or a task that has one.
        agreement: the same with the teacher's answers for the truth; None without the teacher or such a task.
        output_error: squared error of all outputs as a part of their variance; None without the teacher.
        scale: the side of the image that is sent, as a part of the network's input; None where no image is sent.
        mean_bytes_interval: from, to; so are the other intervals, each None where its figure is.
        accuracy_interval: of the accuracy.
        agreement_interval: of the agreement.
        accuracy_gain: accuracy minus the teacher's; None without either, and for the teacher.
        accuracy_gain_interval: of the difference, on the same images.
        on_front: whether no other setting of any lossy codec has as few bytes and reaches as much (accuracy where there
            are labels, else agreement).
    """

    way: str
    setting: int | None
    mean_bytes: float | None
    accuracy: float | None
    agreement: float | None
    output_error: float | None
    scale: float | None = None
    mean_bytes_interval: Interval | None = None
    accuracy_interval: Interval | None = None
    agreement_interval: Interval | None = None
    accuracy_gain: float | None = None
    accuracy_gain_interval: Interval | None = None
    on_front: bool = False

    def reached(self, by: By) -> float | None:
        """Accuracy or agreement."""
        return self.accuracy if by == "accuracy" else self.agreement

    def reached_interval(self, by: By) -> Interval | None:
        """The interval of accuracy or agreement."""
        return self.accuracy_interval if by == "accuracy" else self.agreement_interval


class Outcome(NamedTuple):
    """One score's images, one by one; all outcomes of an evaluation are of the same images in the same order.

    Attributes:
        right: bool ``[N]``, or what the task's figure is computed from; None without labels or classes.
        agreed: the same, against the teacher's answers; None without the teacher or classes.
        sizes: bytes int64 ``[N]``; None where nothing is sent.
    """

    right: npt.NDArray[np.bool_] | Samples | None
    agreed: npt.NDArray[np.bool_] | Samples | None
    sizes: npt.NDArray[np.int64] | None


@dataclass
class Comparison:
    """The split beside an image codec, or beside the best of them.

    Attributes:
        against: ``jpeg``, ``webp``, ``avif``, or ``best``.
        by: the figure at which bytes are compared.
        bd_rate: mean difference in bytes at an equal figure, as a part (-0.75: three quarters less); None where the curves
            share no range of figures.
        bd_rate_interval: None where ``bd_rate`` is, or where too many resamples share no range.
        low: the lowest figure that both curves reach; None where they share none.
        high: the highest.
        bytes_there: per level, the bytes at which the codec reaches the level's figure; None where it does not.
    """

    against: str
    by: By
    bd_rate: float | None
    bd_rate_interval: Interval | None
    low: float | None
    high: float | None
    bytes_there: list[float | None]


@dataclass
class Evaluation:
    """Everything measured on one set of images.

    Attributes:
        model: the bundle's name.
        release: its release.
        images: how many were evaluated.
        labelled: whether there were labels.
        metric: what accuracy and agreement are: ``top-1``, ``mAP50`` or ``mIoU`` (``docs/evaluation.md``).
        tail: which of the bundle's tails was evaluated.
        skipped: files that could not be read, and why.
        unlabelled: images of the folder that were left out: there are labels, and none of theirs.
        scores: one per way and setting.
        comparisons: of the split with each lossy codec and the best of them, by every figure there is.
        absent: codecs that this machine's Pillow lacks.
        outcomes: per score, the single images; not part of :meth:`as_dict`.
    """

    model: str
    release: int
    images: int
    labelled: bool
    metric: str = "top-1"
    tail: str = MAIN
    skipped: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list, repr=False, compare=False)

    def of(self, way: str) -> list[Score]:
        """The scores of one way, in the order of its settings."""
        return [score for score in self.scores if score.way == way]

    @property
    def by(self) -> By:
        """What the ways are compared by, unless told otherwise: accuracy where there is one, else agreement."""
        return "accuracy" if any(score.accuracy is not None for score in self.scores) else "agreement"

    def front(self, way: str, by: By | None = None) -> list[Score]:
        """The scores of one way (of all lossy codecs for ``best``) that none of them beats, by ascending bytes."""
        scores, sizes, reached = self._measured(LOSSY if way == BEST else (way,), by or self.by)
        return [scores[k] for k in pareto(sizes, reached)]

    def curve(self, way: str, by: By | None = None) -> Curve:
        """Bytes over accuracy or agreement, of one way or of ``best``. Empty where nothing was measured."""
        scores, sizes, reached = self._measured(LOSSY if way == BEST else (way,), by or self.by)
        return curves_of([(score.way, score.scale) for score in scores], sizes, reached).get(way, front([], []))

    def _measured(self, ways: Sequence[str], by: By) -> tuple[list[Score], Floats, Floats]:
        """The scores of some ways that have bytes and the figure, and both of these."""
        found = [(s, s.mean_bytes, s.reached(by)) for s in self.scores if s.way in ways]
        kept = [(s, size, reached) for s, size, reached in found if size is not None and reached is not None]
        return [s for s, _, _ in kept], np.array([size for _, size, _ in kept]), np.array([at for _, _, at in kept])

    def bytes_at_accuracy(self, way: str, accuracy: float, *, by: By = "accuracy") -> float | None:
        """The bytes at which a way reaches ``accuracy`` (or agreement), interpolated on its :meth:`curve`.

        None where it does not at any setting. Never below the smallest file that was tried.
        """
        return self.curve(way, by).bytes_at(accuracy)

    def comparison(self, against: str, by: By | None = None) -> Comparison | None:
        """The comparison with a codec or with ``best``; None where there is none."""
        wanted = (against, by or self.by)
        return next((c for c in self.comparisons if (c.against, c.by) == wanted), None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(replace(self, outcomes=[]))
        del found["outcomes"]
        return found | {"bootstrap": {"resamples": RESAMPLES, "confidence": CONFIDENCE, "seed": SEED}}

    def write_csv(self, path: Path) -> None:
        """One row per score: its attributes, an interval as two columns (``..._low``, ``..._high``); empty for None."""
        rows = [_row(score) for score in self.scores]
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        with replacing(path) as out:
            out.write(table.getvalue().encode())


def curves_of(groups: Sequence[tuple[str, float | None]], mean_bytes: Floats, reached: Floats) -> Mapping[str, Curve]:
    """The curve of every way, and under ``best`` that of the lossy codecs together.

    A way's curve is the cheapest of the fronts of its scales and of the front of them all: a point that only just belongs
    to the front of all must not make dearer what lies between two qualities of one scale.

    Args:
        groups: ``[K]``, the way and scale of each point.
        mean_bytes: ``[K]``.
        reached: ``[K]``: accuracy or agreement.
    """
    rows: dict[str, dict[float | None, list[int]]] = {}
    for row, (way, scale) in enumerate(groups):
        rows.setdefault(way, {}).setdefault(scale, []).append(row)

    def curve(parts: Sequence[list[int]], *others: Curve) -> Curve:
        together = [row for part in parts for row in part]
        chosen = [*parts, together] if len(parts) > 1 else parts
        return cheapest([*(front(mean_bytes[part], reached[part]) for part in chosen), *others])

    curves = {way: curve(list(scales.values())) for way, scales in rows.items()}
    if codecs := [way for way in LOSSY if way in curves]:
        points = [row for way in codecs for part in rows[way].values() for row in part]
        curves[BEST] = curve([points], *(curves[way] for way in codecs))
    return curves


def check_measurable(by: By, model: str, *, labelled: bool, teacher: bool, classes: bool) -> None:
    """Checks that a figure can be measured with what there is.

    Args:
        by: the figure.
        model: the bundle's name.
        labelled: whether the images have labels.
        teacher: whether the bundle holds the whole network.
        classes: whether an output is class scores.

    Raises:
        DataError: it cannot; says what it wants.
    """
    if not classes:
        raise DataError(f"{by} is of classes, and no output of {model} is class scores")
    if by == "accuracy" and not labelled:
        raise DataError(
            "accuracy wants labels, and these images have none: labels.csv (columns file and label) in their folder, "
            "--labels, or one folder per class; for boxes annotations.json, for maps of classes a folder of masks"
        )
    if by == "agreement" and not teacher:
        raise DataError(
            f"agreement wants the teacher, and {model} holds no whole network: compile with [export] whole = true"
        )


def _row(score: Score) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for entry in fields(score):
        value = getattr(score, entry.name)
        if entry.name.endswith("_interval"):
            name = entry.name.removesuffix("_interval")
            row[f"{name}_low"], row[f"{name}_high"] = value or (None, None)
        else:
            row[entry.name] = int(value) if isinstance(value, bool) else value
    return row
