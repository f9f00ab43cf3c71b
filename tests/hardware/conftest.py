"""An emulated board for the tests that want one: built and booted once."""

from __future__ import annotations

import pytest
from hardware.emulated_board import EmulatedBoard, copy_root, why_not


@pytest.fixture(scope="session")
def emulated_board(tmp_path_factory):
    """A board that nothing was flashed on yet, switched on."""
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("board")
    copy_root(folder / "root")
    board = EmulatedBoard(folder / "root", folder)
    try:
        board.boot()
        yield board
    finally:
        board.close()
