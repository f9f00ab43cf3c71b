"""Engines that were built on this board, kept for its next start.

Building one takes a minute on a small board; loading it, a moment. An engine fits one network, one release of TensorRT, one
GPU and one set of flags: its file says which, with a hash of what follows. What does not match is built again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from narrowcast.head.cache import cache_folder
from narrowcast.transport.errors import ConfigError
from narrowcast.transport.files import replacing
from narrowcast.transport.structs import Settings, from_json

log = logging.getLogger(__name__)

# Engines have tens of megabytes; one that was not used for so long belongs to a model or a library of the past.
UNUSED_DAYS = 30


class EngineKey(Settings, frozen=True):
    """What an engine was built from and for.

    Attributes:
        model: SHA-256 of the ONNX file.
        tensorrt: its version.
        gpu: its name and compute capability.
        flags: everything that the builder was told.
    """

    model: str
    tensorrt: str
    gpu: str
    flags: str

    def file(self) -> Path | None:
        """Where the engine is kept; None where nothing is."""
        folder = cache_folder()
        name = hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]
        return None if folder is None else folder / f"engine-{self.model[:8]}-{name}.trt"


class _Header(Settings, frozen=True):
    """The first line of a file; the engine follows."""

    key: EngineKey
    sha256: str


def read_engine(key: EngineKey) -> bytes | None:
    """The engine that was kept under ``key``; None where there is none, or it is damaged or another's."""
    file = key.file()
    try:
        data = b"" if file is None else file.read_bytes()
    except OSError:
        return None
    if file is None or not data:
        return None
    line, _, engine = data.partition(b"\n")
    try:
        header = from_json(_Header, line, file.name)
    except ConfigError as error:
        log.warning("%s is damaged (%s): the engine is built anew", file, error)
        return None
    if header.key != key or hashlib.sha256(engine).hexdigest() != header.sha256:
        log.warning("%s is damaged or of another network: the engine is built anew", file)
        return None
    _note_use(file)
    return engine


def keep_engine(key: EngineKey, engine: bytes) -> None:
    """Keeps an engine, and removes those that were not used for a long time: of models and libraries before.

    A disk that cannot be written is no error: the engine is built at every start.
    """
    file = key.file()
    if file is None:
        return
    header = _Header(key=key, sha256=hashlib.sha256(engine).hexdigest())
    try:
        with replacing(file) as out:
            out.write(msgspec.json.encode(header) + b"\n")
            out.write(engine)
    except OSError as error:
        log.warning("the engine is not kept for the next start: %s", error)
        return
    _remove_unused(file)


def _note_use(file: Path) -> None:
    """By the file's time; never back, where a board without a clock's battery boots in the past."""
    with suppress(OSError):
        if time.time() > file.stat().st_mtime:
            os.utime(file)


def _remove_unused(kept: Path) -> None:
    """Also of other models, whose engines nobody would look at again."""
    for other in kept.parent.glob("engine-*.trt"):
        with suppress(OSError):
            if other != kept and time.time() - other.stat().st_mtime > UNUSED_DAYS * 86_400:
                other.unlink()
                log.info("%s was not used for %d days, and is removed", other, UNUSED_DAYS)
