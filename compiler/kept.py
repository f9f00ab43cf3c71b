"""Whether a bundle that is there already is the one that its recipe would give now.

The recipe in its manifest and the run that it was made of tell most of it. What the networks of ``[[tails]]`` compute, and
what lies in the folder of ``[data] video``, they do not tell: with each bundle, a digest of these is noted in the folder of
its run.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import torch

from narrowcast.compiler.cuts.trace import trace
from narrowcast.compiler.digests import digest_of_network
from narrowcast.compiler.job import Job, run_of
from narrowcast.compiler.recipe import Recipe, TailSettings
from narrowcast.compiler.teacher import load_teacher
from narrowcast.compiler.turns import alone_in
from narrowcast.transport.bundle import Bundle, Manifest, SecretKey
from narrowcast.transport.errors import NarrowcastError
from narrowcast.transport.files import replacing

NOTES = "made-with.json"


class Rest:
    """What bundles are made of beside their recipe and their run.

    The recipes that it is asked about have their ``[[tails]]`` and ``[input]`` in common: those networks are loaded once.
    """

    def __init__(self) -> None:
        self._tails: list[str] | None = None

    def digest(self, recipe: Recipe) -> str:
        """Names it as it is now; empty where there is nothing of the kind.

        Raises:
            CompilerError: the network of a tail cannot be loaded, or traced.
        """
        if self._tails is None:
            self._tails = [_network(tail, recipe) for tail in recipe.tails]
        found = [*self._tails, *videos_of(recipe)]
        return hashlib.sha256("\n".join(found).encode()).hexdigest() if found else ""


def _network(tail: TailSettings, recipe: Recipe) -> str:
    """What a tail's network computes; weights that are drawn when it is built are the same each time here."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = load_teacher(
            tail.model, weights=tail.weights, options=tail.options, folder=Path(recipe.folder), part=tail.part
        )
        return f"{tail.name}\n{digest_of_network(network, trace(network, recipe.input.size), tail.options)}"


def videos_of(recipe: Recipe) -> list[str]:
    """The files under ``[data] video``, by name, size and time of change; nothing where the recipe names none."""
    if recipe.data.video is None:
        return []
    folder = Path(recipe.folder) / recipe.data.video
    files = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return ["videos", *(f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}" for path, stat in files)]


def kept(file: Path, job: Job, key: SecretKey | None, rest: str) -> Manifest | None:
    """The manifest of a bundle that an earlier call has made of the same run and the same ``rest``, signed as now."""
    try:
        bundle = Bundle.open(file, trusted=[] if key is None else [key.public], allow_unsigned=key is None)
    except (NarrowcastError, OSError):
        return None
    manifest, wanted = bundle.manifest, msgspec.to_builtins(job.recipe)
    del wanted["folder"]
    same = msgspec.json.encode(wanted, order="sorted") == msgspec.json.encode(manifest.recipe, order="sorted")
    if not same or run_of(job.work, manifest) != job.folder:
        return None
    if _notes(job.folder).get(_parts(manifest), "") != rest:
        return None
    job.progress.note(f"{file} is there already")
    return manifest


def note(job: Job, manifest: Manifest, rest: str) -> None:
    """Keeps for :func:`kept` what a bundle of the job's run was made with."""
    if rest:
        with alone_in(job.folder), replacing(job.folder / NOTES) as out:
            out.write(json.dumps({**_notes(job.folder), _parts(manifest): rest}).encode())


def _notes(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / NOTES).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _parts(manifest: Manifest) -> str:
    return hashlib.sha256("\n".join(f"{part.name} {part.sha256}" for part in manifest.parts).encode()).hexdigest()
