"""The links of a run: the network as it is, and emulated ones, all at once."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from narrowcast.devices.errors import ProfileError
from narrowcast.devices.links import emulated, parse_link
from narrowcast.devices.profile.schema import LinkSettings
from narrowcast.transport.rpc.channels import parse_address
from narrowcast.transport.rpc.credentials import ClientTls

REAL = "real"
# Headers of IPv4 and of TCP with time stamps, and what a full packet of Ethernet's size carries beside them.
HEADER_BYTES, SEGMENT_BYTES = 52, 1448


class Connection(NamedTuple):
    """A link to the server.

    Attributes:
        name: ``real``, or as the run's record calls the emulated one.
        address: to connect to.
        tls: for that address.
        settings: of an emulated one.
        headers: whether its rate counts the headers of IP and TCP.
        warnings: what of it is not emulated.
    """

    name: str
    address: str
    tls: ClientTls | None
    settings: LinkSettings | None = None
    headers: bool = True
    warnings: tuple[str, ...] = ()


@contextlib.contextmanager
def connections(
    to: str, links: Sequence[str], *, real: bool = True, tls: ClientTls | None = None, seed: int = 0
) -> Iterator[list[Connection]]:
    """The links for the length of the block, the real one first.

    Args:
        to: the server, ``HOST:PORT``.
        links: emulated ones, by preset or by their figures (:func:`narrowcast.devices.links.parse_link`).
        real: whether the network as it is counts as well.
        tls: for the server itself.
        seed: of what links lose and delay.

    Raises:
        LinkSettingsError: no such link.
        LinkUnavailableError: it cannot be emulated here.
        ProfileError: two of one name, or none at all.
    """
    parsed = [(text, parse_link(text)) for text in links]
    names = [link.name or text for text, link in parsed]
    if len(set(names)) != len(names):
        raise ProfileError(f"--link {next(name for name in names if names.count(name) > 1)} is given twice")
    host, _ = parse_address(to)
    found = [Connection(REAL, to, tls)] if real else []
    if tls is not None and tls.server_name is None:  # the certificate names the server, not the emulator before it
        tls = dataclasses.replace(tls, server_name=host)
    with contextlib.ExitStack() as stack:
        for name, (_, link) in zip(names, parsed, strict=True):
            emulation = stack.enter_context(emulated(link, to, seed=seed))
            settings = LinkSettings(
                preset=name, up_kbit=link.up_bits_per_second / 1000, down_kbit=link.down_bits_per_second / 1000,
                delay_ms=link.delay_ms, jitter_ms=link.jitter_ms, loss_percent=100 * link.loss_fraction,
                how=emulation.how,
            )  # fmt: skip
            headers = emulation.how == "packets"
            found.append(Connection(name, emulation.address, tls, settings, headers, tuple(emulation.unmodelled)))
        if not found:
            raise ProfileError("there is no link to run over: leave out --no-real, or give --link")
        yield found


def on_the_link(payload_bytes: float, *, headers: bool = True) -> float:
    """Bytes of IP packets that carry so many bytes of TCP; the same bytes where headers do not count."""
    packets = -(-payload_bytes // SEGMENT_BYTES)
    return payload_bytes + (HEADER_BYTES * packets if headers else 0)
