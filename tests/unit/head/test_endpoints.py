"""Which server is next."""

from __future__ import annotations

import random
import socket

import pytest

from narrowcast.head import endpoints
from narrowcast.head.endpoints import Endpoints, parse_endpoints
from narrowcast.transport.errors import AddressError
from narrowcast.transport.rpc.channels import DEFAULT_PORT, Address

A, B, C = (Address(f"192.0.2.{k}", 7433) for k in (1, 2, 3))


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [1000.0]
    monkeypatch.setattr(endpoints.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("to", "wanted"),
    [
        ("a:1,b:2", [Address("a", 1), Address("b", 2)]),
        ("a:1, b:2 ,a:1", [Address("a", 1), Address("b", 2)]),
        ("server", [Address("server", DEFAULT_PORT)]),
        ("[::1]:5,192.0.2.1:6", [Address("::1", 5), Address("192.0.2.1", 6)]),
        (A, [A]),
        (["a:1", B], [Address("a", 1), B]),
    ],
)
def test_what_one_may_write(to, wanted):
    assert parse_endpoints(to) == wanted


@pytest.mark.parametrize("to", ["", ",", "a:1,,b:2", "a:99999", [], "a b"])
def test_what_is_no_address(to):
    with pytest.raises(AddressError, match="use HOST:PORT"):
        parse_endpoints(to)


def order(them: Endpoints, leave=None) -> list[Address]:
    return [endpoint.address for endpoint in them.in_order(leave)]


def test_where_to_begin_is_left_to_chance():
    firsts = {order(Endpoints([A, B, C], random.Random(seed)))[0] for seed in range(40)}
    assert firsts == {A, B, C}


def test_the_current_one_comes_first_and_others_after_a_failure(clock):
    them = Endpoints([A, B, C], random.Random(1))
    first, second, third = them.in_order()
    them.use(second)
    assert them.in_order() == [second, first, third]
    them.failed(second, "gone")
    assert them.in_order() == [first, third]
    clock[0] += 1
    assert them.in_order() == [first, third, second]
    second.answered()
    assert them.in_order()[0] is second


def test_one_that_wants_to_be_left_alone_and_one_that_refuses_come_last(clock):
    them = Endpoints([A, B, C], random.Random(1))
    first, second, third = them.in_order()
    them.use(first)
    assert them.in_order(first) == [second, third, first]
    them.failed(second, "another codec", refused=True)
    assert them.refusals() is None
    clock[0] += 10
    assert them.in_order() == [first, third, second]
    for one in (first, third):
        them.failed(one, "another codec", refused=True)
    assert them.refusals().count("refuses: another codec") == 3


def test_pauses_double_with_jitter_and_end(clock):
    them = Endpoints([A], random.Random(1))
    (only,) = them.in_order()
    pauses = []
    for _ in range(12):
        them.failed(only, "gone")
        assert them.in_order() == []
        pauses.append(them.seconds_to_next())
        clock[0] += pauses[-1] + 1e-6
        assert them.in_order() == [only]
    for k, pause in enumerate(pauses):
        longest = min(endpoints.FIRST_PAUSE_SECONDS * 2**k, endpoints.LONGEST_PAUSE_SECONDS)
        assert longest / 2 <= pause <= longest
    assert len(set(pauses)) == len(pauses)
    only.answered()
    them.failed(only, "gone")
    assert them.seconds_to_next() <= endpoints.FIRST_PAUSE_SECONDS


def test_patience_grows_with_hangs_alone_and_an_answer_ends_it(clock):
    them = Endpoints([A], random.Random(1))
    (only,) = them.in_order()
    for wanted in (2, 4, 8, 8):
        them.failed(only, "silent", hung=True)
        assert only.patience == wanted
    them.failed(only, "gone")
    assert only.patience == 8
    only.answered()
    assert only.patience == 1


async def test_names_are_looked_up_and_what_is_known_is_kept(monkeypatch):
    there = {"tails.test": ["192.0.2.1", "192.0.2.2", "192.0.2.1"]}

    def known(host, port, *rest, **options):
        if host not in there:
            raise socket.gaierror("no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (where, port)) for where in there[host]]

    monkeypatch.setattr(socket, "getaddrinfo", known)
    them = Endpoints([Address("tails.test", 7433), C], random.Random(1))
    assert order(them) == [C]
    await them.refresh()
    assert sorted(order(them)) == [A, B, C]
    kept = {endpoint.address: endpoint for endpoint in them.in_order()}
    assert {endpoint.name for endpoint in kept.values()} == {"tails.test", "192.0.2.3"}
    there["tails.test"] = ["192.0.2.2"]
    await them.refresh()
    assert sorted(order(them)) == [B, C]
    assert all(kept[endpoint.address] is endpoint for endpoint in them.in_order())
    del there["tails.test"]
    await them.refresh()
    assert sorted(order(them)) == [B, C]


async def test_a_name_that_nobody_knows_is_left_to_grpc(monkeypatch):
    def unknown(*rest, **options):
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    them = Endpoints([Address("nowhere.test", 1)], random.Random(1))
    await them.refresh()
    assert order(them) == [Address("nowhere.test", 1)]
    assert str(them) == "nowhere.test:1"
    them.close()


async def test_a_name_that_cannot_be_one_keeps_no_other_from_being_used():
    them = Endpoints(parse_endpoints(f"localhost:1,a..b:2,{'x' * 64}.example:3"))
    await them.refresh()
    assert {endpoint.address.port for endpoint in them.in_order()} == {1, 2, 3}
    them.close()
