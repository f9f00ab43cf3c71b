"""What a rollout wants of a board: an interface, so that it can be tried with hundreds that are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from narrowcast.devices.fleet.inventory import Board
from narrowcast.devices.fleet.results import BoardState

Say = Callable[[str, str], object]  # (step, detail)


@dataclass(frozen=True)
class Done:
    """What was done with a board.

    Attributes:
        state: ``done``, ``unchanged`` or ``planned``.
        release: what runs there now; None where nothing does.
        detail: one line.
    """

    state: BoardState
    release: str | None
    detail: str = ""


class Flasher(Protocol):
    """Does one thing with a board: flashes it, or rolls it back. Called from several threads, for a board each."""

    def act(self, board: Board, say: Say) -> Done:
        """Does it.

        Args:
            board: which.
            say: told of every step as it begins.

        Raises:
            NarrowcastError: it failed; what ran before runs on. With exit code 5, the board rolled back by itself.
        """

    def wants(self, board: Board) -> str:
        """Names what is to be on a board: bundle, settings, certificate. With another name, what an earlier run did is void.

        Raises:
            NarrowcastError: a file that the board is to get cannot be read.
        """

    def still(self, board: Board, release: str) -> str:
        """Whether a board runs what an earlier run put there; says why not, or nothing where it does.

        Raises:
            NarrowcastError: that cannot be told.
        """
