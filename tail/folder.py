"""What lies in a folder of bundles, and which of it is to be served."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from narrowcast.tail.errors import StoreError
from narrowcast.transport.bundle import Bundle, PublicKey

SUFFIX = ".ncb"


class Stamp(NamedTuple):
    """A file's state. A file that was renamed over has another inode; one that grows, another size and time."""

    inode: int
    size_bytes: int
    mtime_ns: int


class Key(NamedTuple):
    """What clients ask for: a model, and a codec that both ends share."""

    name: str
    fingerprint: bytes


@dataclass(frozen=True)
class Candidate:
    """A verified bundle.

    Attributes:
        path: the file that it was read from.
        bundle: its manifest; parts can be read for as long as the file is the same.
        digest: tells whether two candidates are the same bundle, wherever they lie.
    """

    path: Path
    bundle: Bundle
    digest: bytes

    @classmethod
    def read(cls, path: Path, *, trusted: Iterable[PublicKey] | None, allow_unsigned: bool) -> Candidate:
        """Opens and verifies a file.

        Raises:
            BundleError: it is not to be used; says why.
        """
        bundle = Bundle.open(path, "server", trusted=trusted, allow_unsigned=allow_unsigned)
        return cls(path, bundle, hashlib.sha256(msgspec.json.encode(bundle.manifest)).digest())

    @property
    def key(self) -> Key:
        """Its place on the server."""
        return Key(self.bundle.manifest.name, bytes.fromhex(self.bundle.manifest.fingerprint))

    @property
    def release(self) -> int:
        """Of the bundle."""
        return self.bundle.manifest.release

    def __str__(self) -> str:
        return f"{self.bundle.manifest.name!r} release {self.release} ({self.path.name})"


@dataclass(frozen=True)
class Choice:
    """Which bundles are to be served.

    Attributes:
        serve: by model and codec.
        standby: why other sound bundles are not served, by their file.
        clashes: what is wrong with bundles that are in each other's way, by their file.
    """

    serve: Mapping[Key, Candidate]
    standby: Mapping[Path, str] = field(default_factory=dict)
    clashes: Mapping[Path, StoreError] = field(default_factory=dict)


def look(folder: Path) -> dict[Path, Stamp]:
    """The bundles in a folder, and their state. Hidden files, and those with another ending (``.partial``), are none.

    Raises:
        StoreError: the folder cannot be read.
    """
    found = {}
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError as error:
        raise StoreError(f"no folder {folder}: {error.strerror or error}") from error
    for name in names:
        if not name.endswith(SUFFIX) or name.startswith("."):
            continue
        try:
            seen = (folder / name).stat()
        except OSError:  # it went away, or is a link to nowhere
            continue
        if stat.S_ISREG(seen.st_mode):
            found[folder / name] = Stamp(seen.st_ino, seen.st_size, seen.st_mtime_ns)
    return found


def choose(candidates: Collection[Candidate], loaded: Collection[Candidate], keep: int | None) -> Choice:
    """Of each model and codec the highest release; of each model those of its ``keep`` highest that differ in the codec.

    Args:
        candidates: all sound bundles, at most one per file.
        loaded: those of them that are served now.
        keep: None for all.
    """
    clashes = _clashes(candidates, loaded)
    standby: dict[Path, str] = {}
    best: dict[Key, Candidate] = {}
    for one in sorted(candidates, key=lambda one: one.release, reverse=True):
        if one.path in clashes:
            continue
        other = best.setdefault(one.key, one)
        if other is not one:
            standby[one.path] = f"release {other.release} ({other.path.name}) has the same codec and is served"
    serve: dict[Key, Candidate] = {}
    kept: dict[str, int] = {}
    for key, one in best.items():  # highest releases first
        kept[key.name] = kept.get(key.name, 0) + 1
        if keep is None or kept[key.name] <= keep:
            serve[key] = one
        else:
            standby[one.path] = f"{keep} later releases of {key.name!r} are served, which is what --keep says"
    return Choice(serve, standby, clashes)


def _clashes(candidates: Collection[Candidate], loaded: Collection[Candidate]) -> dict[Path, StoreError]:
    """Files that share name and release with another. One that is served already stays; it is not at fault."""
    same: dict[tuple[str, int], list[Candidate]] = {}
    for one in candidates:
        same.setdefault((one.key.name, one.release), []).append(one)
    serving = {(one.path, one.digest) for one in loaded}
    clashes = {}
    for (name, release), those in same.items():
        stays = next((one for one in those if (one.path, one.digest) in serving), None)
        for one in those if len(those) > 1 else ():
            if one is stays:
                continue
            others = " and ".join(sorted(other.path.name for other in those if other is not one))
            clashes[one.path] = StoreError(
                f"{one.path.name} and {others} are both {name!r} release {release}; remove one"
            )
    return clashes
