"""Several bundles in one run: every combination of some keys' values, with one loaded teacher and one cache."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from narrowcast.compiler.compile import finish
from narrowcast.compiler.job import Job
from narrowcast.compiler.kept import Rest, kept, note
from narrowcast.compiler.progress import SILENT, Progress
from narrowcast.compiler.recipe import Recipe, read_mapping, recipe_from
from narrowcast.transport.bundle import Manifest, SecretKey
from narrowcast.transport.errors import ConfigError, NarrowcastError
from narrowcast.transport.structs import parse_toml

TABLES = ("bottleneck", "coding", "cut", "train")
LONGEST_NAME = 64


@dataclass(frozen=True)
class Point:
    """One combination and what came of it.

    Attributes:
        values: by key.
        bundle: the file; it is there unless ``error`` says why not.
        manifest: of the bundle; None where there is none.
        error: what went wrong.
    """

    values: dict[str, Any]
    bundle: Path
    manifest: Manifest | None
    error: str | None = None

    def rows(self) -> list[dict[str, Any]]:
        """One row per level: the values, ``bundle``, ``level``, ``mean_packet_bytes``, ``agreement``, ``output_error``."""
        common = {**self.values, "bundle": str(self.bundle), "error": self.error}
        if self.manifest is None:
            return [{**common, "level": None, "mean_packet_bytes": None, "agreement": None, "output_error": None}]
        return [{**common, **level} for level in self.manifest.figures["levels"]]


def parse_axis(text: str) -> tuple[str, list[Any]]:
    """``bottleneck.beta=0.32,1.28`` as a key and its values: TOML values, or else words.

    Raises:
        ConfigError: it is not of this form, or of a table that points cannot differ in.
    """
    match = re.fullmatch(r"\s*(([a-z_]+)\.[a-z_]+)\s*=\s*(.*\S)\s*", text)
    if match is None:
        raise ConfigError(f"--sweep {text!r}: it goes TABLE.KEY=VALUE,VALUE, such as bottleneck.beta=0.32,1.28")
    _check_table(match[2], f"--sweep {text!r}")
    try:
        values: list[Any] = parse_toml(f"values = [{match[3]}]", "--sweep")["values"]
    except ConfigError:
        values = [word.strip() for word in match[3].split(",")]
    if not values or "" in values or any(values.count(value) > 1 for value in values):
        raise ConfigError(f"--sweep {text!r}: values without a gap, each once")
    return match[1], values


def _check_table(table: str, where: str) -> None:
    if table not in TABLES:
        known = ", ".join(f"[{name}]" for name in TABLES)
        raise ConfigError(f"{where}: points may differ in {known}; what [{table}] says is shared by all")


def sweep(
    recipe: Recipe | str | Path,
    axes: Mapping[str, Sequence[Any]],
    output: str | Path,
    *,
    train: dict[str, Any] | None = None,
    warm_start: float | None = None,
    key: SecretKey | None = None,
    work: str | Path = ".narrowcast",
    progress: Progress = SILENT,
) -> list[Point]:
    """Compiles a recipe once for every combination of values.

    A point that fails is told of and passed over. A bundle that is already there, of the same recipe and run, networks of
    ``[[tails]]`` and videos, is kept.

    Args:
        recipe: a recipe, or its file.
        axes: values by key (``{"bottleneck.beta": [0.32, 1.28]}``); the last key's change first.
        output: ``model.ncb`` gives ``model-beta0.32.ncb`` and so on.
        train: keys of ``[train]`` that go before the recipe's.
        warm_start: train every point but the first from the weights of the point before it, with this part of ``[train]
            images``; None trains each from its own start.
        key: signs the bundles; None leaves them unsigned.
        work: as for :func:`narrowcast.compiler.compile.compile`.
        progress: told where it is.

    Raises:
        ConfigError: a combination is no recipe; nothing is compiled then.
    """
    if warm_start is not None and not 0 < warm_start <= 1:
        raise ConfigError(f"--sweep-warm-start is {warm_start:g}; a part of [train] images, above 0 and at most 1")
    for name in axes:
        _check_table(name.partition(".")[0], name)
    points = list(_recipes(recipe, axes, Path(output), train or {}))
    if len({file for _, file, _ in points}) < len(points) or len({made.name for _, _, made in points}) < len(points):
        raise ConfigError(
            "--sweep: two points have the same name; a shorter name in the recipe leaves room for the values"
        )
    results: list[Point] = []
    rest = Rest()
    first: Job | None = None
    before: Path | None = None
    trained: dict[str, Path] = {}  # by the run's digest
    for number, (values, file, made) in enumerate(points):
        said = ", ".join(f"{name} = {value}" for name, value in values.items())
        progress.note(f"point {number + 1} of {len(points)}: {said}")
        start = None if warm_start is None else before
        try:
            like = first if first is not None and first.recipe.train.seed == made.train.seed else None
            job = Job(_shorter(made, start, warm_start), Path(work), progress, like=like, start=start)
            first = first or job
            digest = job.folder.name.rpartition("-")[2]
            job.folder = trained.get(digest, job.folder)  # the same training, though the point is called otherwise
            made_with = rest.digest(job.recipe)
            manifest = kept(file, job, key, made_with)
            if manifest is None:
                manifest = finish(job, file, key).manifest
                note(job, manifest, made_with)
        except NarrowcastError as error:
            results.append(_failed(values, file, str(error), progress))
        except Exception as error:  # noqa: BLE001  (whatever it is, the other points are worth having)
            results.append(_failed(values, file, f"unexpected {type(error).__name__}: {error}", progress))
        else:
            before = trained[digest] = job.folder
            results.append(Point(values, file, manifest))
    return results


def _shorter(recipe: Recipe, start: Path | None, share: float | None) -> Recipe:
    """With as many images as a point gets that does not start from nothing."""
    if start is None or share is None:
        return recipe
    images = max(1, round(recipe.train.images * share))
    return msgspec.structs.replace(recipe, train=msgspec.structs.replace(recipe.train, images=images))


def _recipes(
    recipe: Recipe | str | Path, axes: Mapping[str, Sequence[Any]], output: Path, train: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], Path, Recipe]]:
    """The values, the file and the recipe of each point."""
    if isinstance(recipe, Recipe):
        mapping, name, folder = msgspec.to_builtins(recipe), recipe.name, Path(recipe.folder)
        del mapping["folder"]
        mapping["train"].update(train)
    else:
        path = Path(recipe)
        mapping, name, folder = read_mapping(path, train=train), path.stem, path.parent
    name = recipe_from(mapping, str(name), name, folder).name  # what is wrong without any point is said without one
    short = {key: key.rpartition(".")[2] for key in axes}
    if len(set(short.values())) < len(short):
        short = {key: key for key in axes}
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        label = "-".join(f"{short[key]}{_word(value)}" for key, value in values.items())
        point = copy.deepcopy(mapping)
        for key, value in values.items():
            table, _, field = key.partition(".")
            point.setdefault(table, {})[field] = value
        point["name"] = f"{name}-{label}"[:LONGEST_NAME]
        made = recipe_from(point, f"{name} with {label}", name, folder)
        yield values, output.with_name(f"{output.stem}-{label}{output.suffix or '.ncb'}"), made


def _word(value: Any) -> str:
    """A value as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", str(value)).strip("_")


def _failed(values: dict[str, Any], file: Path, message: str, progress: Progress) -> Point:
    progress.note(f"  failed: {message}")
    return Point(values, file, None, message)
