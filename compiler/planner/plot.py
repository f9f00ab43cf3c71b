"""A plan, drawn: what each cut sends, and how long each way takes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from narrowcast.compiler.planner.link import Way
from narrowcast.compiler.planner.plan import CutPlan, Plan
from narrowcast.compiler.plots import SERIES, STYLE, check_plot
from narrowcast.transport.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BOARD, _LINK, _SERVER = SERIES[:3]


def write_plan_plot(plan: Plan, path: Path) -> None:
    """Writes a plan: on the left bytes by cut, on the right the time of every way where there is a link, else of every head.

    Args:
        plan: what to draw.
        path: an ``.svg`` or ``.png`` file.

    Raises:
        ConfigError: not an SVG or PNG file.
        MissingDependencyError: matplotlib is not installed.
    """
    check_plot(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, 1.8 + 0.34 * max(4, len(plan.cuts) + 3)), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_bytes(left, plan)
        if plan.decision is None:
            _draw_heads(right, plan.cuts)
        else:
            _draw_ways(right, plan.decision.ways, plan.decision.best)
        title = f"{plan.model}, {plan.preset}" + ("" if plan.link is None else f"; {plan.link}")
        figure.suptitle(title if plan.decision is None else f"{title}\n{plan.decision.why}", fontsize=10)
        kind = path.suffix.lower().lstrip(".")
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    with replacing(path) as out:
        out.write(buffer.getvalue())


def _draw_bytes(axes: Axes, plan: Plan) -> None:
    names = [row.cut.name for row in plan.cuts]
    for place, row in enumerate(plan.cuts):
        axes.plot(row.cut.float_bytes, place, marker="o", color="#999999", linestyle="")
        if row.estimate is not None:
            axes.plot((row.estimate.low, row.estimate.high), (place, place), color=_LINK, linewidth=3, alpha=0.4)
            axes.plot(row.estimate.packet_bytes, place, marker="o", color=_LINK, linestyle="")
    for sent in plan.sent:
        axes.axvline(sent.mean_bytes, color=_BOARD, linestyle="--", linewidth=1)
        axes.annotate(sent.codec, (sent.mean_bytes, 1), (3, -3), xycoords=("data", "axes fraction"),
                      textcoords="offset points", rotation=90, va="top", fontsize=8)  # fmt: skip
    axes.plot([], [], marker="o", color="#999999", linestyle="", label="features as float32")
    if plan.images:
        axes.plot([], [], marker="o", color=_LINK, linestyle="", label="estimated packet, with its range")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("bytes a frame")
    axes.grid(visible=True, axis="x", linewidth=0.5)
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _draw_heads(axes: Axes, cuts: Sequence[CutPlan]) -> None:
    heads = {
        row.cut.name: row.head_ms if row.board is None else row.board.ms for row in cuts if row.head_ms is not None
    }
    axes.barh(list(heads), list(heads.values()), color=_BOARD)
    axes.invert_yaxis()
    axes.set_xlabel("head, ms")
    axes.grid(visible=True, axis="x", linewidth=0.5)


def _draw_ways(axes: Axes, ways: Sequence[Way], best: Way | None) -> None:
    labels = [f"{'* ' if way is best else ''}{way.name} {way.detail}".strip() for way in ways]
    start = [0.0] * len(ways)
    for colour, what, part in (
        (_BOARD, "board", [way.board_ms for way in ways]),
        (_LINK, "link", [way.link_ms for way in ways]),
        (_SERVER, "server", [way.server_ms for way in ways]),
    ):
        axes.barh(labels, part, left=start, color=colour, label=what)
        start = [at + more for at, more in zip(start, part, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("ms a frame")
    axes.grid(visible=True, axis="x", linewidth=0.5)
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
