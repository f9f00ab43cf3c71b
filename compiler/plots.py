"""Curves over bytes a frame, drawn: on axes of the caller's, or an evaluation's whole plot in a file.

matplotlib is loaded when something is drawn, not before.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from narrowcast.compiler.bootstrap import Interval
from narrowcast.compiler.curves import Curve
from narrowcast.compiler.errors import DataError
from narrowcast.compiler.scores import BEST, LOSSY, By, Evaluation
from narrowcast.transport.errors import ConfigError, MissingDependencyError
from narrowcast.transport.files import replacing
from narrowcast.transport.structs import nearest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".svg", ".png")
NAMES = {"split": "narrowcast split", "jpeg": "JPEG", "webp": "WebP", "avif": "AVIF", BEST: "best of the codecs"}
UNSENT = {"local": "whole on the device", "exit": "local exit"}
_INK = "#333333"
# Distinct in the common forms of colour blindness (M. Okabe, K. Ito, "Color Universal Design", 2008).
SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "narrowcast",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


class Line(NamedTuple):
    """One way's figures over its bytes, by ascending bytes.

    Attributes:
        name: in the legend.
        bytes: mean bytes a frame.
        reached: accuracy or agreement, 0..1.
        bytes_intervals: of the bytes; empty to draw none.
        intervals: of the figure; empty to draw none.
        curve: what is drawn between the points; straight lines from one to the next if None.
    """

    name: str
    bytes: Sequence[float]
    reached: Sequence[float]
    bytes_intervals: Sequence[Interval] = ()
    intervals: Sequence[Interval] = ()
    curve: Curve | None = None


def draw_over_bytes(axes: Axes, lines: Sequence[Line], by: By, colours: Sequence[str]) -> None:
    """Draws lines on axes with logarithmic bytes: straight between points, as bytes are interpolated."""
    for line, colour in zip(lines, cycle(colours), strict=False):
        percent = [100 * reached for reached in line.reached]
        if line.curve is None:
            axes.plot(line.bytes, percent, color=colour, marker="o", markersize=4, label=line.name)
        else:
            axes.plot(np.exp(line.curve.log_bytes), 100 * line.curve.reached, color=colour, label=line.name)
            axes.plot(line.bytes, percent, color=colour, marker="o", markersize=4, linestyle="")
        for x, y, across, down in zip(line.bytes, percent, line.bytes_intervals, line.intervals, strict=False):
            axes.plot(across, (y, y), color=colour, linewidth=1, alpha=0.6)
            axes.plot((x, x), [100 * end for end in down], color=colour, linewidth=1, alpha=0.6)
    axes.set_xscale("log")
    axes.set_xticks(ticks := _ticks(lines), [f"{t:g}" for t in ticks], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("bytes a frame")
    axes.set_ylabel("accuracy, %" if by == "accuracy" else "agrees with the teacher, %")
    axes.grid(visible=True, linewidth=0.5)
    axes.legend(frameon=False, loc="lower right")


def draw_teacher(axes: Axes, reached: float, colour: str, spread: Interval | None = None) -> None:
    """Draws the teacher's accuracy as a dashed line, its interval as a band."""
    _draw_across(axes, f"teacher {100 * reached:.1f} %", reached, colour, spread, "--", "right")


def draw_unsent(axes: Axes, name: str, reached: float, colour: str, spread: Interval | None = None) -> None:
    """Draws what sends nothing, and so has no place over bytes, as a dotted line across, its interval as a band."""
    _draw_across(axes, f"{name} {100 * reached:.1f} %", reached, colour, spread, ":", "left")


def _draw_across(
    axes: Axes,
    text: str,
    reached: float,
    colour: str,
    spread: Interval | None,
    style: str,
    side: Literal["left", "right"],
) -> None:
    axes.axhline(100 * reached, color=colour, linestyle=style, linewidth=1)
    if spread is not None:
        axes.axhspan(100 * spread.low, 100 * spread.high, color=colour, alpha=0.08, linewidth=0)
    axes.annotate(text, (0.01 if side == "left" else 1, 100 * reached), (0, 4), xycoords=("axes fraction", "data"),
                  textcoords="offset points", ha=side, fontsize=9)  # fmt: skip


def check_plot(path: Path) -> None:
    """Whether a plot can be written to ``path``: worth asking before minutes of evaluation.

    Raises:
        ConfigError: not an SVG or PNG file.
        MissingDependencyError: matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        guess = nearest(path.suffix, list(FORMATS))
        raise ConfigError(f"the plot {path} has the ending {path.suffix!r}; plots are .svg or .png files{guess}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("a plot", "matplotlib", "pip install 'narrowcast[plots]'", error) from error


def write_plot(evaluation: Evaluation, path: Path, by: By | None = None) -> None:
    """Writes accuracy (or agreement) over bytes a frame, with intervals: split, the codecs' fronts, the best of them.

    Args:
        evaluation: with scores that were measured.
        path: an ``.svg`` or ``.png`` file.
        by: the figure; ``evaluation.by`` if None.

    Raises:
        ConfigError: not an SVG or PNG file.
        MissingDependencyError: matplotlib is not installed.
        DataError: the figure was not measured.
    """
    check_plot(path)
    by = by or evaluation.by
    import matplotlib as mpl
    from matplotlib.figure import Figure

    lines = [line for way in ("split", *LOSSY) if (line := _line(evaluation, way, by)).bytes]
    if not lines:
        raise DataError(f"nothing to plot: {evaluation.model} has no {by} on these images")
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 5))
        axes = figure.subplots()
        best = evaluation.curve(BEST, by)
        if len(best):
            axes.plot(
                np.exp(best.log_bytes), 100 * best.reached, color=_INK, alpha=0.25, linewidth=5, label=NAMES[BEST]
            )
        for teacher in evaluation.of("teacher"):
            if by == "accuracy" and teacher.accuracy is not None:
                draw_teacher(axes, teacher.accuracy, _INK, teacher.accuracy_interval)
        for alone in (*evaluation.of("local"), *evaluation.of("exit")):
            if (reached := alone.reached(by)) is not None:
                draw_unsent(axes, UNSENT[alone.way], reached, _INK, alone.reached_interval(by))
        draw_over_bytes(axes, lines, by, SERIES)
        if evaluation.metric != "top-1":
            axes.set_ylabel(f"{evaluation.metric}{'' if by == 'accuracy' else ' to the teacher'}, %")
        axes.set_title(f"{evaluation.model}, release {evaluation.release}, {evaluation.images} images", fontsize=10)
        kind = path.suffix.lower().lstrip(".")
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(buffer, format=kind, bbox_inches="tight", dpi=150, metadata=metadata)
    with replacing(path) as out:
        out.write(buffer.getvalue())


def _line(evaluation: Evaluation, way: str, by: By) -> Line:
    """A way's settings that no other of its settings beats."""
    kept = evaluation.front(way, by)
    return Line(
        NAMES[way],
        [score.mean_bytes for score in kept if score.mean_bytes is not None],
        [reached for score in kept if (reached := score.reached(by)) is not None],
        [spread for score in kept if (spread := score.mean_bytes_interval) is not None],
        [spread for score in kept if (spread := score.reached_interval(by)) is not None],
        evaluation.curve(way, by),
    )


def _ticks(lines: Sequence[Line]) -> list[float]:
    sizes = [size for line in lines for size in line.bytes]
    steps = [m * 10**e for e in range(1, 7) for m in (1, 2, 5)]
    return [step for step in steps if min(sizes) * 0.8 <= step <= max(sizes) * 1.2]
