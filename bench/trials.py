"""Short trainings of a recipe with some of its keys changed, measured alike: what the benchmarks of training share.

A trial is trained as ``narrowcast compile`` would (same data, same loop, same losses), then measured on the recipe's own
held-out images: real bytes of coded frames with their headers, tables fitted to training images, agreement with the teacher
and the Kullback-Leibler divergence of the answers, image by image. Nothing is exported; that changes no symbol.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from narrowcast.cli.show import TerminalProgress
from narrowcast.compiler.bootstrap import Interval, Resampler, interval
from narrowcast.compiler.bottlenecks.tail import class_scores
from narrowcast.compiler.codec import fit_codec
from narrowcast.compiler.cost import count_macs
from narrowcast.compiler.curves import Curve, bd_rate, front
from narrowcast.compiler.job import Job
from narrowcast.compiler.modules import Head
from narrowcast.compiler.recipe import Recipe, recipe_from
from narrowcast.transport.codec import open_codec
from narrowcast.transport.files import replacing
from narrowcast.transport.packet import STREAM_HEADER_BYTES
from narrowcast.transport.structs import parse_toml

CHUNK = 32
Changes = dict[str, dict[str, Any]]


def changed(path: Path, changes: Changes) -> Recipe:
    """The recipe at ``path`` with keys of its tables replaced."""
    mapping = parse_toml(path.read_text(), path.name)
    for table, keys in changes.items():
        mapping[table] = {**mapping.get(table, {}), **keys}
    return recipe_from(mapping, path.name, path.stem, path.parent)


class Trial:
    """A recipe, trained.

    Args:
        recipe: what to train.
        work: where images and features are kept.
        order: another number shows the same images in another order, with other noise: how much of a figure is chance.

    Attributes:
        job: holds the trained bottleneck.
        figures: what was measured, ready for JSON.
    """

    def __init__(self, recipe: Recipe, work: Path, order: int | None = None) -> None:
        self.job = job = Job(recipe, work, TerminalProgress(quiet=False))
        if order is not None:
            job.data.seed, job.folder = order, job.folder.with_name(f"{job.folder.name}-{order}")
        if recipe.train.cache_gigabytes:
            job.data.cache_features(job.cache, job.teacher_digest, recipe.train.cache_gigabytes * 1e9, job.progress)
        wall, cpu = time.perf_counter(), time.process_time()
        job.train()
        job.settle()
        self.figures: dict[str, Any] = {
            "images": recipe.train.images,
            "wall_ms_per_image": round((time.perf_counter() - wall) * 1e3 / recipe.train.images, 2),
            "cpu_ms_per_image": round((time.process_time() - cpu) * 1e3 / recipe.train.images, 2),
            "held_out": len(job.held),
            "head_macs": self._head_macs(),
            "levels": self._measure(),
        }
        (job.folder / "checkpoint.pt").unlink()  # a trial's figures are kept, its weights are not

    @torch.no_grad()
    def _measure(self) -> list[dict[str, Any]]:
        """Per level: bytes, agreement and divergence of each held-out image."""
        job, net, recipe = self.job, self.job.bottleneck, self.job.recipe
        rows = np.random.default_rng(recipe.train.seed).permutation(job.data.indices)[: recipe.coding.images]
        fitted_to = np.stack([self._symbols(np.sort(rows), level) for level in range(net.levels)])
        codec = open_codec(*fit_codec(job.spec(), fitted_to, net.density(), recipe.coding))
        tail = net.tuned_tail() or job.problem.after
        chunks = [job.held[start : start + CHUNK] for start in range(0, len(job.held), CHUNK)]
        wanted = torch.cat([class_scores(job.teacher(job.problem.normalize(self._images(rows)))) for rows in chunks])
        found = []
        for level in range(net.levels):
            symbols = self._symbols(job.held, level)
            taken = torch.from_numpy(symbols).float().split(CHUNK)
            got = torch.cat([class_scores(tail(net.decode(one, torch.full((len(one),), level)))) for one in taken])
            agreed = (got.argmax(1) == wanted.argmax(1)).int().tolist()
            apart = F.kl_div(F.log_softmax(got, 1), F.log_softmax(wanted, 1), reduction="none", log_target=True)
            divergence = [round(value, 5) for value in apart.sum(1).tolist()]
            sizes = [len(codec.encode(one, level)) + STREAM_HEADER_BYTES for one in symbols]
            found.append({"bytes": sizes, "agreed": agreed, "divergence": divergence})
        return found

    def _images(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.job.frames(rows))

    def _head_macs(self) -> int:
        head, frame = Head(self.job.problem.normalize, self.job.bottleneck), self._images(self.job.held[:1])
        return count_macs(head.eval(), frame, torch.zeros(1, dtype=torch.int64))

    def _symbols(self, rows: np.ndarray, level: int) -> np.ndarray:
        net, normalize = self.job.bottleneck, self.job.problem.normalize
        chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
        given = [net.encode(normalize(self._images(chunk)), torch.full((len(chunk),), level)) for chunk in chunks]
        return torch.cat(given).to(torch.uint8).numpy()


class Measured:
    """A trial's figures as curves, on redrawn images as well.

    Attributes:
        drawn: means of ``bytes``, ``agreed`` and ``divergence`` over redrawn images, ``[resamples, levels]``; the images are
            the same ones for every trial.
    """

    def __init__(self, figures: dict[str, Any]) -> None:
        self.figures = figures
        levels = figures["levels"]
        self._values = {
            key: np.array([level[key] for level in levels], np.float64) for key in ("bytes", "agreed", "divergence")
        }
        resampler = Resampler(len(levels[0]["bytes"]))
        self.drawn = {key: resampler.means(value) for key, value in self._values.items()}

    def means(self, key: str) -> list[float]:
        """Per level, of ``bytes``, ``agreed`` or ``divergence``."""
        return [float(value) for value in self._values[key].mean(1)]

    def curve(self, by: str) -> Curve:
        """Bytes over ``agreed``, or over the negative logarithm of ``divergence``."""
        return _curve(self._values["bytes"].mean(1), self._values[by].mean(1), by)

    def curves(self, by: str) -> list[Curve]:
        """The same on each resample."""
        return [_curve(sizes, reached, by) for sizes, reached in zip(self.drawn["bytes"], self.drawn[by], strict=True)]


def _curve(sizes: np.ndarray, reached: np.ndarray, by: str) -> Curve:
    return front(sizes, -np.log(reached) if by == "divergence" else reached)


def rate_against(one: Measured, other: Measured, by: str) -> tuple[float | None, Interval | None]:
    """The BD-rate of ``one`` against ``other`` and its 95 % interval over images; None without a common range."""
    apart = bd_rate(one.curve(by), other.curve(by))
    drawn = [bd_rate(a, b) for a, b in zip(one.curves(by), other.curves(by), strict=True)]
    rates = [found.bd_rate for found in drawn if found is not None]
    if apart is None or len(rates) < 0.95 * len(drawn):
        return (apart.bd_rate if apart else None), None
    return apart.bd_rate, interval(rates)


def keep(path: Path, rows: dict[str, Any]) -> None:
    """Writes rows as JSON, whole or not at all; others that are there stay."""
    with replacing(path) as out:
        out.write((json.dumps({**_all(path), **rows}) + "\n").encode())


def kept(path: Path, images: int) -> dict[str, Any]:
    """Rows that :func:`keep` wrote of trials that saw so many images; none without a file.

    Those that saw another number are to be measured anew, and stay in the file until then.
    """
    found = _all(path)
    same = {name: row for name, row in found.items() if row["images"] == images}
    if len(same) < len(found):
        print(
            f"{path}: {len(found) - len(same)} rows saw another number of images than {images}, and are measured anew"
        )
    return same


def _all(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found
