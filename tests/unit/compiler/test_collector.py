"""Python's collector is held back, and goes on as it was."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from narrowcast.compiler import export
from narrowcast.compiler.collector import collector_paused


def test_it_goes_on_behind_the_outermost_and_after_an_error():
    with pytest.raises(ZeroDivisionError), collector_paused():
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()


def test_one_that_was_off_stays_off():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_exports_are_made_meanwhile():
    class Looks(nn.Module):
        def forward(self, x):
            seen.append(gc.isenabled())
            return x + 1

    seen: list[bool] = []
    export.export_network(Looks(), torch.zeros(1, 3, 4, 4), ["output"])
    assert seen
    assert not any(seen)
    assert gc.isenabled()
