"""All wheels that a board needs, brought together on this machine: boards may have no internet and no compiler."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from narrowcast.devices.flash.errors import WheelhouseError
from narrowcast.devices.flash.observer import Observer
from narrowcast.head.cache import cache_folder

PIP_SECONDS = 1800.0
KEPT = 8  # sets of wheels in the cache
_OLDEST_GLIBC = 17
_GLIBC = re.compile(r"2\.(\d+)")
_MARKED = re.compile(r"(?P<what>[^;]+);\s*python_version\s*(?P<op><|>=)\s*[\"']3\.(?P<minor>\d+)[\"']\s*")
# Requirements of narrowcast that hold for older Pythons only: pip judges those by its own Python, not by the board's.
_ONLY_BELOW = {11: ["tomli>=2"]}
_CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Wheel:
    """One wheel.

    Attributes:
        path: here.
        sha256: of it.
        size: in bytes.
    """

    path: Path
    sha256: str
    size: int

    @property
    def unpacked_bytes(self) -> int:
        """What it takes once it is installed; 0 of what is no wheel, which the board says."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                return sum(entry.file_size for entry in archive.infolist())
        except (OSError, zipfile.BadZipFile):
            return 0

    @classmethod
    def of(cls, path: Path) -> Wheel:
        """A file."""
        return cls(path, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)


@dataclass(frozen=True)
class BoardPython:
    """Whom the wheels are for: ``3.11``, ``aarch64``, and the C library's version ``2.36``."""

    version: str
    architecture: str
    glibc: str

    @property
    def minor(self) -> int:
        """11 of 3.11."""
        return int(self.version.split(".")[1])

    def platforms(self) -> list[str]:
        """Wheel tags, newest first.

        Raises:
            WheelhouseError: the board has another C library.
        """
        match = _GLIBC.match(self.glibc)
        if match is None:
            raise WheelhouseError(
                f"the board's C library is {self.glibc or 'not glibc'}: wheels are for glibc 2.{_OLDEST_GLIBC} and later"
            )
        tags = [f"manylinux_2_{minor}_{self.architecture}" for minor in range(int(match[1]), _OLDEST_GLIBC - 1, -1)]
        return [*tags, f"manylinux2014_{self.architecture}", f"linux_{self.architecture}"]


def extras_for(sources: Sequence[str], outputs: Sequence[str] = ()) -> list[str]:
    """What of narrowcast a board needs for its sources of frames and its kinds of outputs."""
    cameras = ("/dev/video", "rtsp:", "rtmp:", "http:", "https:", "udp:")
    video = any(uri.startswith(cameras) or _is_video(uri) for uri in sources)
    images = any(not uri.startswith(("-", "unix:")) for uri in sources)
    return ["head", *(["video"] if video else ["images"] if images else []), *(["mqtt"] if "mqtt" in outputs else [])]


