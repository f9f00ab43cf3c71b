"""From a recipe to a signed bundle: load, cut, train, fit tables, export, verify, measure, sign."""

from __future__ import annotations

from pathlib import Path

from narrowcast.compiler.assemble import Assembly, Compiled
from narrowcast.compiler.job import Job
from narrowcast.compiler.progress import SILENT, Progress
from narrowcast.compiler.recipe import Recipe, load_recipe
from narrowcast.compiler.tails import FurtherJob
from narrowcast.transport.bundle import SecretKey


def compile(  # noqa: A001  (the command line's verb)
    recipe: Recipe | str | Path,
    output: str | Path,
    *,
    key: SecretKey | None = None,
    work: str | Path = ".narrowcast",
    progress: Progress = SILENT,
) -> Compiled:
    """Compiles a recipe.

    Args:
        recipe: a recipe, or its file.
        output: where the bundle goes (``model.ncb``).
        key: signs the bundle; None leaves it unsigned.
        work: where images, features and checkpoints are kept between runs.
        progress: told where it is.

    Raises:
        ConfigError: the recipe cannot be.
        CompilerError: one of its subclasses, by what is wrong.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))
    return finish(Job(recipe, Path(work), progress), Path(output), key)


def finish(job: Job, output: Path, key: SecretKey | None) -> Compiled:
    """Trains a job and its recipe's ``[[tails]]``, and writes the bundle; see :func:`compile`."""
    further = [FurtherJob(job, tail) for tail in job.recipe.tails]
    job.train()
    for one in further:
        one.train()
    return Assembly(job, further).write(output, key)
