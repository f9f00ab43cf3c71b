"""Which ways this bundle, this server and this board have, and what runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from narrowcast.devices.errors import ProfileError
from narrowcast.devices.profile.connections import Connection
from narrowcast.devices.profile.figures import Kind
from narrowcast.devices.profile.runners import ExitRunner, LocalRunner, RemoteRunner, Runner, WayInfo
from narrowcast.devices.profile.schema import Server
from narrowcast.devices.profile.settings import ProfileSettings
from narrowcast.head.client import Client
from narrowcast.head.session import HeadSession
from narrowcast.head.whole import WholeSession
from narrowcast.transport.bundle import Bundle
from narrowcast.transport.errors import MissingDependencyError
from narrowcast.transport.images import encode_image
from narrowcast.transport.packet import CodecId
from narrowcast.transport.selfcheck import reference_frames
from narrowcast.transport.tasks import MAIN

Note = Callable[[str], None]
KINDS: tuple[Kind, ...] = ("local", "exit", "image", "split")
_CODECS = {"jpeg": CodecId.JPEG, "webp": CodecId.WEBP}


def kinds_to_run(bundle: Bundle, settings: ProfileSettings, server: Server | None, note: Note) -> list[Kind]:
    """Those that were asked for, or all that can be run; what cannot is noted.

    Raises:
        ProfileError: one that was asked for cannot be run; or none can.
    """
    wanted = settings.ways if settings.ways is not None else list(KINDS)
    asked = settings.ways is not None
    found: list[Kind] = []
    for kind in KINDS:
        if kind not in wanted:
            continue
        why = _why_not(kind, bundle, server)
        if why is None:
            found.append(kind)
        elif asked:
            raise ProfileError(f"the way {kind!r} cannot be run: {why}")
        elif kind != "exit":
            note(f"without the way {kind!r}: {why}")
    if not found:
        raise ProfileError(f"{bundle.path.name}: no way can be run: {_why_not('local', bundle, server)}")
    return found


def _why_not(kind: Kind, bundle: Bundle, server: Server | None) -> str | None:
    if kind in ("image", "split") and server is None:
        return "there is no server to send to: --to HOST:PORT"
    if kind == "image" and server is not None and not server.images:
        return (
            f"the server's bundle of {bundle.manifest.name} has no uncut network: compile with [export] whole = true, and "
            "publish the bundle with it"
        )
    if kind == "local" and not bundle.has("whole"):
        return f"{bundle.path.name} has no uncut network: compile with [export] whole = true"
    if kind == "exit" and not bundle.has("exit"):
        return f"{bundle.path.name} has no local exit: compile with [exit] in the recipe"
    return None


def make_runners(
    bundle: Bundle,
    kinds: Sequence[Kind],
    links: Sequence[Connection],
    settings: ProfileSettings,
    backends: Sequence[str],
    note: Note,
) -> list[Runner]:
    """Runners of all ways, in the order in which they are shown. Links are opened with their first frames.

    Raises:
        ProfileError: no such level, codec or quality.
        BackendError: a network does not load.
    """
    runners: list[Runner] = []
    if "local" in kinds:
        whole = WholeSession(
            bundle, backend=backends, precision=settings.whole_precision, threads=settings.threads
        )  # fmt: skip
        note(str(whole.choice).replace("head in", "the whole network in", 1))
        runners.append(LocalRunner(whole))
    if not {"exit", "image", "split"} & set(kinds):
        return runners
    session = HeadSession(bundle, backend=backends, precision=settings.precision, threads=settings.threads)
    note(str(session.choice))
    if "exit" in kinds:
        runners.append(ExitRunner(session))
    for link in links:
        if "image" in kinds:
            runners += [_image(session, link, settings, codec, q) for codec, q in _images(bundle, settings, note)]
        if "split" in kinds:
            runners += [_split(session, link, settings, level) for level in _levels(session, settings)]
    return runners


def _levels(session: HeadSession, settings: ProfileSettings) -> list[int]:
    levels = list(range(session.levels)) if settings.levels is None else settings.levels
    wrong = [level for level in levels if not 0 <= level < session.levels]
    if wrong or not levels:
        name = session.bundle.manifest.name
        raise ProfileError(f"level {wrong[0] if wrong else 'none'}; {name} has levels 0..{session.levels - 1}")
    return levels


def _images(bundle: Bundle, settings: ProfileSettings, note: Note) -> list[tuple[str, int]]:
    """Codecs and qualities; those that this board's Pillow cannot write are left out."""
    wrong = [quality for quality in settings.qualities if not 1 <= quality <= 100]
    if wrong or not settings.qualities or not settings.codecs:
        raise ProfileError(
            f"quality {wrong[0] if wrong else 'none'}; qualities lie in 1..100, codecs are jpeg and webp"
        )
    frame = reference_frames(bundle.manifest.input.size, 1)[0]
    found = []
    for codec in settings.codecs:
        try:
            encode_image(frame, _CODECS[codec], settings.qualities[0])
        except MissingDependencyError as error:
            note(f"without {codec}: {error}")
        else:
            found += [(str(codec), quality) for quality in settings.qualities]
    return found


def _client(session: HeadSession, link: Connection, settings: ProfileSettings, **way: object) -> Client:
    """As a program would make it; frames have no other way out than the server's answer."""
    return Client(
        session, link.address, tls=link.tls, window=settings.window, local_exit=False, tails=[MAIN],
        deadline_ms=settings.deadline_ms, give_up_seconds=max(30.0, 2 * settings.deadline_ms / 1000), **way,
    )  # fmt: skip


def _image(session: HeadSession, link: Connection, settings: ProfileSettings, codec: str, quality: int) -> RemoteRunner:
    title = f"{codec.upper()} of quality {quality} sent over {link.name}"
    info = WayInfo(f"{codec}-{quality}@{link.name}", "image", title, link.name, codec=codec, quality=quality)
    connect = partial(_client, session, link, settings, way="image", image_codec=codec, image_quality=quality)
    return RemoteRunner(info, connect)


def _split(session: HeadSession, link: Connection, settings: ProfileSettings, level: int) -> RemoteRunner:
    choice = session.choice
    title = f"split at level {level} over {link.name} (head in {choice.precision})"
    info = WayInfo(
        f"split-{level}@{link.name}", "split", title, link.name, precision=choice.precision, backend=choice.backend,
        level=level,
    )  # fmt: skip
    return RemoteRunner(info, partial(_client, session, link, settings, level=level))