def _is_video(uri: str) -> bool:
    return Path(uri).suffix.lower() in {".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".ts"}


def from_folder(folder: Path) -> list[Wheel]:
    """The wheels in a folder of the user's.

    Raises:
        WheelhouseError: none, or without narrowcast or pip.
    """
    wheels = [Wheel.of(path) for path in sorted(folder.glob("*.whl"))]
    for name in ("narrowcast", "pip"):
        if not any(wheel.path.name.startswith(f"{name}-") for wheel in wheels):
            raise WheelhouseError(f"{folder} has no wheel of {name}; it must hold all that the board needs")
    return wheels


def bring_together(board: BoardPython, extras: Sequence[str], observer: Observer) -> list[Wheel]:
    """The wheels for a board: from this machine's cache, else fetched by pip.

    Raises:
        WheelhouseError: the index cannot be reached, or has no wheel for that board.
    """
    root = _cache()
    with _locked(root):
        own = own_wheel(board)
        pins = constraints(board)
        words = [own.sha256, *sorted(extras), board.version, *board.platforms()[:1], *pins]
        folder = root / hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
        if not (folder / ".complete").exists():
            observer.note(f"fetching the board's wheels (Python {board.version}, {board.architecture}) with pip")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _download(board, [f"{own.path}[{','.join(extras)}]", "pip", *_missing(board)], pins, folder)
        (folder / ".complete").touch()
        _prune(root)
        return from_folder(folder)


def _prune(root: Path) -> None:
    """Every change of a checkout makes another set of wheels: the oldest go."""
    marks = sorted(root.glob("*/.complete"), key=lambda mark: mark.stat().st_mtime_ns, reverse=True)
    for mark in marks[KEPT:]:
        shutil.rmtree(mark.parent, ignore_errors=True)
    own = sorted(root.glob("own-*"), key=lambda folder: folder.stat().st_mtime_ns, reverse=True)
    for folder in own[KEPT:]:
        shutil.rmtree(folder, ignore_errors=True)


def download_words(board: BoardPython) -> list[str]:
    """The words of pip that fetch wheels for a board; destination and requirements follow."""
    return [
        "download", "--only-binary=:all:", "--python-version", board.version, "--implementation", "cp",
        "--abi", f"cp3{board.minor}", "--abi", "abi3", "--abi", "none",
        *(f"--platform={tag}" for tag in board.platforms()),
    ]  # fmt: skip


def own_wheel(board: BoardPython) -> Wheel:
    """Narrowcast's own: built from this checkout, or of this version from the index."""
    if (_CHECKOUT / "scripts" / "build_wheels.py").exists():
        folder = _cache() / f"own-{_sources_hash()}-{board.architecture}"
        if not list(folder.glob("narrowcast-*.whl")):
            words = ["--architecture", board.architecture, "--out", str(folder)]
            _python(str(_CHECKOUT / "scripts" / "build_wheels.py"), *words, what="the wheel of this checkout")
    else:
        folder = _cache() / f"own-{version('narrowcast')}-{board.architecture}"
        if not list(folder.glob("narrowcast-*.whl")):
            _download(board, [f"narrowcast=={version('narrowcast')}"], [], folder, "--no-deps")
    found = sorted(folder.glob("narrowcast-*.whl"))
    if not found:
        raise WheelhouseError(f"no wheel of narrowcast for {board.architecture} was made in {folder}")
    return Wheel.of(found[-1])


def constraints(board: BoardPython) -> list[str]:
    """The pins of this checkout as they hold for the board's Python; none outside of a checkout."""
    try:
        lines = (_CHECKOUT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        match = _MARKED.fullmatch(line)
        if match is None:
            found.append(line)
        elif (match["op"] == "<") == (board.minor < int(match["minor"])):
            found.append(match["what"].strip())
    return [line for line in found if line and not line.startswith("#") and ";" not in line]


def _missing(board: BoardPython) -> list[str]:
    return [name for minor, names in _ONLY_BELOW.items() if board.minor < minor for name in names]


def _download(board: BoardPython, requirements: Sequence[str], pins: Sequence[str], folder: Path, *more: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "constraints.txt"
    file.write_text("\n".join(pins) + "\n", encoding="utf-8")
    words = [*download_words(board), "--quiet", "--dest", str(folder), "--constraint", str(file), *more, *requirements]
    _python("-m", "pip", "--disable-pip-version-check", *words, what="the board's wheels")


def _python(*words: str, what: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, *words], capture_output=True, text=True, timeout=PIP_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise WheelhouseError(f"{what} took more than {PIP_SECONDS:.0f} s") from error
    if done.returncode != 0:
        said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in said if "ERROR" in line or "No module" in line] or said or ["pip says nothing"]
        raise WheelhouseError(
            f"{what} cannot be brought together: {errors[-1].strip()[:300]}; without an index: --wheels DIR"
        )


def _sources_hash() -> str:
    """Of what goes into the wheel."""
    digest = hashlib.sha256()
    for name in ("transport", "devices", "head", "tail", "compiler", "narrowcast", "setup.py", "pyproject.toml"):
        top = _CHECKOUT / name
        for path in [top] if top.is_file() else sorted(_files(top)):
            digest.update(str(path.relative_to(_CHECKOUT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _files(top: Path) -> Iterator[Path]:
    for folder, inner, names in os.walk(top):
        inner[:] = [name for name in inner if name != "__pycache__"]
        yield from (Path(folder, name) for name in names if not name.endswith((".pyc", ".so")))


def _cache() -> Path:
    folder = cache_folder()
    if folder is None:
        raise WheelhouseError("NARROWCAST_CACHE=off leaves no place for the board's wheels: --wheels DIR")
    return folder / "wheels"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Boards of a fleet that are flashed at once fetch their wheels once."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
