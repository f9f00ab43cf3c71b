"""What earlier runs did, and whether it still holds: digests of what each stage looked at, in a file of the work folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

import narrowcast
from narrowcast.compiler.data import digest_of, find_sources
from narrowcast.compiler.kept import videos_of
from narrowcast.compiler.labels import TABLE
from narrowcast.compiler.recipe import Recipe
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.files import replacing
from narrowcast.transport.structs import Settings, from_json, to_json


class Kept(Settings, frozen=True):
    """The file.

    Attributes:
        compiled: what the bundle was compiled from (:func:`inputs_digest`).
        bundle: the SHA-256 of what came out.
        profiled: of the bundle that was profiled, on which board, with which settings of it, and with which options.
        run: the run record of that.
        run_digest: its SHA-256.
    """

    compiled: str = ""
    bundle: str = ""
    profiled: str = ""
    run: str = ""
    run_digest: str = ""


def read_kept(path: Path) -> Kept:
    """What a file says; nothing where there is none, or where another release has written it."""
    try:
        return from_json(Kept, path.read_bytes(), str(path))
    except (OSError, ConfigError):
        return Kept()


def write_kept(path: Path, kept: Kept) -> None:
    """Replaces the file, whole."""
    with replacing(path) as out:
        out.write(to_json(kept, indent=1) + b"\n")


def inputs_digest(recipe: Recipe, signer: str) -> str:
    """Names all that a bundle is made of, as far as files tell: a change of any gives another one.

    The recipe; images and videos by name, size and time of change; files that it names as networks and weights, and the
    images' labels where they have a weight, by content; this version of narrowcast. Python files that those import are not
    looked at.

    Args:
        recipe: where its file names lead, they are looked at now.
        signer: the id of the key that signs.

    Raises:
        DataError: there are no images.
    """
    folder = Path(recipe.folder)
    said = msgspec.to_builtins(recipe)
    del said["folder"]
    sources, _ = find_sources(recipe.data.train, folder)
    networks = [(recipe.teacher.model, recipe.teacher.weights), *((tail.model, tail.weights) for tail in recipe.tails)]
    words = [
        narrowcast.__version__, signer, msgspec.json.encode(said, order="sorted").decode(), digest_of(sources, recipe.input),
        *(_content(folder, name) for pair in networks for name in pair if name), *videos_of(recipe),
    ]  # fmt: skip
    if getattr(recipe.bottleneck, "label_weight", 0):  # class folders are in the images' names
        words.append(_content(folder / recipe.data.train, TABLE))
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _content(folder: Path, name: str) -> str:
    """A file's, by name; of ``file.py:function`` the file's; the name alone where it names no file."""
    path = folder / (name if (folder / name).is_file() else name.rpartition(":")[0])
    if not path.is_file():
        return name
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{name} {digest.hexdigest()}"
