"""What several tests of boards want."""

import pytest
from support.local_board import LocalBoard


@pytest.fixture
def board(tmp_path):
    """A folder of this machine that is flashed as a board is."""
    made = LocalBoard(tmp_path)
    try:
        yield made
    finally:
        made.close()
