"""``[deploy]`` of a recipe: where it goes. ``narrowcast deploy`` reads it; nothing that is compiled depends on it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from narrowcast.devices.fleet.inventory import BoardSettings
from narrowcast.transport.structs import Settings


class DeployBoard(BoardSettings, frozen=True, kw_only=True):
    """``[deploy.board]``: one board; ``ssh`` is how to get there, the rest as in a fleet's inventory."""

    ssh: str


class DeployFleet(Settings, frozen=True):
    """``[deploy.fleet]``: many; see ``docs/fleet.md``.

    Attributes:
        inventory: its file.
        groups: only the boards of these.
        canary: so many boards first.
        wave: boards in a wave; 0 for all others at once.
        parallel: boards at a time.
        stop_after: failures at which it stops: ``1``, ``10%``, ``never``.
    """

    inventory: str
    groups: list[str] = []
    canary: Annotated[int, msgspec.Meta(ge=0)] = 1
    wave: Annotated[int, msgspec.Meta(ge=0)] = 10
    parallel: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    stop_after: str = "1"


class DeployProfile(Settings, frozen=True):
    """``[deploy.profile]``: what is measured on the board, or on a fleet's first one, once the release runs there.

    Attributes:
        board: of a fleet, by name; its first one where this is left out.
        output: where the run record goes.
        options: of ``narrowcast profile``, without their dashes: ``{ loaded-s = 60, ways = "split,image" }``.
    """

    board: str = ""
    output: str = ""
    options: dict[str, Any] = {}


class DeploySettings(Settings, frozen=True):
    """The table. File names are relative to the recipe.

    Attributes:
        bundle: the compiled file; ``NAME.ncb`` beside the recipe where it is left out.
        publish: the folder that the tail server serves: ``DIR``, or ``USER@HOST:DIR``; nothing is published without it.
        to: the tail server or servers, ``HOST:PORT[,...]``: boards send there, and they are asked for the release.
        tls: a folder of ``narrowcast keys issue``, to ask with.
        tls_name: in the server's certificate, where it is not that of ``to``.
        board, fleet: what is flashed: one of them, or neither.
        profile: what is measured.
        report: the page; ``NAME.html`` beside the recipe where it is left out.
    """

    bundle: str = ""
    publish: str = ""
    to: str = ""
    tls: str = ""
    tls_name: str = ""
    board: DeployBoard | None = None
    fleet: DeployFleet | None = None
    profile: DeployProfile = DeployProfile()
    report: str = ""

    def __post_init__(self) -> None:
        if self.board is not None and self.fleet is not None:
            raise ValueError("there is a board and a fleet; keep one of them")
