"""Fixtures that several files here use."""

from __future__ import annotations

import pytest
from support import bundles

from narrowcast.tail.batcher import Batcher
from narrowcast.tail.models import ModelTable
from narrowcast.tail.operations.tally import Tally
from narrowcast.tail.store import load_models


@pytest.fixture
async def table(tiny_folder):
    table = ModelTable()
    batcher = Batcher(load_models(tiny_folder, trusted=[bundles.trusted_key()])["tiny"])
    table.publish(batcher)
    yield table
    await batcher.close()


@pytest.fixture
async def tally(table):
    return Tally(table)
