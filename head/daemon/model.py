"""The model that runs: loaded, checked against the bundle's own reference, and replaced by a newer one while frames flow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from narrowcast.head.affinity import parse_cpus
from narrowcast.head.daemon.config import DaemonConfig, RuntimeConfig
from narrowcast.head.errors import ModelRefusedError
from narrowcast.head.session import HeadSession
from narrowcast.transport.bundle import Bundle, Manifest
from narrowcast.transport.bundle.signing import read_keys
from narrowcast.transport.errors import MissingPartError
from narrowcast.transport.selfcheck import reference_frames

log = logging.getLogger(__name__)

# Inode, size and time of change: another one is another file.
Stamp = tuple[int, int, int]
Backends = Callable[[], Sequence[str]]


class Model(NamedTuple):
    """A model that runs. Nothing more is read from its bundle: on disk, another one may have taken its place.

    Attributes:
        session: its head.
        labels: the names of its classes; none where the bundle has none.
    """

    session: HeadSession
    labels: list[str]

    @property
    def manifest(self) -> Manifest:
        """Of its bundle."""
        return self.session.bundle.manifest


def stamp_of(path: str) -> Stamp | None:
    """A file's present state; None where there is none."""
    try:
        seen = Path(path).stat()
    except OSError:
        return None
    return seen.st_ino, seen.st_size, seen.st_mtime_ns


def open_bundle(config: DaemonConfig) -> Bundle:
    """The configured bundle, verified.

    Raises:
        BundleError: it is none, is damaged, or nobody trusted signed it.
        KeyFileError: a trusted key cannot be read.
    """
    trusted = [key for path in config.trust for key in read_keys(Path(path))] or None
    return Bundle.open(config.bundle, "device", trusted=trusted, allow_unsigned=config.allow_unsigned)


def load_model(config: DaemonConfig, preferred: Backends, running: Model | None = None) -> Model:
    """The configured model, ready to run; what runs is not touched.

    Args:
        config: which, and on what.
        preferred: the board's backends, best first, for ``backend = "auto"``.
        running: the model that it is to take the place of.

    Raises:
        ModelRefusedError: it is an older release of the running one, or its head does not give the symbols that the bundle
            was measured with.
        BundleError, BackendError: see :func:`open_bundle` and :class:`HeadSession`.
    """
    bundle = open_bundle(config)
    manifest = bundle.manifest
    if running is not None:
        before = running.manifest
        if manifest.name == before.name and manifest.release < before.release:
            raise ModelRefusedError(
                f"{bundle.path.name} is release {manifest.release} of {manifest.name}, and release {before.release} runs: "
                "a running model is replaced by newer ones only (restart the daemon to go back)"
            )
    session = HeadSession(
        bundle, backend=chosen_backends(config.runtime, preferred), precision=config.runtime.precision,
        threads=threads_of(config.runtime),
    )  # fmt: skip
    _check(session)
    return Model(session, bundle.read("labels").decode().splitlines() if bundle.has("labels") else [])


def _check(session: HeadSession) -> None:
    try:
        report = session.self_check()
    except MissingPartError:  # of a release that made none: that it runs at all is known then
        frame = reference_frames(session.contract.size, 1)[0]
        session.symbols(frame, session.levels - 1)
        return
    if not report.passed:
        raise ModelRefusedError(f"{session.bundle.path.name} does not run as it should here: {report}")


def chosen_backends(runtime: RuntimeConfig, preferred: Backends) -> Sequence[str]:
    """Best first."""
    return preferred() if runtime.backend == "auto" else [runtime.backend]


def threads_of(runtime: RuntimeConfig) -> int:
    """For the backend. On chosen processors it is told how many: by itself it would count all of them."""
    if runtime.threads or runtime.cpus is None:
        return runtime.threads
    return len(parse_cpus(runtime.cpus))
