"""Fixtures that several files here use."""

from __future__ import annotations

import random

import pytest
from support import bundles
from support.fleet import Fleet
from support.inprocess import held
from support.server import serving

from narrowcast.head import endpoints
from narrowcast.head.session import HeadSession
from narrowcast.tail import access_gate, access_tls
from narrowcast.tail.store import Model, load_model


@pytest.fixture(scope="module")
def session(tiny_folder) -> HeadSession:
    """A board with the bundle loaded."""
    return HeadSession(bundles.open_made(tiny_folder / "tiny.ncb"), backend="onnxruntime", precision="fp32")


@pytest.fixture(scope="module")
def server(tiny_folder):
    """One server for all tests that do not harm it."""
    with serving(tiny_folder, tiny_folder / "test.pub") as running:
        yield running


@pytest.fixture
def given_order(monkeypatch):
    """Clients begin with the first of their servers."""

    class Unshuffled(random.Random):
        def shuffle(self, x):
            pass

    monkeypatch.setattr(endpoints.random, "SystemRandom", Unshuffled)


@pytest.fixture
def model(tiny) -> Model:
    """Held."""
    return held(load_model(tiny))


@pytest.fixture
def free(tiny) -> Model:
    """Not held."""
    return held(load_model(tiny), held=False)


@pytest.fixture
def look_often(monkeypatch):
    """Changed files are noticed at once, and the shell's own token does not count."""
    monkeypatch.setattr(access_gate, "LOOK_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(access_tls, "LOOK_EVERY_SECONDS", 0.0)
    monkeypatch.delenv("NARROWCAST_TOKEN", raising=False)


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


@pytest.fixture
def tail(fleet):
    return fleet.server()


@pytest.fixture
def board(fleet):
    return fleet.board()
