"""Images in tar shards, as webdataset lays them out: ``key.jpg``, and ``key.cls`` with its class beside it.

A shard is read where it lies: its members' places are looked up once, then any image is one seek and one read away, in
whatever order training draws them. Nothing is ever unpacked to a path. What a shard says about itself is not trusted:
links, devices and sparse files are passed over, and headers and members have limits.
"""

from __future__ import annotations

import glob
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from narrowcast.compiler.errors import DataError
from narrowcast.transport.contract import Image
from narrowcast.transport.errors import FrameError
from narrowcast.transport.frames import SUFFIXES, read_image

SUFFIX = ".tar"
MOST_IMAGE_BYTES = 256 << 20
MOST_HEADER_BYTES = 1 << 20
MOST_CLASS_BYTES = 32
MOST_SHARDS = 100_000
BLOCK = 512
# Zeros that tar writers fill their last record up with; what lies behind so many is not looked at.
MOST_PADDING_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """An image in a shard.

    Attributes:
        shard: the tar file.
        name: as the shard has it, unprintable characters replaced; for messages, never a path.
        offset: of its first byte in the shard.
        size_bytes: its length.
        label: from its ``.cls``; None where there is none.
    """

    shard: Path
    name: str
    offset: int
    size_bytes: int
    label: int | None = None

    def __str__(self) -> str:
        return f"{self.shard}:{self.name}"

    def read(self) -> Image:
        """The image, uint8 ``[H, W, 3]``.

        Raises:
            FrameError: it is too large, cut short, or no image.
        """
        if self.size_bytes > MOST_IMAGE_BYTES:
            raise FrameError(f"{self} has {self.size_bytes} bytes; the limit is {MOST_IMAGE_BYTES}")
        try:
            with self.shard.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size_bytes)
        except OSError as error:
            raise FrameError(f"{self} cannot be read: {error}") from error
        if len(data) < self.size_bytes:
            raise FrameError(f"{self} is cut short: {len(data)} of {self.size_bytes} bytes")
        return read_image(data)


def find_shards(text: str, folder: Path) -> list[Path]:
    """The files that ``photos-{000..012}.tar``, ``photos-*.tar`` or one name stands for, relative to ``folder``.

    Raises:
        DataError: there are none, or one of a numbered sequence is missing.
    """
    found: list[Path] = []
    for name in _expanded(text):
        path = folder / name
        if glob.has_magic(name):
            # Relative to the folder, whose own name is no pattern; absolute patterns stay what they are.
            found += sorted(folder / match for match in glob.glob(name, root_dir=folder))  # noqa: PTH207
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"no shard {path}")
    if not found:
        raise DataError(f"no shards {folder / text}")
    return found


def _expanded(text: str) -> list[str]:
    """``a-{08..10}.tar`` as ``a-08.tar``, ``a-09.tar``, ``a-10.tar``; several braces give all combinations."""
    names = [text]
    while match := re.search(r"\{(\d+)\.\.(\d+)\}", names[0]):
        first, last = int(match[1]), int(match[2])
        if not first <= last < first + MOST_SHARDS // len(names):
            raise DataError(
                f"{text!r}: {match[0]} counts from the smaller to the larger number, to {MOST_SHARDS} shards"
            )
        numbers = [f"{number:0{len(match[1])}d}" for number in range(first, last + 1)]
        names = [name.replace(match[0], number, 1) for name in names for number in numbers]
    return names


def index_shard(path: Path) -> tuple[list[Member], str | None]:
    """The images of a shard in their order, and what is wrong with the rest of it, if anything is.

    Raises:
        DataError: it is no uncompressed tar file at all.
    """
    members: list[tuple[str, Member]] = []
    labels: dict[str, int] = {}
    problem = None
    try:
        with path.open("rb") as file:
            try:
                for info in _regular_files(file):
                    key, extension = _key(info.name)
                    if extension == ".cls" and info.size <= MOST_CLASS_BYTES:
                        label = _class(file, info, path)
                        if labels.setdefault(key, label) != label:
                            raise DataError(
                                f"{path}:{_printable(info.name)} is there twice, as {labels[key]} and {label}"
                            )
                    elif extension in SUFFIXES:
                        members.append((key, Member(path, _printable(info.name), info.offset_data, info.size)))
            except _BrokenError as error:
                problem = f"{path}: {error}; what follows is not used"
    except OSError as error:
        raise DataError(f"the shard {path} cannot be read: {error}") from error
    except tarfile.TarError as error:
        raise DataError(f"{path} is no uncompressed tar file: {error}") from error
    return [Member(m.shard, m.name, m.offset, m.size_bytes, labels.get(key)) for key, m in members], problem


class _BrokenError(Exception):
    """A shard goes wrong behind its first member."""


class _Bounded:
    """A file that reads so many bytes, and no more, until it is :attr:`left` some again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.left = MOST_HEADER_BYTES
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"a header of more than {MOST_HEADER_BYTES} bytes")
        self.left -= size
        return self._file.read(size)


def _regular_files(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The headers of plain files, up to the end of the shard.

    Raises:
        tarfile.TarError: there is not even a first header.
        _BrokenError: there is no whole header where the next one should be.
    """
    bounded: Any = _Bounded(file)
    try:
        tar: Any = tarfile.open(fileobj=bounded, mode="r:")  # noqa: SIM115  (the file is the caller's)
    except (ValueError, RecursionError, OverflowError) as error:
        raise tarfile.ReadError(str(error)) from error
    last = -1
    while True:
        bounded.left = MOST_HEADER_BYTES
        try:
            info: tarfile.TarInfo | None = tar.next()
        except (tarfile.TarError, ValueError, RecursionError, OverflowError) as error:
            raise _BrokenError(f"broken behind byte {max(last, 0)}: {error}") from error
        if info is None:
            break
        tar.members.clear()  # it keeps every header otherwise
        if info.offset <= last or info.size < 0:
            raise _BrokenError(f"the header at byte {info.offset} points backwards")
        last = info.offset
        if info.isreg() and not info.issparse():
            yield info
    file.seek(tar.offset)  # where the library has met its end, or what is no header
    rest = file.read(MOST_PADDING_BYTES)
    if any(rest[:BLOCK]):
        raise _BrokenError(f"broken at byte {tar.offset}: no tar header")
    if any(rest):
        raise _BrokenError(f"there is more behind its end at byte {tar.offset}, as where tar files were joined by cat")


def _class(file: BinaryIO, info: tarfile.TarInfo, path: Path) -> int:
    file.seek(info.offset_data)
    text = file.read(info.size)
    if len(text) < info.size:
        raise _BrokenError(f"cut short in {_printable(info.name)}")
    try:
        return int(text)
    except ValueError as error:
        name = _printable(info.name)
        raise DataError(f"{path}:{name} is {text!r}; a class is a whole number, 0 for the first") from error


def _key(name: str) -> tuple[str, str]:
    """``dir/0001.seg.PNG`` as (``dir/0001``, ``.seg.png``): the key ends at the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    stem, dot, rest = last.partition(".")
    return folder + slash + stem, f"{dot}{rest}".lower() if stem else ""


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)
