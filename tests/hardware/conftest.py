"""An emulated board for the tests that want one: built and booted once."""

from __future__ import annotations

import os
import shutil

import pytest
from hardware.emulated_board import EmulatedBoard, copy_root, why_not


@pytest.fixture(scope="session")
def emulated_board(tmp_path_factory):
    """A board that nothing was flashed on yet, switched on."""
    if "EMULATED_BOARD" not in os.environ:
        pytest.skip("an emulated board takes minutes: make test-board")
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("board")
    try:
        copy_root(folder / "root")
    except (OSError, RuntimeError) as error:  # without a network, say
        pytest.skip(f"no root for an emulated board can be made here: {error}")
    try:
        board = EmulatedBoard(folder / "root", folder)
    except (OSError, RuntimeError) as error:
        pytest.skip(f"no emulated board can be set up here: {error}")
    try:
        try:
            board.boot()
        except (OSError, RuntimeError, AssertionError) as error:  # nothing of ours is on it yet: it is the machine
            pytest.skip(f"an emulated board does not boot here: {error}")
        yield board
    finally:
        board.close()
        shutil.rmtree(folder / "root", ignore_errors=True)  # half a gigabyte
