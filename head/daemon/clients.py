"""A source's client: made of its settings, and whether that can be, told before anything is changed for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from narrowcast.head.answers import AnswerReader
from narrowcast.head.async_client import AsyncClient
from narrowcast.head.daemon.config import DaemonConfig, SourceConfig, SpoolConfig
from narrowcast.head.daemon.figures import Figures
from narrowcast.head.daemon.model import Model
from narrowcast.head.daemon.records import Teller
from narrowcast.head.errors import BackendError
from narrowcast.head.offload import NOT_MAIN
from narrowcast.head.outage import OnOutage
from narrowcast.head.rate.budget import DailyCap, parse_cap, parse_rate
from narrowcast.head.rate.control import RateControl
from narrowcast.head.replay import Replayed
from narrowcast.head.session import HeadSession
from narrowcast.head.sources import open_source
from narrowcast.head.sources.raw import RawForm
from narrowcast.head.spool import Spool
from narrowcast.head.video.wanted import by_reference
from narrowcast.transport.errors import ConfigError, MissingPartError, NarrowcastError
from narrowcast.transport.rpc.credentials import ClientTls, client_tls
from narrowcast.transport.tasks import MAIN

MIB = 1024 * 1024


@dataclass(eq=False)
class Running:
    """A client in use.

    Attributes:
        client: itself.
        teller: makes the records of its frames.
        under_way: frames that were given to it and have no end yet.
        frames: that were handed to it: the next one's number.
        ended: whether what it did is in the source's figures.
    """

    client: AsyncClient
    teller: Teller
    under_way: int = 0
    frames: int = 0
    ended: bool = False


def tls_of(config: DaemonConfig) -> ClientTls | None:
    """What servers are known by, and this client.

    Raises:
        CertificateError, KeyFileError, TokenError: files that are no good.
    """
    if config.tls is None:
        return None
    return client_tls(config.tls.dir, token_file=config.tls.token_file, server_name=config.tls.name)


def policy_of(source: SourceConfig, session: HeadSession) -> OnOutage:
    """What becomes of frames that no server answers: never that all of it ends, which is not for a daemon."""
    return source.on_outage or ("local" if session.has_exit and asks_main(source) else "drop")


def asks_main(source: SourceConfig) -> bool:
    """Whether the tail ``main`` is among those that a source wants: nothing answers for another one on the board."""
    return not source.tails or MAIN in source.tails


def sends_by_reference(source: SourceConfig, session: HeadSession) -> bool:
    """Whether its frames refer to earlier ones."""
    return by_reference(
        source.video, session.bundle, source.uri, watch=source.watch, way=source.way, offload=source.offload
    )  # fmt: skip


def check_capture(source: SourceConfig) -> str:
    """A source's name, without a password, if it can be captured; nothing that runs is disturbed.

    Raises:
        ConfigError: it cannot be: no such file, folder or scheme, or settings that do not go together.
    """
    try:
        if not source.uri.startswith("unix:"):  # opening it would take the socket from a daemon that runs
            raw = None if source.raw is None else RawForm.parse(source.raw)
            return open_source(source.uri, watch=source.watch, raw=raw, size=source.camera_size).name
        if source.raw is None:
            raise ConfigError(f'frames from {source.uri} are raw: say what they are like (raw = "640x480:rgb")')
    except (NarrowcastError, OSError) as error:
        raise ConfigError(f"source {source.name!r}: {error}") from error
    return source.uri


def check_source(config: DaemonConfig, source: SourceConfig, model: Model) -> None:
    """Returns if :func:`make_client` will find nothing wrong. May load parts of the model: not for an event loop.

    Raises:
        ConfigError: a tail or level that the bundle has not, or settings that do not go together.
        MissingPartError: a local exit, video tables or an uncut network are asked for that it has not.
        BackendError: a local exit, or an uncut network that is insisted on, does not load.
        CertificateError, KeyFileError, TokenError: files for TLS that are no good.
    """
    session, manifest = model.session, model.manifest
    reader = AnswerReader(manifest, source.tails)
    if policy_of(source, session) == "local":
        if not session.has_exit:
            raise MissingPartError(
                f'source {source.name!r}: on_outage = "local", and {manifest.name} has no local exit ([exit] in its recipe)'
            )
        if not any(tail.name == "main" for tail in reader.tails):
            raise ConfigError(
                f"source {source.name!r}: the local exit answers as the tail 'main' does, which is not asked for"
            )
        _ = session.exit  # now: later, another bundle may lie where this one did
    if source.offload == "local" and not asks_main(source):
        raise ConfigError(f"source {source.name!r}: {NOT_MAIN}")
    if isinstance(source.level, int) and source.level >= session.levels:
        raise ConfigError(
            f"source {source.name!r}: level = {source.level}; {manifest.name} has levels 0..{session.levels - 1}"
        )
    try:
        if "auto" in (source.level, source.offload):
            RateControl(manifest, automatic=True)
        if sends_by_reference(source, session):
            session.video_codec()
        may_be_here = source.offload == "auto" and asks_main(source) and session.bundle.has("whole")
        if source.offload == "local" or may_be_here:
            with suppress(*([] if source.offload == "local" else [BackendError])):  # the other ways are left then
                _ = session.whole  # now, as the exit, and here, where it may take its time
    except (ConfigError, MissingPartError) as error:
        raise type(error)(f"source {source.name!r}: {error}") from error
    tls_of(config)


def check_sources(config: DaemonConfig, model: Model, anew: Iterable[SourceConfig] = ()) -> None:
    """:func:`check_source` of all, and :func:`check_capture` of those that are begun anew."""
    for source in config.sources:
        check_source(config, source, model)
    for source in anew:
        check_capture(source)


def make_client(
    config: DaemonConfig,
    source: SourceConfig,
    model: Model,
    spool: Spool | None,
    figures: Figures,
    *,
    tls: ClientTls | None,
    on_trouble: Callable[[str], None],
    on_replayed: Callable[[Teller, Replayed], Awaitable[None]],
) -> Running:
    """A client for a source, on the running loop; ``tls`` is :func:`tls_of`'s. Raises as :func:`check_source` does."""
    session, teller = model.session, Teller(source.name, model)
    client = AsyncClient(
        session, config.to, level=source.level, tails=source.tails, window=source.window, give_up_seconds=30.0,
        on_trouble=on_trouble, exit_after_seconds=source.exit_after_seconds, deadline_ms=source.deadline_ms,
        priority=source.priority, tls=tls, way=source.way, image_codec=source.image_codec,
        image_quality=source.image_quality, data_cap=make_cap(config, source, figures),
        max_packet_bytes=source.max_packet_bytes,
        budget_kbit=None if source.budget is None else parse_rate(source.budget) * 8 / 1000,
        on_outage=policy_of(source, session), spool=spool, ledger=figures.ledger, refusal_is_outage=True,
        on_replayed=lambda replayed: on_replayed(teller, replayed), video=sends_by_reference(source, session),
        offload=source.offload, way_joules=source.way_joules,
    )  # fmt: skip
    return Running(client, teller)


def make_cap(config: DaemonConfig, source: SourceConfig, figures: Figures) -> DailyCap | None:
    """What the source may spend of a day; None for all that it wants.

    It stays the same over all of the source's clients: also while the disk does not take what is used, that is known.

    Raises:
        ConfigError: what is used cannot be kept, from the beginning.
    """
    if source.data_cap is None:
        return None
    most_bytes = parse_cap(source.data_cap)
    if figures.cap is None:
        figures.cap = DailyCap(most_bytes, Path(config.state_folder) / f"data-used-{source.name}.json")
    figures.cap.change(most_bytes)
    return figures.cap


def make_spool(config: DaemonConfig, source: SourceConfig) -> Spool | None:
    """The source's spool, where it has one.

    Raises:
        SpoolError: its folder cannot be used.
    """
    if source.on_outage != "spool":
        return None
    wanted = source.spool or SpoolConfig()
    return Spool(
        config.state_folder / "spool" / source.name, max_bytes=wanted.mib * MIB, overflow=wanted.overflow,
        sync=wanted.sync, max_age_seconds=None if wanted.hours is None else wanted.hours * 3600,
    )  # fmt: skip
