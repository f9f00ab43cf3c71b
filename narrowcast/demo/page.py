"""The demo's page, its JSON, and the lines of its tables."""

from __future__ import annotations

import base64
import io
import json
from importlib import resources
from pathlib import Path

from PIL import Image as Pillow

from narrowcast.compiler.plots import NAMES, Line
from narrowcast.demo.plots import rate_accuracy, stage_bars
from narrowcast.demo.run import DemoResult, Streamed
from narrowcast.head.timing import STAGES
from narrowcast.text import human_bytes, human_count, percent

TABLE_COLUMNS = ("way", ">accuracy", ">packet", ">on the socket", ">JPEG there", ">WebP there", ">PNG")


def table_rows(result: DemoResult) -> list[list[str]]:
    """Teacher and levels, each beside the image codecs at its accuracy."""
    evaluation = result.evaluation
    teacher = evaluation.of("teacher")[0].accuracy
    png = human_bytes(evaluation.of("png")[0].mean_bytes)
    rows = [["teacher, PNG sent", percent(teacher), "-", "-", "-", "-", png]]
    for score, streamed in zip(evaluation.of("split"), result.streamed, strict=True):
        there = [evaluation.bytes_at_accuracy(way, score.accuracy or 0.0) for way in ("jpeg", "webp")]
        rows.append(
            [
                f"split, level {score.setting}",
                percent(score.accuracy),
                human_bytes(score.mean_bytes),
                human_bytes(streamed.socket_up_bytes),
                *("not reached" if size is None else human_bytes(size) for size in there),
                png,
            ]
        )
    return rows


def timing_rows(result: DemoResult) -> list[list[str]]:
    """Median milliseconds per stage, latency and frames per second, by level."""
    return [
        [
            f"level {one.level}",
            *(f"{medians[stage]:.2f}" if stage in medians else "-" for stage in STAGES),
            f"{one.latency_p50_ms:.1f}",
            f"{one.frames_per_second:.0f}",
        ]
        for one in result.streamed
        for medians in [_medians(one)]
    ]


def headline(result: DemoResult) -> str:
    """The result in one sentence: the cheapest level that loses at most two points."""
    teacher = result.evaluation.of("teacher")[0].accuracy or 0.0
    levels = result.evaluation.of("split")
    good = [score for score in levels if (score.accuracy or 0) >= teacher - 0.02] or levels[-1:]
    best = min(good, key=lambda score: score.mean_bytes or 0.0)
    webp = result.evaluation.bytes_at_accuracy("webp", best.accuracy or 0.0)
    beside = "which WebP does not reach" if webp is None else f"where WebP takes {human_bytes(webp)}"
    png = result.evaluation.of("png")[0].mean_bytes
    return (
        f"The split answers {percent(best.accuracy)} of the frames rightly (the teacher on its own: {percent(teacher)}) "
        f"with {human_bytes(best.mean_bytes)} a frame, {beside} and PNG {human_bytes(png)}."
    )


def write_page(result: DemoResult) -> Path:
    """Writes ``report.html`` and ``report.json`` into the demo's folder."""
    from jinja2 import Environment

    evaluation = result.evaluation
    lines = [
        Line(NAMES[way], [s.mean_bytes or 0 for s in scores], [s.accuracy or 0 for s in scores])
        for way in ("split", "jpeg", "webp")
        for scores in [evaluation.of(way)]
    ]
    samples = [
        {"png": _png(frame), "label": int(label), "answer": answer}
        for frame, label, answer in zip(result.test.frames, result.test.labels, result.sample_answers, strict=False)
    ]
    template = resources.files("narrowcast.demo").joinpath("page.html").read_text("utf-8")
    page = Environment(autoescape=True).from_string(template)
    html = page.render(
        d=result,
        headline=headline(result),
        curve=rate_accuracy(lines, evaluation.of("teacher")[0].accuracy or 0.0),
        bars=stage_bars([(f"level {one.level}", _medians(one)) for one in result.streamed]),
        rows=table_rows(result),
        stages=STAGES,
        timing=timing_rows(result),
        samples=samples,
        margin=100 * _margin(evaluation.of("teacher")[0].accuracy or 0.0, evaluation.images),
        macs=f"{human_count(result.teacher_macs)} multiply-accumulates, of which the head takes "
        f"{human_count(result.head_macs)}",
    )
    path = result.folder / "report.html"
    path.write_text(html, encoding="utf-8")
    (result.folder / "report.json").write_text(json.dumps(result.as_dict(), indent=2) + "\n", encoding="utf-8")
    return path


def _margin(accuracy: float, frames: int) -> float:
    """Half the width of the 95 % interval of an accuracy (normal approximation; one error at least)."""
    errors = max(1 - accuracy, 1 / frames)
    return float(1.96 * (errors * (1 - errors) / frames) ** 0.5)


def _medians(streamed: Streamed) -> dict[str, float]:
    return {stage["stage"]: stage["p50_ms"] for stage in streamed.stages}


def _png(frame: object) -> str:
    buffer = io.BytesIO()
    Pillow.fromarray(frame).save(buffer, "png", optimize=True)  # type: ignore[arg-type]
    return base64.b64encode(buffer.getvalue()).decode()
