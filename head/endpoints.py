"""Where a client may find its model: several servers, or names that stand for several, and which of them is next.

A client begins at one of them by chance, so that many clients spread over all, and stays with it while it serves. After a
failure the others come first; each has a pause of its own that doubles with every failure in a row, with jitter
("Exponential Backoff And Jitter", M. Brooker, AWS Architecture Blog 2015).
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from narrowcast.head.errors import Refusal
from narrowcast.head.liveness import Pace
from narrowcast.transport.errors import AddressError
from narrowcast.transport.rpc.channels import Address, parse_address

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
# The names' addresses of last time serve while a resolver takes longer than that.
RESOLVE_SECONDS = 1.0
MAX_PATIENCE = 8.0
# A name that stands for more is cut short: nobody tries them all.
MAX_ADDRESSES = 64

To = str | Address | Sequence[str | Address]


def parse_endpoints(to: To) -> list[Address]:
    """``HOST:PORT[,HOST:PORT...]``, an address, or several of both.

    Raises:
        AddressError: there is none, or one is no address.
    """
    if isinstance(to, Address):
        return [to]
    parts: Iterable[str | Address] = to.split(",") if isinstance(to, str) else to
    found = [part if isinstance(part, Address) else parse_address(part) for part in parts]
    if not found:
        raise AddressError("no address to connect to; use HOST:PORT, or several with commas between")
    return list(dict.fromkeys(found))


@dataclass(eq=False)
class Endpoint:
    """One address of one server, and what is known of it.

    Attributes:
        address: to connect to.
        name: the host as the user gave it, which a certificate is checked against.
        refusal: why it will not serve this client, by its last word; None where it has said no such thing.
        refused_as: the status of that, by gRPC's name; None where there was none.
        trouble: why it did not serve lately; empty where it did.
        told: what the user was told of it last, since it answered.
        retry_at: when it is worth another try, in seconds of ``time.monotonic()``.
        patience: stretches the bound after which it counts as hung: it was found alive after such a verdict.
        pace: what its answers take.
    """

    address: Address
    name: str
    refusal: str | None = None
    refused_as: str | None = None
    trouble: str = ""
    told: str = ""
    retry_at: float = 0.0
    patience: float = 1.0
    pace: Pace = field(default_factory=Pace)
    _pause: float = FIRST_PAUSE_SECONDS / 2

    def opened(self) -> None:
        """It took a stream."""
        self.refusal = None

    def answered(self) -> None:
        """It answered a frame."""
        self.refusal, self.trouble, self.told, self.retry_at, self.patience = None, "", "", 0.0, 1.0
        self._pause = FIRST_PAUSE_SECONDS / 2

    def failed(
        self,
        trouble: str,
        *,
        refused: bool = False,
        status: str | None = None,
        hung: bool = False,
        by_chance: random.Random,
    ) -> None:
        """It did not take a stream, or lost one."""
        self.trouble, self.refusal, self.refused_as = trouble, trouble if refused else None, status
        if hung:
            self.patience = min(self.patience * 2, MAX_PATIENCE)
        self._pause = min(self._pause * 2, LONGEST_PAUSE_SECONDS)
        self.retry_at = time.monotonic() + self._pause * by_chance.uniform(0.5, 1.0)


class Endpoints:
    """All addresses that one client may use. Must be used on one event loop.

    Args:
        targets: addresses and names; each name stands for all addresses that the system's resolver gives.
        by_chance: decides where to begin.
    """

    def __init__(self, targets: Sequence[Address], by_chance: random.Random | None = None) -> None:
        self._targets = list(targets)
        self._by_chance = by_chance or random.SystemRandom()
        self._known: dict[tuple[Address, str], Endpoint] = {}
        self._resolved: dict[Address, list[Address]] = {}
        self._resolving: asyncio.Task[None] | None = None
        self._current: Endpoint | None = None
        for target in targets:
            if _is_literal(target.host):
                self._resolved[target] = [target]
        self._named = [target for target in targets if target not in self._resolved]
        self._renew()

    def __str__(self) -> str:
        return ", ".join(str(target) for target in self._targets)

    def __len__(self) -> int:
        return len(self._known)

    @property
    def current(self) -> Endpoint | None:
        """The one in use, or that was in use last."""
        return self._current

    @property
    def ports(self) -> list[int]:
        """All ports, for counting bytes."""
        return sorted({target.port for target in self._targets})

    async def refresh(self) -> None:
        """Asks the resolver again; goes on with what it said last where it takes its time."""
        if not self._named:
            return
        if self._resolving is None or self._resolving.done():
            self._resolving = asyncio.create_task(self._resolve())
        await asyncio.wait([self._resolving], timeout=RESOLVE_SECONDS if self._known else None)

    async def _resolve(self) -> None:
        for target, found in zip(self._named, await asyncio.gather(*map(_lookup, self._named)), strict=True):
            if found:
                self._resolved[target] = found
            elif target not in self._resolved:
                # Perhaps a proxy knows the name; else gRPC says what is wrong with it.
                self._resolved[target] = [target]
        self._renew()

    def _renew(self) -> None:
        wanted = [(address, target.host) for target in self._targets for address in self._resolved.get(target, [])]
        fresh = [key for key in dict.fromkeys(wanted) if key not in self._known]
        self._by_chance.shuffle(fresh)
        kept = {key: endpoint for key, endpoint in self._known.items() if key in wanted}
        self._known = kept | {key: Endpoint(*key) for key in fresh}

    def in_order(self, avoid: Endpoint | None = None) -> list[Endpoint]:
        """Those worth a try now, best first: the current one, the others in their chance order, those in trouble last.

        Args:
            avoid: comes last: it wants to be left alone.
        """
        now = time.monotonic()
        due = [endpoint for endpoint in self._known.values() if endpoint.retry_at <= now]
        return sorted(
            due,
            key=lambda one: (one is avoid, one.refusal is not None, one.trouble != "", one is not self._current),
        )

    def seconds_to_next(self) -> float:
        """Until the first is worth a try."""
        times = [endpoint.retry_at for endpoint in self._known.values()]
        return max(0.0, min(times, default=0.0) - time.monotonic())

    def use(self, endpoint: Endpoint) -> None:
        """It is the current one from now on."""
        self._current = endpoint

    def failed(
        self, endpoint: Endpoint, trouble: str, *, refused: bool = False, status: str | None = None, hung: bool = False
    ) -> None:
        """An endpoint did not take a stream, or lost one."""
        endpoint.failed(trouble, refused=refused, status=status, hung=hung, by_chance=self._by_chance)

    def refusals(self) -> str | None:
        """What they say where every one of them refuses this client; None where one does not."""
        said = {f"{one.address} refuses: {one.refusal}" for one in self._known.values() if one.refusal is not None}
        refused = all(endpoint.refusal is not None for endpoint in self._known.values())
        return "; ".join(sorted(said)) if self._known and refused else None

    def words(self) -> list[Refusal]:
        """The last refusal of each that has refused this client."""
        return [Refusal(one.refused_as, one.refusal) for one in self._known.values() if one.refusal is not None]

    def troubles(self) -> str:
        """What was wrong with each lately."""
        return "; ".join(dict.fromkeys(one.trouble for one in self._known.values() if one.trouble)) or "nothing tried"

    def close(self) -> None:
        """Asks the resolver no more."""
        if self._resolving is not None:
            self._resolving.cancel()


def _is_literal(host: str) -> bool:
    return ":" in host or re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}", host) is not None


async def _lookup(target: Address) -> list[Address]:
    """All addresses of a name; none where the resolver knows none."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    except (
        OSError,
        UnicodeError,
    ):  # UnicodeError: no name at all ("a..b"), which must not keep the others from being used
        return []
    hosts = dict.fromkeys(str(where[0]) for family, *_, where in found if family in (socket.AF_INET, socket.AF_INET6))
    return [Address(host, target.port) for host in list(hosts)[:MAX_ADDRESSES]]
