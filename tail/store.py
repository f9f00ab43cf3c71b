"""The models that a server has: a folder of bundles, which may change while they are served.

Of each model and codec the highest release is served. What is put into the folder is verified, loaded and warmed up beside
what is served, and takes its place between two frames; what is refused changes nothing; what is taken out is unloaded.
``docs/server.md`` says what an operator sees.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from narrowcast.tail.backends import BackendSettings
from narrowcast.tail.errors import DowngradeError, StoreError, TailBackendError
from narrowcast.tail.events import event_fields
from narrowcast.tail.folder import SUFFIX, Candidate, Choice, Key, Stamp, choose, look
from narrowcast.tail.loading import Model, load_codecs, load_model, load_models
from narrowcast.tail.watch import Watch
from narrowcast.transport.bundle import PublicKey
from narrowcast.transport.errors import BundleError, NarrowcastError

if TYPE_CHECKING:  # the batcher knows models, so models cannot know it
    from narrowcast.tail.batcher import Batcher
    from narrowcast.tail.models import ModelTable

__all__ = [
    "Model",
    "ModelStatus",
    "ModelStore",
    "StoreObserver",
    "StoreSettings",
    "load_codecs",
    "load_model",
    "load_models",
]
log = logging.getLogger(__name__)

# A file that differs between two looks so far apart is being written.
SETTLE_SECONDS = 0.05
_T = TypeVar("_T")
State = Literal["loading", "ready", "standby", "failed"]


@dataclass(frozen=True)
class StoreSettings:
    """What may be served, and how much of it.

    Attributes:
        folder: bundles are its files ``*.ncb``. Publish by renaming into it.
        trusted: keys whose signatures count; those in the user's keys folder if None.
        allow_unsigned: serve bundles without a signature.
        keep: releases of one model, with different codecs, that are served at once; None for all in the folder: a board in
            the field has one of those codecs, and what lies in the folder was put there for it.
        images: load the uncut networks that bundles carry, for images that are sent as such.
        interval_seconds: look into the folder every so often, even if nothing told that it changed; 0 never.
        backend: what runs the networks.
    """

    folder: Path
    trusted: Sequence[PublicKey] | None = None
    allow_unsigned: bool = False
    keep: int | None = None
    images: bool = True
    interval_seconds: float = 10.0
    backend: BackendSettings = field(default_factory=BackendSettings)


@dataclass(frozen=True)
class ModelStatus:
    """How one bundle fares.

    Attributes:
        file: its name.
        state: ``loading``; ``ready``: it answers frames; ``standby``: it is sound and another one answers; ``failed``: it
            is refused.
        reason: of ``standby`` and ``failed``; else empty.
        name, release, fingerprint: from its manifest; None where that could not be read.
    """

    file: str
    state: State
    reason: str = ""
    name: str | None = None
    release: int | None = None
    fingerprint: bytes | None = None


class StoreObserver(Protocol):
    """Is told what becomes of models. Called on the event loop, and must return at once."""

    def models_changed(self, models: Sequence[ModelStatus]) -> None:
        """All bundles, as they are now."""


@dataclass(frozen=True)
class _Entry:
    """What is known of one file.

    Attributes:
        stamp: its state when it was read; None: to be read again.
        candidate: what it holds. After a refusal: what it held before, if that is still served.
        error: why what it holds now is refused.
        refused: what that is, where it could be read.
        held: ``candidate`` is no longer in the file; it is served from memory.
        before: what ``candidate`` is to replace, in case it does not load.
    """

    stamp: Stamp | None
    candidate: Candidate | None = None
    error: NarrowcastError | None = None
    refused: Candidate | None = None
    held: bool = False
    before: Candidate | None = None


class ModelStore:
    """A folder of bundles, loaded into a table. Must be made and used on one event loop.

    Args:
        settings: the folder, and what of it may be served.
        table: where loaded models go.
        make_batcher: what answers a model's frames.
        observers: are told of every change.
    """

    def __init__(
        self,
        settings: StoreSettings,
        table: ModelTable,
        make_batcher: Callable[[Model], Batcher],
        observers: Iterable[StoreObserver] = (),
    ) -> None:
        self._folder = settings.folder
        self._table = table
        self._make_batcher = make_batcher
        self._settings = settings
        self._observers = list(observers)
        self._entries: dict[Path, _Entry] = {}
        self._loaded: dict[Key, Candidate] = {}
        self._choice = Choice({})
        self._loading: Candidate | None = None
        self._retry_failed = False
        self._told: list[ModelStatus] = []
        self._watch: Watch | None = None
        self._following: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Loads what is in the folder, and follows it from then on.

        Raises:
            StoreError: no folder, no bundle, or none that can be served.
            BundleError: the same, where that is what is wrong with the first one.
        """
        look(self._folder)
        self._watch = Watch(self._folder, self._settings.interval_seconds)
        growing = await self._refresh()
        if not self._loaded:
            await self.close()
            errors = [row.error for row in self._entries.values() if row.error] + list(self._choice.clashes.values())
            if not errors:
                raise StoreError(f"no bundles (*{SUFFIX}) in {self._folder}")
            if len(errors) == 1 or isinstance(errors[0], BundleError):
                raise errors[0]
            raise StoreError(f"no bundle in {self._folder} can be served: {errors[0]}")
        self._following = asyncio.create_task(self._follow(growing))

    def observe(self, observer: StoreObserver) -> None:
        """Tells one more from now on."""
        self._observers.append(observer)

    def reload(self) -> None:
        """Looks into the folder now, and tries again what was refused."""
        self._retry_failed = True
        if self._watch is not None:
            self._watch.wake()

    def status(self) -> list[ModelStatus]:
        """How every bundle fares, by file. A file whose bundle was refused while its last one is served has two lines."""
        rows = []
        for path, entry in sorted(self._entries.items()):
            one, error = entry.candidate, entry.error or self._choice.clashes.get(path)
            if one is not None and (entry.held or error is None):
                rows.append(self._status(one, path))
            if error is not None:
                rows.append(_row(path, "failed", str(error), entry.refused or (None if entry.held else one)))
        return rows

    def _status(self, one: Candidate, path: Path) -> ModelStatus:
        served = self._loaded.get(one.key)
        state: State = "standby"
        reason = self._choice.standby.get(path, "")
        if served is not None and (served.path, served.digest) == (path, one.digest):
            state, reason = "ready", ""
        elif self._loading is one:
            state, reason = "loading", ""
        return _row(path, state, reason, one)

    async def close(self) -> None:
        """Follows the folder no longer. What is served stays in the table; batchers that were replaced are closed."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        if self._watch is not None:
            await self._watch.close()
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _follow(self, growing: bool) -> None:
        assert self._watch is not None
        while True:
            await self._watch.wait(5 * SETTLE_SECONDS if growing else None)
            try:
                growing = await self._refresh()
            except StoreError as error:  # the folder itself: a network drive may be back later
                growing = False
                log.error("%s; what is served stays", error)
            except Exception:
                growing = False
                log.exception("looking into %s failed; what is served stays", self._folder)

    async def _refresh(self) -> bool:
        """Brings the table in line with the folder; gives whether a file is still being written."""
        retry, self._retry_failed = self._retry_failed, False
        stamps = await _off_loop(lambda: look(self._folder))
        known = {path: entry.stamp for path, entry in self._entries.items()}
        growing: set[Path] = set()
        if stamps != known:
            await asyncio.sleep(SETTLE_SECONDS)
            first, stamps = stamps, await _off_loop(lambda: look(self._folder))
            growing = {path for path, stamp in stamps.items() if stamp not in (first.get(path), known.get(path))}
            growing |= first.keys() - stamps.keys()
        for path in (
            self._entries.keys() - stamps.keys() - growing
        ):  # twice not there: a listing can miss what is renamed
            del self._entries[path]
        for path, stamp in stamps.items():
            entry = self._entries.get(path)
            if path in growing or (
                entry is not None and entry.stamp == stamp and not (retry and (entry.error or entry.held))
            ):
                continue
            self._entries[path] = await self._read(path, stamp, entry)
        await self._settle()
        return bool(growing) or any(entry.stamp is None for entry in self._entries.values())

    async def _read(self, path: Path, stamp: Stamp, entry: _Entry | None) -> _Entry:
        before = entry.candidate if entry is not None and self._is_loaded(entry.candidate) else None
        trusted = self._settings.trusted
        try:
            found = await _off_loop(
                lambda: Candidate.read(path, trusted=trusted, allow_unsigned=self._settings.allow_unsigned)
            )
        except NarrowcastError as error:
            return await self._refused(path, stamp, error, before)
        if before is not None and before.key == found.key and found.release < before.release:
            older = DowngradeError(
                f"{path.name} was release {before.release} of {found.key.name!r} and is release {found.release} now, with "
                f"the same codec; release {before.release} stays. To go back, put the older bundle into the folder under "
                "another name, and remove the newer one"
            )
            return await self._refused(path, stamp, older, before, found)
        return _Entry(stamp, found, before=before)

    async def _refused(
        self,
        path: Path,
        stamp: Stamp | None,
        error: NarrowcastError,
        before: Candidate | None,
        refused: Candidate | None = None,
    ) -> _Entry:
        stamps = await _off_loop(lambda: look(self._folder))
        if stamps.get(path) != stamp:  # replaced while it was read: not its fault, and it is read again
            return _Entry(None, before, held=True)
        stays = "" if before is None else f" ({before} stays)"
        event = event_fields("model_refused", file=path.name, reason=str(error), stays=str(before) if before else None)
        log.error("not served: %s%s", error, stays, extra=event)
        return _Entry(stamp, before, error, refused, held=before is not None)

    def _is_loaded(self, one: Candidate | None) -> bool:
        served = None if one is None else self._loaded.get(one.key)
        return one is not None and served is not None and served.digest == one.digest

    async def _settle(self) -> None:
        """Loads what should be served and is not; unloads what is and should not."""
        while True:
            self._choose()
            self._tell()
            missing = [one for one in self._choice.serve.values() if not self._is_loaded(one)]
            if not missing:
                break
            await self._load(missing[0])
        for key, one in self._choice.serve.items():
            self._loaded[key] = one  # perhaps under another file's name than before
        for key in self._loaded.keys() - self._choice.serve.keys():
            self._unload(key)
        self._tell()

    def _choose(self) -> None:
        candidates = []
        for path, entry in self._entries.items():
            if entry.candidate is None or (entry.held and not self._is_loaded(entry.candidate)):
                continue
            candidates.append(replace(entry.candidate, path=path))
        clashes_before = self._choice.clashes
        self._choice = choose(candidates, list(self._loaded.values()), self._settings.keep)
        for path, error in self._choice.clashes.items():
            if str(error) != str(clashes_before.get(path)):
                event = event_fields("model_refused", file=path.name, reason=str(error), stays=None)
                log.error("not served: %s", error, extra=event)

    async def _load(self, one: Candidate) -> None:
        """Verifies, loads and warms up off the event loop; publishes on it."""
        entry = self._entries[one.path]
        self._loading = entry.candidate
        self._tell()
        settings = self._settings
        try:
            model = await _off_loop(lambda: load_model(one.bundle, settings=settings.backend, images=settings.images))
        except (BundleError, TailBackendError) as error:
            self._entries[one.path] = await self._refused(one.path, entry.stamp, error, entry.before, one)
            return
        except Exception as error:
            log.exception("loading %s failed", one)
            unexpected = TailBackendError(f"{one.path.name} does not load: {type(error).__name__}: {error}")
            self._entries[one.path] = await self._refused(one.path, entry.stamp, unexpected, entry.before, one)
            return
        finally:
            self._loading = None
        self._entries[one.path] = replace(entry, before=None)
        self._publish(one, model)

    def _publish(self, one: Candidate, model: Model) -> None:
        before = self._loaded.get(one.key)
        self._loaded[one.key] = one
        replaced = self._table.publish(self._make_batcher(model))
        event = event_fields(
            "model_serving", model=one.key.name, release=one.release, file=one.path.name,
            codec=one.key.fingerprint.hex(), backend=model.backend.name, replaces=before.release if before else None,
        )  # fmt: skip
        if before is None:
            log.info("serving %s, codec %s, on %s", one, one.key.fingerprint.hex(), model.backend.name, extra=event)
        else:
            log.info("serving %s in place of release %d", one, before.release, extra=event)
        if before is not None and before.release == one.release:
            log.warning("%s is another bundle than before under the same release; number each one anew", one)
        if replaced is not None:
            self._finish(replaced)

    def _unload(self, key: Key) -> None:
        one = self._loaded.pop(key)
        event = event_fields("model_unloaded", model=key.name, release=one.release, codec=key.fingerprint.hex())
        log.info("no longer serving %s: its streams are drained", one, extra=event)
        retired = self._table.retire(*key)
        if retired is not None:
            self._finish(retired)

    def _finish(self, batcher: Batcher) -> None:
        """Closes a batcher once all that it has taken is answered."""

        async def finish() -> None:
            try:
                await batcher.idle()
            finally:
                await batcher.close()

        task = asyncio.create_task(finish())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _tell(self) -> None:
        rows = self.status()
        if rows != self._told:
            self._told = rows
            for observer in self._observers:
                observer.models_changed(rows)


def _row(path: Path, state: State, reason: str, one: Candidate | None) -> ModelStatus:
    if one is None:
        return ModelStatus(path.name, state, reason)
    return ModelStatus(path.name, state, reason, one.key.name, one.release, one.key.fingerprint)


async def _off_loop(function: Callable[[], _T]) -> _T:
    """Runs it on a thread of its own. A pool's thread would hold up the end of the process for as long as a load takes."""
    result: Future[_T] = Future()

    def work() -> None:
        if not result.set_running_or_notify_cancel():
            return
        try:
            result.set_result(function())
        except BaseException as error:  # noqa: BLE001  (it is raised where it is waited for)
            result.set_exception(error)

    threading.Thread(target=work, name="store", daemon=True).start()
    return await asyncio.wrap_future(result)
