"""Plots as SVG that follows the page's colours: light or dark, without a second drawing.

matplotlib draws with placeholder colours, which become CSS variables of the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

from narrowcast.compiler.plots import Line, draw_over_bytes, draw_teacher

# placeholder -> CSS variable
_INK, _GRID = "#010203", "#010204"
_SERIES = ("#010205", "#010206", "#010207", "#010208")
_VARIABLES = {_INK: "--ink", _GRID: "--grid", **{colour: f"--series-{k}" for k, colour in enumerate(_SERIES)}}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "narrowcast",
    "font.family": "sans-serif",
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
}


def rate_accuracy(lines: Sequence[Line], teacher: float) -> str:
    """Accuracy over bytes a frame, one line per way, the teacher's as a dashed one."""
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 4.0))
        draw_teacher(axes, teacher, _INK)
        draw_over_bytes(axes, lines, "accuracy", _SERIES)
        return _svg(figure, "Accuracy over bytes a frame")


def stage_bars(levels: Sequence[tuple[str, dict[str, float]]]) -> str:
    """One horizontal bar per level, split by stage, milliseconds."""
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 0.6 + 0.5 * len(levels)))
        stages = list(levels[0][1])
        for row, (_, times) in enumerate(levels):
            left = 0.0
            for k, stage in enumerate(stages):
                width, colour = times.get(stage, 0.0), _SERIES[k % len(_SERIES)]
                fade, label = 1 - 0.45 * (k // len(_SERIES)), stage if row == 0 else None
                axes.barh(row, width, left=left, height=0.6, color=colour, alpha=fade, label=label)
                left += width
        axes.set_yticks(range(len(levels)), [name for name, _ in levels])
        axes.invert_yaxis()
        axes.set_xlabel("median milliseconds")
        axes.legend(frameon=False, ncols=len(stages), loc="lower center", bbox_to_anchor=(0.45, 1.0), fontsize=8,
                    handlelength=1, columnspacing=1)  # fmt: skip
        return _svg(figure, "Where the time of a frame goes")


def _svg(figure: Any, title: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None, "Title": title})
    plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        svg = re.sub(colour, f"var({variable})", svg, flags=re.IGNORECASE)
    # The page scales the drawing; a screen reader reads its title.
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf'\1 role="img" aria-label="{title}"', svg, count=1)
    return svg
